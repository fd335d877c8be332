"""Log-probabilities of sampled tokens, tile by tile over rows and vocabulary.

The memory grows with neither.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vistill.flops_counter import count
from vistill.functional.heads import Head

#: Rows and vocabulary entries of a tile.
TILE_ROWS, TILE_VOCABULARY = 2048, 4096
#: Elements that fit into a cache.
CACHED_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 24}


@torch.no_grad()
def tiled_log_prob(
    hidden: Float[Tensor, "R H"], head: Head, ids: Int[Tensor, " R"]
) -> Float[Tensor, " R"]:
    """`z_id - log sum exp z` of each row. The sum is updated tile by tile of the vocabulary."""
    vocabulary, values, head = len(head.weight), [], head.with_operands()
    count(head_rows=len(hidden), flops=2.0 * len(hidden) * head.weight.numel())
    width = vocabulary if vocabulary <= 2 * TILE_VOCABULARY else TILE_VOCABULARY
    buffer = torch.empty(
        min(len(hidden), TILE_ROWS), width, dtype=head.logits_dtype, device=head.weight.device
    )
    for start in range(0, len(hidden), TILE_ROWS):
        h, index = hidden[start : start + TILE_ROWS], ids[start : start + TILE_ROWS]
        peak = torch.full((len(h),), -torch.inf, dtype=head.logits_dtype, device=h.device)
        log_sum, sampled = peak.clone(), torch.zeros_like(peak)
        for a in range(0, vocabulary, width):
            b = min(a + width, vocabulary)
            bias = None if head.bias is None else head.bias[a:b]
            rounded = None if head.rounded is None else head.rounded[a:b]
            tile = replace(head, weight=head.weight[a:b], bias=bias, uncut=None, rounded=rounded)
            out = buffer.flatten()[: len(h) * (b - a)].view(len(h), b - a)
            z = tile.product_to_logits(tile.project(h, out))
            inside = (index >= a) & (index < b)
            in_tile = z.gather(-1, (index - a).clamp(0, b - a - 1)[:, None])[:, 0]
            sampled = torch.where(inside, in_tile, sampled)
            tile_peak, tile_log_sum = peak_and_log_sum(z)
            higher = torch.maximum(peak, tile_peak)
            log_sum = torch.logaddexp(
                log_sum + (peak - higher), tile_log_sum + (tile_peak - higher)
            )
            peak = higher
        values.append(sampled - peak - log_sum)
    return torch.cat(values) if values else hidden.new_zeros(0, dtype=head.logits_dtype)


def peak_and_log_sum(z: Float[Tensor, "R V"]) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
    """The largest entry m of each row and `log sum exp(z - m)`, for as many rows as a cache holds.

    Both stay exact where one token has nearly all probability. Their sum would be rounded.
    """
    size = max(1, CACHED_ELEMENTS.get(z.device.type, 1 << 24) // z.shape[-1])
    buffer = z.new_empty(min(size, len(z)), z.shape[-1])

    def log_sum(part: Tensor) -> Tensor:
        return -torch.log_softmax(part, -1, out=buffer[: len(part)]).amax(-1)

    parts = z.split(size)
    return torch.cat([part.amax(-1) for part in parts]), torch.cat([log_sum(p) for p in parts])

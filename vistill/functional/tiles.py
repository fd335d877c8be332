"""Log-probabilities of sampled tokens, tile by tile over rows and vocabulary: nothing grows with either."""

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
    """`z_id - log sum exp z`, the sum made tile by tile of the vocabulary."""
    vocabulary, made = len(head.weight), []
    count(head_rows=len(hidden), flops=2.0 * len(hidden) * head.weight.numel())
    width = vocabulary if vocabulary <= 2 * TILE_VOCABULARY else TILE_VOCABULARY
    buffer = torch.empty(
        min(len(hidden), TILE_ROWS), width, dtype=head.wide, device=head.weight.device
    )
    for start in range(0, len(hidden), TILE_ROWS):
        h, index = hidden[start : start + TILE_ROWS], ids[start : start + TILE_ROWS]
        peak = torch.full((len(h),), -torch.inf, dtype=head.wide, device=h.device)
        rest, picked = peak.clone(), torch.zeros_like(peak)
        for a in range(0, vocabulary, width):
            b = min(a + width, vocabulary)
            bias = None if head.bias is None else head.bias[a:b]
            tile = replace(head, weight=head.weight[a:b], bias=bias)
            space = buffer.flatten()[: len(h) * (b - a)].view(len(h), b - a)
            z = tile.finish(tile.project(h, space))
            inside = (index >= a) & (index < b)
            own = z.gather(-1, (index - a).clamp(0, b - a - 1)[:, None])[:, 0]
            picked = torch.where(inside, own, picked)
            tile_peak, tile_rest = log_sum_exp(z)
            higher = torch.maximum(peak, tile_peak)
            rest = torch.logaddexp(rest + (peak - higher), tile_rest + (tile_peak - higher))
            peak = higher
        made.append(picked - peak - rest)
    return torch.cat(made) if made else hidden.new_zeros(0, dtype=head.wide)


def log_sum_exp(z: Float[Tensor, "R V"]) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
    """Largest entry m of each row and `log sum exp(z - m)`, a cache of rows at a time.

    Apart they stay exact where one token has nearly all probability; their sum would round it away.
    """
    size = max(1, CACHED_ELEMENTS.get(z.device.type, 1 << 24) // z.shape[-1])
    space = z.new_empty(min(size, len(z)), z.shape[-1])
    rest = lambda part: -torch.log_softmax(part, -1, out=space[: len(part)]).amax(-1)
    parts = z.split(size)
    return torch.cat([part.amax(-1) for part in parts]), torch.cat([rest(part) for part in parts])

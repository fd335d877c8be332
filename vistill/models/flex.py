"""One packed row under a block mask: torch's flex attention, the alternative on CUDA to padded blocks.

The same segments as `sharing.py`, nothing padded: a query sees the keys of its prompt and the earlier tokens of its
own segment. torch has no backward pass of it on a CPU; there the same mask goes through plain attention.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from vistill.models.sharing import KeysValues, Segment, tokens_first

#: Whose key or query it is, where it belongs to nobody's prompt.
NOBODY = -1


@dataclass
class FlexAttend:
    """How the tokens of one packed row attend, as an `Attention`."""

    mask: BlockMask
    sees: Callable[[Any, Any, Tensor, Tensor], Tensor]
    """(batch, head, query, key) -> whether the query sees the key; indices may be any shapes that broadcast."""
    cells: int
    prompt: KeysValues | None = None
    kept: KeysValues | None = None
    last_layer: int = -1

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        """Attention output [1, L, heads, d] of packed queries [1, heads, L, d]."""
        own, heads = (tokens_first(key), tokens_first(value)), key.shape[1]
        if self.kept is not None:
            self.kept.put(layer, *own, heads=heads)
        if layer == self.last_layer:
            return query.transpose(1, 2)
        keys, values = own if self.prompt is None else self.prompt.followed_by(layer, *own)
        k, v = (x.unflatten(1, (heads, -1)).transpose(0, 1)[None] for x in (keys, values))
        return self.attend(query, k, v, scaling).transpose(1, 2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Attention output [1, heads, L, d]."""
        grouped = query.shape[1] != key.shape[1]
        if query.device.type != "cpu":
            return compiled()(
                query, key, value, block_mask=self.mask, scale=scaling, enable_gqa=grouped
            )
        if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
            row, column = torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])
            dense = self.sees(0, 0, row, column)
            return F.scaled_dot_product_attention(
                query, key, value, dense, scale=scaling, enable_gqa=grouped
            )
        made = flex_attention(
            query, key, value, block_mask=self.mask, scale=scaling, enable_gqa=grouped
        )
        assert isinstance(made, Tensor)
        return made


@cache
def compiled() -> Callable[..., Tensor]:
    """The fused kernel; lengths change from step to step, so they are symbols."""
    return torch.compile(flex_attention, dynamic=True)


def plan_flex(
    segments: Sequence[Segment], num_prompt_tokens: int, device: torch.device
) -> FlexAttend:
    """The block mask of consecutive segments behind the table of prompt keys."""
    total = sum(s.length for s in segments)
    prompt_of_key = torch.full((num_prompt_tokens,), NOBODY)
    prompts = {s.prompt_start: s for s in segments if s.prompt_length}
    for number, s in enumerate(prompts.values()):
        prompt_of_key[s.prompt_start : s.prompt_start + s.prompt_length] = number
    numbers = {start: number for number, start in enumerate(prompts)}
    lengths = torch.tensor([s.length for s in segments])
    segment = torch.repeat_interleave(torch.arange(len(segments)), lengths)
    own_prompt = torch.tensor(
        [numbers[s.prompt_start] if s.prompt_length else NOBODY - 1 for s in segments]
    )
    query_prompt, query_segment = own_prompt[segment].to(device), segment.to(device)
    key_prompt = torch.cat([prompt_of_key, torch.full((total,), NOBODY)]).to(device)
    key_segment = torch.cat([torch.full((num_prompt_tokens,), NOBODY), segment]).to(device)

    sees = lambda batch, head, query, key: (
        (query_prompt[query] == key_prompt[key])
        | ((query_segment[query] == key_segment[key]) & (key - num_prompt_tokens <= query))
    )
    mask = create_block_mask(sees, None, None, total, num_prompt_tokens + total, device=device)
    return FlexAttend(mask, sees, sum(s.cells for s in segments))

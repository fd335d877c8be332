"""One packed row under a block mask: torch's flex attention, an alternative to padded blocks.

It handles the segments of `sharing.py` without padding: a query attends to the keys of its prompt
and to the earlier tokens of its own segment. On a CPU torch has no backward pass of flex attention.
There the same mask goes through ordinary attention if a gradient is needed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, no_type_check

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from vistill.models.sharing import KVCache, Segment, tokens_first

#: Number of the prompt of a key that belongs to no prompt.
NO_PROMPT = -1


@dataclass
class FlexAttention:
    """How the tokens of one packed row attend, as an `Attention`."""

    mask: BlockMask
    is_visible: Callable[[Any, Any, Tensor, Tensor], Tensor]
    """(batch, head, query, key) -> whether the query attends to the key. Indices broadcast."""
    num_scores: int
    prompt_cache: KVCache | None = None
    new_cache: KVCache | None = None
    last_layer: int = -1

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        """Attention output [1, L, heads, d] of packed queries [1, heads, L, d]."""
        keys, values, heads = tokens_first(key), tokens_first(value), key.shape[1]
        if self.new_cache is not None:
            self.new_cache.store(layer, keys, values, heads=heads)
        if layer == self.last_layer:
            return query.transpose(1, 2)
        if self.prompt_cache is not None:
            keys, values = self.prompt_cache.concat(layer, keys, values)
        k, v = (x.unflatten(1, (heads, -1)).transpose(0, 1)[None] for x in (keys, values))
        return self.attend(query, k, v, scaling).transpose(1, 2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Attention output [1, heads, L, d]."""
        has_groups = query.shape[1] != key.shape[1]
        if query.device.type != "cpu":
            return compiled_flex_attention()(
                query, key, value, block_mask=self.mask, scale=scaling, enable_gqa=has_groups
            )
        if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
            row, column = torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])
            dense_mask = self.is_visible(0, 0, row, column)
            return F.scaled_dot_product_attention(
                query, key, value, dense_mask, scale=scaling, enable_gqa=has_groups
            )
        output = flex_attention(
            query, key, value, block_mask=self.mask, scale=scaling, enable_gqa=has_groups
        )
        assert isinstance(output, Tensor)
        return output


@cache
def compiled_flex_attention() -> Callable[..., Tensor]:
    """The compiled kernel. Shapes are dynamic, because lengths change from step to step."""
    return torch.compile(flex_attention, dynamic=True)


def plan_flex(
    segments: Sequence[Segment], num_prompt_tokens: int, device: torch.device
) -> FlexAttention:
    """The block mask of consecutive segments after the table of prompt keys."""
    total = sum(s.length for s in segments)
    prompt_of_key = torch.full((num_prompt_tokens,), NO_PROMPT)
    prompts = {s.prompt_start: s for s in segments if s.prompt_length}
    for number, s in enumerate(prompts.values()):
        prompt_of_key[s.prompt_start : s.prompt_start + s.prompt_length] = number
    numbers = {start: number for number, start in enumerate(prompts)}
    lengths = torch.tensor([s.length for s in segments])
    segment = torch.repeat_interleave(torch.arange(len(segments)), lengths)
    # A segment without prompt gets a number that no key has.
    prompt_of_segment = torch.tensor(
        [numbers[s.prompt_start] if s.prompt_length else NO_PROMPT - 1 for s in segments]
    )
    query_prompt, query_segment = prompt_of_segment[segment].to(device), segment.to(device)
    key_prompt = torch.cat([prompt_of_key, torch.full((total,), NO_PROMPT)]).to(device)
    key_segment = torch.cat([torch.full((num_prompt_tokens,), NO_PROMPT), segment]).to(device)

    @no_type_check  # torch counts its positional arguments, which a wrapper would hide
    def is_visible(batch: Any, head: Any, query: Tensor, key: Tensor) -> Tensor:
        in_prompt = query_prompt[query] == key_prompt[key]
        in_segment = query_segment[query] == key_segment[key]
        return in_prompt | (in_segment & (key - num_prompt_tokens <= query))

    mask = create_block_mask(
        is_visible, None, None, total, num_prompt_tokens + total, device=device
    )
    return FlexAttention(mask, is_visible, sum(s.num_scores for s in segments))

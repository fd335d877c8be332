"""Prefix sharing: sibling responses attend to the keys and values of the prompt that they share.

Prompts are packed one after the other on one axis, responses on another axis. Only the attention
of segments of unequal length is padded.

A response is read as `[last prompt token, y_0, ..., y_{T-2}]`: T tokens that predict its T tokens.
So the shared part of a prompt ends one token earlier. It needs keys and values, but no hidden
states at its end.

This file is about rows and attention. Embeddings and layers belong to the family.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vistill.models import sdpa

#: The name of `attention_function` in transformers' registry of attention functions.
ATTENTION_NAME = "vistill"
#: The same attention for a decoder that is called whole: transformers makes no mask for it.
PACKED_NAME = "vistill_packed"
#: Segments of unequal length share a block if padding adds less than a quarter of the scores, ...
MAX_PADDING = 1.25
#: ... or if the padded block has at most this many scores.
MAX_SMALL_BLOCK = 1 << 18


@dataclass(frozen=True)
class Segment:
    """Consecutive packed tokens that attend causally to one another and to all keys of a prompt."""

    start: int
    length: int
    prompt_start: int = 0
    prompt_length: int = 0

    @property
    def num_scores(self) -> int:
        """Attention scores of the segment, per layer and head."""
        return self.length * (self.prompt_length + self.length)


@dataclass(frozen=True)
class AttentionBlock:
    """Segments that attend in one call, padded to the longest."""

    queries: Tensor
    """Packed index of each query, [rows * width]."""
    keys: Tensor
    """Index of each key in the table of prompt keys followed by the row's own, [rows * length]."""
    mask: Tensor | None
    """0 or -inf, [rows or 1, 1, width, length]. None means causal attention without a prompt."""
    rows: int
    masks: dict[torch.dtype, Tensor] = field(default_factory=dict, compare=False, repr=False)
    """The mask by precision, because all layers use the same one."""

    def mask_as(self, dtype: torch.dtype) -> Tensor | None:
        """The mask in a precision, as the attention kernel reads it fastest."""
        if self.mask is not None and dtype not in self.masks:
            self.masks[dtype] = sdpa.aligned_mask(self.mask, dtype)
        return self.masks.get(dtype)


@runtime_checkable
class Attention(Protocol):
    """How the tokens of one packed row attend, layer by layer."""

    new_cache: "KVCache | None"
    """Where the row stores its keys and values. If set, nothing else of the row is computed."""
    last_layer: int
    """The layer whose keys and values end such a row. The family sets it."""

    @property
    def num_scores(self) -> int:
        """Attention scores per layer and head."""
        ...

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        """Attention output [1, L, heads, d] of packed queries [1, heads, L, d]."""
        ...


@dataclass
class BlockAttention:
    """Attention in padded blocks. The decoder layers pass it on to `attention_function`."""

    blocks: list[AttentionBlock]
    order: Tensor
    """Index of each packed token in the joined output of the blocks."""
    prompt_cache: "KVCache | None" = None
    """Keys and values of the prompts, which precede the row's own."""
    new_cache: "KVCache | None" = None
    last_layer: int = -1

    @property
    def num_scores(self) -> int:
        """Attention scores per layer and head, padding included."""
        return sum(len(b.queries) * len(b.keys) // b.rows for b in self.blocks)

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        """Attention output [1, L, heads, d] of packed queries [1, heads, L, d]."""
        keys, values = tokens_first(key), tokens_first(value)
        if self.new_cache is not None:
            self.new_cache.store(layer, keys, values, heads=key.shape[1])
        if layer == self.last_layer:
            return query.transpose(1, 2)
        if self.prompt_cache is not None:
            keys, values = self.prompt_cache.concat(layer, keys, values)
        queries = tokens_first(query)
        width = query.shape[-1]
        outputs = []
        for block in self.blocks:
            q, k, v = (
                table.index_select(0, index)
                .view(block.rows, -1, table.shape[1] // width, width)
                .transpose(1, 2)
                for table, index in (
                    (queries, block.queries),
                    (keys, block.keys),
                    (values, block.keys),
                )
            )
            out = sdpa.attend(q, k, v, block.mask_as(sdpa.attention_dtype(q)), scaling)
            outputs.append(out.transpose(1, 2).reshape(-1, queries.shape[1]))
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return joined.index_select(0, self.order).view(1, -1, query.shape[1], width)


@dataclass
class KVCache:
    """Keys and values of packed prompts by layer, tokens first, [S, heads * d]."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    heads: int = 0

    def store(self, layer: int, key: Tensor, value: Tensor, heads: int) -> None:
        """Store a layer. A second call for the layer (gradient checkpointing) changes nothing."""
        self.heads = heads
        self.keys.setdefault(layer, key)
        self.values.setdefault(layer, value)

    def concat(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of a layer, followed by these."""
        return torch.cat([self.keys[layer], key]), torch.cat([self.values[layer], value])

    def as_leaves(self) -> "KVCache":
        """The same values as leaves that collect gradient, so that siblings can be read in turn."""

        def as_leaf(x: Tensor) -> Tensor:
            return x.detach().requires_grad_(x.requires_grad)

        return KVCache(
            {i: as_leaf(x) for i, x in self.keys.items()},
            {i: as_leaf(x) for i, x in self.values.items()},
        )

    def tensors(self) -> list[Tensor]:
        """All tensors, layer by layer."""
        return [table[i] for i in self.keys for table in (self.keys, self.values)]


def attention_function(  # noqa: PLR0913  transformers fixes this signature
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    attend: Callable[..., Tensor] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function for transformers: `attend` if it is given, else transformers' own.

    `attend` is the bound `__call__` of an `Attention`. FSDP would copy the object itself on its way
    through a layer, because it is a dataclass.
    """
    if attend is None:
        with sdpa.kernels_for(query):
            output, weights = sdpa_attention_forward(
                module,
                query,
                key,
                value,
                attention_mask,
                scaling=scaling,
                dropout=dropout,
                **options,
            )
        return output, weights
    assert dropout == 0, "attention dropout would differ between two readings of one response"
    layer = module.layer_idx
    assert isinstance(layer, int)
    return attend(layer, query, key, value, scaling), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, attention_function)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, sdpa_mask)


def no_mask(*arguments: Any, **options: Any) -> None:
    """No mask: the attention of packed rows has its own."""


ALL_ATTENTION_FUNCTIONS.register(PACKED_NAME, attention_function)
ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED_NAME, no_mask)


@contextmanager
def packed_attention(config: Any) -> Iterator[None]:
    """Inside, a decoder of this configuration attends by the `attend` that it is called with."""
    config._attn_implementation = PACKED_NAME
    try:
        yield
    finally:
        config._attn_implementation = ATTENTION_NAME


def tokens_first(x: Tensor) -> Tensor:
    """[1, heads, L, d] to [L, heads * d]."""
    return x[0].transpose(0, 1).flatten(1)


def plan_attention(
    segments: Sequence[Segment], num_prompt_tokens: int, device: torch.device
) -> BlockAttention:
    """Blocks for consecutive segments. Segments of similar length share a block."""
    order = sorted(
        range(len(segments)),
        key=lambda i: (segments[i].length, segments[i].prompt_length),
        reverse=True,
    )
    parts: list[list[Segment]] = []
    for i in order:
        joined = [*parts[-1], segments[i]] if parts else []
        limit = max(MAX_PADDING * sum(s.num_scores for s in joined), MAX_SMALL_BLOCK)
        if not joined or num_padded_scores(joined) > limit:
            parts.append([segments[i]])
        else:
            parts[-1] = joined
    blocks = [make_block(part, num_prompt_tokens) for part in parts]
    output_order = torch.empty(sum(s.length for s in segments), dtype=torch.long)
    at = 0
    for part in parts:
        width = max(s.length for s in part)
        for row, s in enumerate(part):
            output_order[s.start : s.start + s.length] = torch.arange(s.length) + at + row * width
        at += width * len(part)
    on_device = [
        AttentionBlock(
            b.queries.to(device),
            b.keys.to(device),
            None if b.mask is None else b.mask.to(device),
            b.rows,
        )
        for b in blocks
    ]
    return BlockAttention(on_device, output_order.to(device))


def num_padded_scores(part: Sequence[Segment]) -> int:
    """Attention scores of segments that are padded to the longest."""
    width = max(s.length for s in part)
    return len(part) * width * (max(s.prompt_length for s in part) + width)


def make_block(part: Sequence[Segment], num_prompt_tokens: int) -> AttentionBlock:
    """Indices and mask of segments that attend in one call."""
    start, length, prompt_start, prompt_length = (
        torch.tensor([getattr(s, name) for s in part])[:, None]
        for name in ("start", "length", "prompt_start", "prompt_length")
    )
    width, prompt_width = int(length.max()), int(prompt_length.max())
    column, prompt_column = torch.arange(width), torch.arange(prompt_width)
    queries = start + torch.minimum(column, length - 1)
    prompt_keys = prompt_start + torch.minimum(prompt_column, (prompt_length - 1).clamp_min(0))
    keys = torch.cat([prompt_keys, queries + num_prompt_tokens], 1)
    mask = None
    if prompt_width:
        visible = torch.cat(
            [
                (prompt_column < prompt_length)[:, None].expand(-1, width, -1),
                (column <= column[:, None]).expand(len(part), -1, -1),
            ],
            -1,
        )
        if bool((prompt_length == prompt_width).all()):
            visible = visible[:1]
        mask = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)[:, None]
    return AttentionBlock(queries.reshape(-1), keys.reshape(-1), mask, len(part))

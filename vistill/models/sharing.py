"""Prompts read once: sibling responses attend to the keys and values of the prompt they share.

Everything is packed; only the attention of short rows beside long ones is padded. Prompts lie one after the other on
one axis, responses on another. A response reads `[last prompt token, y_0, ..., y_{T-2}]`, T tokens that predict its T
tokens, so the prompt proper ends one token earlier and needs no hidden states of its own, only keys and values. This
file is about rows and attention; embeddings and layers belong to the family.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

#: Our name among transformers' attention functions. Without a plan it is their own `sdpa`.
ATTENTION = "vistill"
#: Rows of unequal size are attended together while that wastes less than a quarter of the cells, or so few cells.
WASTE, FREE_CELLS = 1.25, 1 << 18


@dataclass(frozen=True)
class Segment:
    """Consecutive packed tokens that attend causally to one another and to all keys of one prompt."""

    start: int
    length: int
    prompt_start: int = 0
    prompt_length: int = 0

    @property
    def cells(self) -> int:
        """Attention scores of the segment alone."""
        return self.length * (self.prompt_length + self.length)


@dataclass(frozen=True)
class Block:
    """Segments that are attended in one call."""

    queries: Tensor
    """Packed row of each query, [rows * width]."""
    keys: Tensor
    """Row of each key in the table of prompt keys followed by own keys, [rows * length]."""
    mask: Tensor | None
    """0 or -inf, [rows or 1, 1, width, length]; None where plain causal attention is meant."""
    rows: int


@runtime_checkable
class Attention(Protocol):
    """How the tokens of one packed row attend, layer by layer."""

    kept: "KeysValues | None"
    """Where the row's own keys and values are stored; then nothing else of the row is wanted."""
    last_layer: int
    """The layer whose keys and values end such a row; the family sets it."""

    @property
    def cells(self) -> int:
        """Attention scores of one layer and head."""
        ...

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        """Attention output [1, L, heads, d] of packed queries [1, heads, L, d]."""
        ...


@dataclass
class Attend:
    """How the tokens of one packed row attend; handed through the decoder layers to `attention`."""

    blocks: list[Block]
    order: Tensor
    """Where in the blocks' output each packed token stands."""
    prompt: "KeysValues | None" = None
    """Keys and values the own ones are appended to."""
    kept: "KeysValues | None" = None
    last_layer: int = -1

    @property
    def cells(self) -> int:
        """Attention scores of one layer and head, padding of the blocks included."""
        return sum(len(b.queries) * len(b.keys) // b.rows for b in self.blocks)

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        """Attention output [1, L, heads, d] of packed queries [1, heads, L, d]."""
        own = tokens_first(key), tokens_first(value)
        if self.kept is not None:
            self.kept.put(layer, *own, heads=key.shape[1])
        if layer == self.last_layer:
            return query.transpose(1, 2)
        keys, values = own if self.prompt is None else self.prompt.followed_by(layer, *own)
        queries = tokens_first(query)
        width = query.shape[-1]
        made = []
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
            mask = None if block.mask is None else block.mask.to(q.dtype)
            out = F.scaled_dot_product_attention(
                q,
                k,
                v,
                mask,
                scale=scaling,
                is_causal=mask is None,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            made.append(out.transpose(1, 2).reshape(-1, queries.shape[1]))
        joined = made[0] if len(made) == 1 else torch.cat(made)
        return joined.index_select(0, self.order).view(1, -1, query.shape[1], width)


@dataclass
class KeysValues:
    """Keys and values of packed prompts by layer, tokens first, [S, heads * d]."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    heads: int = 0

    def put(self, layer: int, key: Tensor, value: Tensor, heads: int) -> None:
        """Store a layer's; a second reading of the layer (gradient checkpointing) changes nothing."""
        self.heads = heads
        self.keys.setdefault(layer, key)
        self.values.setdefault(layer, value)

    def followed_by(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The table of a layer: the prompts' rows, then these."""
        return torch.cat([self.keys[layer], key]), torch.cat([self.values[layer], value])

    def cut(self) -> "KeysValues":
        """The same values as leaves that gather gradient, so that siblings can be read one after the other."""
        leaf = lambda x: x.detach().requires_grad_(x.requires_grad)
        return KeysValues(
            {i: leaf(x) for i, x in self.keys.items()}, {i: leaf(x) for i, x in self.values.items()}
        )

    def tensors(self) -> list[Tensor]:
        """Everything, layer by layer."""
        return [table[i] for i in self.keys for table in (self.keys, self.values)]


def attention(  # noqa: PLR0913  transformers fixes this signature
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
    """Transformers' attention function: with a plan ours, without one its own.

    `attend` is the bound call of a plan: FSDP would copy the plan itself, a dataclass, on its way through a layer.
    """
    if attend is None:
        return sdpa_attention_forward(  # pyright: ignore[reportReturnType]
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options
        )
    assert dropout == 0, "dropout in attention would differ between readings of the same response"
    layer = module.layer_idx
    assert isinstance(layer, int)
    return attend(layer, query, key, value, scaling), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)


def tokens_first(x: Tensor) -> Tensor:
    """[1, heads, L, d] to [L, heads * d]."""
    return x[0].transpose(0, 1).flatten(1)


def plan_attention(
    segments: Sequence[Segment], num_prompt_tokens: int, device: torch.device
) -> Attend:
    """Blocks for consecutive segments: rows of similar size together."""
    order = sorted(
        range(len(segments)),
        key=lambda i: (segments[i].length, segments[i].prompt_length),
        reverse=True,
    )
    parts: list[list[Segment]] = []
    for i in order:
        joined = [*parts[-1], segments[i]] if parts else []
        if not joined or padded_cells(joined) > max(
            WASTE * sum(s.cells for s in joined), FREE_CELLS
        ):
            parts.append([segments[i]])
        else:
            parts[-1] = joined
    blocks = [make_block(part, num_prompt_tokens) for part in parts]
    place = torch.empty(sum(s.length for s in segments), dtype=torch.long)
    at = 0
    for part in parts:
        width = max(s.length for s in part)
        for row, s in enumerate(part):
            place[s.start : s.start + s.length] = torch.arange(s.length) + at + row * width
        at += width * len(part)
    moved = [
        Block(
            b.queries.to(device),
            b.keys.to(device),
            None if b.mask is None else b.mask.to(device),
            b.rows,
        )
        for b in blocks
    ]
    return Attend(moved, place.to(device))


def padded_cells(part: Sequence[Segment]) -> int:
    """Attention scores of segments padded to the largest."""
    width = max(s.length for s in part)
    return len(part) * width * (max(s.prompt_length for s in part) + width)


def make_block(part: Sequence[Segment], num_prompt_tokens: int) -> Block:
    """Indices and mask of segments that are attended together."""
    start, length, prompt_start, prompt_length = (
        torch.tensor([getattr(s, name) for s in part])[:, None]
        for name in ("start", "length", "prompt_start", "prompt_length")
    )
    width, before = int(length.max()), int(prompt_length.max())
    column, prompt_column = torch.arange(width), torch.arange(before)
    queries = start + torch.minimum(column, length - 1)
    prompt_keys = prompt_start + torch.minimum(prompt_column, (prompt_length - 1).clamp_min(0))
    keys = torch.cat([prompt_keys, queries + num_prompt_tokens], 1)
    mask = None
    if before:
        seen = torch.cat(
            [
                (prompt_column < prompt_length)[:, None].expand(-1, width, -1),
                (column <= column[:, None]).expand(len(part), -1, -1),
            ],
            -1,
        )
        if bool((prompt_length == before).all()):
            seen = seen[:1]
        mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[:, None]
    return Block(queries.reshape(-1), keys.reshape(-1), mask, len(part))

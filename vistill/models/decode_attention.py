"""Attention of rows that add one token each: siblings share their prompt's keys, each row has a cache of its own."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from vistill.models.sharing import KeysValues

#: Tokens a cache has room for at first; it doubles when they are used up.
CACHE_TOKENS = 64


@dataclass
class DecodeAttention:
    """Attention of rows that add one token each: to their prompt's keys, which siblings share, and to their own."""

    prompt: dict[int, tuple[Tensor, Tensor]]
    """Keys and values by layer, [G, heads, P, d], short prompts padded."""
    mask: Tensor | None
    """0 or -inf, [G, 1, 1, P]."""
    group: Tensor
    """Prompt of each row, ascending, [N]."""
    own: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Keys and values by layer, [N, heads, capacity, d]."""
    time: int = 0
    """Tokens each row has added so far."""
    kept: KeysValues | None = None
    last_layer: int = -1

    def __post_init__(self) -> None:
        self.arrange()

    @property
    def cells(self) -> int:
        """Attention scores of one layer and head."""
        return len(self.group) * (next(iter(self.prompt.values()))[0].shape[2] + self.time + 1)

    def arrange(self) -> None:
        """Places of the rows in a grid of prompts and siblings; the last row of a prompt fills what is empty."""
        self.group = torch.unique_consecutive(self.group, return_inverse=True)[1]
        count = torch.bincount(self.group)
        start = count.cumsum(0) - count
        column = torch.arange(int(count.max()), device=count.device)
        self.grid = (start[:, None] + torch.minimum(column, count[:, None] - 1)).reshape(-1)
        place = torch.arange(len(self.group), device=count.device) - start[self.group]
        self.place = self.group * len(column) + place
        self.full = len(self.grid) == len(self.group)

    def to_grid(self, x: Float[Tensor, "N heads rep D"]) -> Float[Tensor, "G heads M D"]:
        """One entry a row to one matrix a prompt."""
        x = x if self.full else x.index_select(0, self.grid)
        num = int(self.group[-1]) + 1
        return x.unflatten(0, (num, -1)).transpose(1, 2).flatten(2, 3)

    def to_rows(self, x: Float[Tensor, "G heads M D"], rep: int) -> Float[Tensor, "N heads rep D"]:
        """One matrix a prompt to one entry a row."""
        x = x.unflatten(2, (-1, rep)).transpose(1, 2).flatten(0, 1)
        return x if self.full else x.index_select(0, self.place)

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        """Attention output [1, N, heads, d] of one packed query a row, [1, heads, N, d]."""
        width = query.shape[-1]
        q = query[0].transpose(0, 1) * (width**-0.5 if scaling is None else scaling)
        return self.rows(layer, q, key[0].transpose(0, 1), value[0].transpose(0, 1)).view(
            1, len(q), -1, width
        )

    def rows(
        self,
        layer: int,
        query: Float[Tensor, "N Q d"],
        key: Float[Tensor, "N heads d"],
        value: Float[Tensor, "N heads d"],
    ) -> Float[Tensor, "N Qd"]:
        """Attention output of one scaled query a row; its key and value are appended first."""
        keys, values = self.write(layer, key, value)
        q = query.unflatten(1, (key.shape[1], -1))
        rep = q.shape[2]
        prompt_keys, prompt_values = self.prompt[layer]
        before = self.to_grid(q) @ prompt_keys.transpose(-1, -2)
        before = before if self.mask is None else before + self.mask
        scores = torch.cat([self.to_rows(before, rep), q @ keys.transpose(-1, -2)], -1)
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(values.dtype)
        length = prompt_keys.shape[2]
        out = (
            self.to_rows(self.to_grid(weights[..., :length]) @ prompt_values, rep)
            + weights[..., length:] @ values
        )
        return out.flatten(1)

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append one token a row; all own keys and values so far."""
        pair = self.own.get(layer)
        if pair is None or pair[0].shape[2] == self.time:
            pair = (
                (grow(None, key), grow(None, value))
                if pair is None
                else (grow(pair[0], key), grow(pair[1], value))
            )
            self.own[layer] = pair
        pair[0][:, :, self.time] = key
        pair[1][:, :, self.time] = value
        return pair[0][:, :, : self.time + 1], pair[1][:, :, : self.time + 1]

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows, and the prompts that nobody needs any more."""
        self.own = {
            i: (k.index_select(0, rows), v.index_select(0, rows)) for i, (k, v) in self.own.items()
        }
        left = self.group[rows]
        used = torch.unique_consecutive(left)
        if len(used) < len(next(iter(self.prompt.values()))[0]):
            self.prompt = {
                i: (k.index_select(0, used), v.index_select(0, used))
                for i, (k, v) in self.prompt.items()
            }
            self.mask = None if self.mask is None else self.mask.index_select(0, used)
        self.group = left
        self.arrange()


def grow(old: Tensor | None, like: Tensor) -> Tensor:
    """A cache with room for twice as many tokens, holding what the old one holds."""
    capacity = CACHE_TOKENS if old is None else 2 * old.shape[2]
    fresh = like.new_empty(len(like), like.shape[1], capacity, like.shape[2])
    if old is not None:
        fresh[:, :, : old.shape[2]] = old
    return fresh

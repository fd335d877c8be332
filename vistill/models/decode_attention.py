"""Attention of rows that each add one token per call.

Siblings share the keys and values of their prompt. Each row has a cache for its response.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from vistill.models.sharing import KVCache

#: Tokens that a new row cache can hold. It doubles when it is full.
CACHE_TOKENS = 64


@dataclass
class DecodeAttention:
    """Attention of N rows to the keys of their prompt and of their response.

    Each call adds one token per row. It is an `Attention`, so decoder layers can call it. `rows`
    does the work.
    """

    prompt_cache: dict[int, tuple[Tensor, Tensor]]
    """Keys and values of the prompts by layer, [G, heads, P, d], padded to the longest prompt."""
    mask: Tensor | None
    """0 or -inf, [G, 1, 1, P]. None if no prompt is padded."""
    group: list[int]
    """Prompt of each row, ascending. On the host, so that no arrangement waits for the device."""
    row_cache: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Keys and values of the responses by layer, [N, heads, capacity, d]."""
    num_added: int = 0
    """Tokens that each row has added so far."""
    last_position: int = -1
    """The largest position of the tokens that are being added, known without asking the device."""
    new_cache: KVCache | None = None
    last_layer: int = -1

    def __post_init__(self) -> None:
        self.arrange()

    @property
    def num_scores(self) -> int:
        """Attention scores per layer and head."""
        prompt_keys = next(iter(self.prompt_cache.values()))[0]
        return len(self.group) * (prompt_keys.shape[2] + self.num_added + 1)

    def arrange(self) -> None:
        """Arrange the rows in a grid of prompts and siblings.

        The last row of a prompt fills the cells of siblings that it does not have.
        """
        prompts = sorted(set(self.group))
        columns = max(Counter(self.group).values())
        self.num_prompts = len(prompts)
        self.group = [prompts.index(prompt) for prompt in self.group]
        rows: list[list[int]] = [[] for _ in prompts]
        cell_of_row = []
        for row, prompt in enumerate(self.group):
            cell_of_row.append(prompt * columns + len(rows[prompt]))
            rows[prompt].append(row)
        cells = [row for own in rows for row in own + own[-1:] * (columns - len(own))]
        self.is_full = len(cells) == len(self.group)
        device = next(iter(self.prompt_cache.values()))[0].device
        self.row_of_cell = torch.tensor(cells, device=device)
        self.cell_of_row = torch.tensor(cell_of_row, device=device)

    def to_grid(self, x: Float[Tensor, "N heads rep D"]) -> Float[Tensor, "G heads M D"]:
        """From one entry per row to one matrix per prompt."""
        x = x if self.is_full else x.index_select(0, self.row_of_cell)
        return x.unflatten(0, (self.num_prompts, -1)).transpose(1, 2).flatten(2, 3)

    def to_rows(self, x: Float[Tensor, "G heads M D"], rep: int) -> Float[Tensor, "N heads rep D"]:
        """From one matrix per prompt to one entry per row."""
        x = x.unflatten(2, (-1, rep)).transpose(1, 2).flatten(0, 1)
        return x if self.is_full else x.index_select(0, self.cell_of_row)

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        """Attention output [1, N, heads, d] of one packed query per row, [1, heads, N, d]."""
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
        """Attention output of one scaled query per row. Its key and value are appended first."""
        keys, values = self.append(layer, key, value)
        q = query.unflatten(1, (key.shape[1], -1))
        rep = q.shape[2]
        prompt_keys, prompt_values = self.prompt_cache[layer]
        prompt_scores = self.to_grid(q) @ prompt_keys.transpose(-1, -2)
        prompt_scores = prompt_scores if self.mask is None else prompt_scores + self.mask
        scores = torch.cat([self.to_rows(prompt_scores, rep), q @ keys.transpose(-1, -2)], -1)
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(values.dtype)
        length = prompt_keys.shape[2]
        out = (
            self.to_rows(self.to_grid(weights[..., :length]) @ prompt_values, rep)
            + weights[..., length:] @ values
        )
        return out.flatten(1)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append one token per row. Return all keys and values of the responses so far."""
        pair = self.row_cache.get(layer)
        if pair is None:
            pair = self.row_cache[layer] = grow(None, key), grow(None, value)
        elif pair[0].shape[2] == self.num_added:
            pair = self.row_cache[layer] = grow(pair[0], key), grow(pair[1], value)
        pair[0][:, :, self.num_added] = key
        pair[1][:, :, self.num_added] = value
        return pair[0][:, :, : self.num_added + 1], pair[1][:, :, : self.num_added + 1]

    def keep(self, rows: list[int]) -> None:
        """Drop all other rows, and the prompts without rows."""
        device = next(iter(self.prompt_cache.values()))[0].device
        index = torch.tensor(rows, device=device)
        self.row_cache = {
            i: (k.index_select(0, index), v.index_select(0, index))
            for i, (k, v) in self.row_cache.items()
        }
        group = [self.group[row] for row in rows]
        prompts = sorted(set(group))
        if len(prompts) < self.num_prompts:
            used = torch.tensor(prompts, device=device)
            self.prompt_cache = {
                i: (k.index_select(0, used), v.index_select(0, used))
                for i, (k, v) in self.prompt_cache.items()
            }
            self.mask = None if self.mask is None else self.mask.index_select(0, used)
        self.group = group
        self.arrange()


def grow(cache: Tensor | None, like: Tensor) -> Tensor:
    """A cache of twice the capacity, with the same content."""
    capacity = CACHE_TOKENS if cache is None else 2 * cache.shape[2]
    larger = like.new_empty(len(like), like.shape[1], capacity, like.shape[2])
    if cache is not None:
        larger[:, :, : cache.shape[2]] = cache
    return larger

"""Attention of rows that each add one token per call.

Siblings share the keys and values of their prompt. Each row has a cache for its response. The
products of prompts run on a grid: one matrix per prompt and head, with the queries of its rows.
Rows and grid are both tables with one entry per row (or cell) and head, so one gather leads from
one to the other.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from vistill.models.sharing import KVCache

#: A row cache grows by so many tokens. Growing copies it once; attention reads it for every token.
CACHE_TOKENS = 64


@dataclass
class DecodeAttention:
    """Attention of N rows to the keys of their prompt and of their response.

    Each call adds one token per row. It is an `Attention`, so decoder layers can call it. `rows`
    does the work.
    """

    prompt_cache: dict[int, tuple[Tensor, Tensor]]
    """Keys [G, heads, d, P] and values [G, heads, P, d] of the prompts by layer, padded to the
    longest prompt. A product with few queries reads keys in this order twice as fast on a CPU."""
    mask: Tensor | None
    """0 or -inf, [G, 1, P]. None if no prompt is padded."""
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
    def prompt_values(self) -> Tensor:
        """The values of one layer's prompts, for their shape and device."""
        return next(iter(self.prompt_cache.values()))[1]

    @property
    def num_scores(self) -> int:
        """Attention scores per layer and head."""
        return len(self.group) * (self.prompt_values.shape[2] + self.num_added + 1)

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
            cell_of_row.append((prompt, len(rows[prompt])))
            rows[prompt].append(row)
        cells = [own + own[-1:] * (columns - len(own)) for own in rows]
        heads, device = self.prompt_values.shape[1], self.prompt_values.device
        head = torch.arange(heads)
        of_cells, of_rows = torch.tensor(cells), torch.tensor(cell_of_row)
        # entries of rows are [row, head], entries of the grid [prompt, head, sibling]
        to_grid = of_cells[:, None, :] * heads + head[:, None]
        to_rows = (of_rows[:, :1] * heads + head) * columns + of_rows[:, 1:]
        self.row_of_cell = to_grid.flatten().to(device)
        self.cell_of_row = to_rows.flatten().to(device)

    def to_grid(self, x: Float[Tensor, "B rep D"]) -> Float[Tensor, "C M D"]:
        """From one matrix per row and head to one per prompt and head, M = siblings x rep."""
        grid = x.index_select(0, self.row_of_cell)
        return grid.view(-1, len(grid) // self.num_matrices * x.shape[1], x.shape[2])

    def to_rows(self, x: Float[Tensor, "C M D"], rep: int) -> Float[Tensor, "B rep D"]:
        """From one matrix per prompt and head to one per row and head."""
        return x.view(-1, rep, x.shape[2]).index_select(0, self.cell_of_row)

    @property
    def num_matrices(self) -> int:
        """Matrices of the grid: one per prompt and head."""
        return self.num_prompts * self.prompt_values.shape[1]

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
        prompt_keys, prompt_values = (x.flatten(0, 1) for x in self.prompt_cache[layer])
        length = prompt_values.shape[1]
        q = query.reshape(len(keys), -1, query.shape[2])
        rep = q.shape[1]
        prompt_scores = torch.bmm(self.to_grid(q), prompt_keys)
        if self.mask is not None:
            prompt_scores.view(self.num_prompts, -1, length).add_(self.mask)
        own_scores = self.own_scores(q, keys)
        scores = torch.cat([self.to_rows(prompt_scores, rep), own_scores], -1)
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(values.dtype)
        prompt_part, own_part = weights.tensor_split([length], -1)
        out = self.to_rows(torch.bmm(self.to_grid(prompt_part), prompt_values), rep)
        return torch.baddbmm(out, own_part, values).view(len(query), -1)

    def own_scores(
        self, query: Float[Tensor, "B rep d"], keys: Float[Tensor, "B T d"]
    ) -> Float[Tensor, "B rep T"]:
        """Scores of the queries and the keys of their own response."""
        return torch.bmm(query, keys.transpose(1, 2))

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append one token per row. Return keys and values [B, T, d] of the responses so far."""
        pair = self.row_cache.get(layer)
        if pair is None:
            pair = self.row_cache[layer] = grow(None, key), grow(None, value)
        elif pair[0].shape[2] == self.num_added:
            pair = self.row_cache[layer] = grow(pair[0], key), grow(pair[1], value)
        end = self.num_added + 1
        for cache, new in zip(pair, (key, value), strict=True):
            cache.select(2, self.num_added).copy_(new)
        keys, values = (cache.flatten(0, 1).narrow(1, 0, end) for cache in pair)
        return keys, values

    def keep(self, rows: list[int]) -> None:
        """Drop all other rows, and the prompts without rows."""
        device = self.prompt_values.device
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
    """A cache that holds one more block of tokens, with the same content."""
    used = 0 if cache is None else cache.shape[2]
    larger = like.new_empty(len(like), like.shape[1], used + CACHE_TOKENS, like.shape[2])
    if cache is not None:
        larger[:, :, :used] = cache
    return larger

"""Keyed noise for rows that are at different positions, as vLLM computes them. Needs no vLLM.

vLLM may compute a row again, or together with others each time. So the noise of a token depends on
the number of tokens before it, never on what was drawn last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vistill.rollouts.counter_noise import CounterSampler, numbers_at, to_signed
from vistill.rollouts.keyed_noise import GeneratorSampler, draw_gumbel


@dataclass
class Row:
    """One response of a call."""

    seed: int
    forced: Sequence[int] | None
    """Ids to take in place of sampled ones, to measure their log-probabilities."""
    output: Sequence[int] = ()
    """What vLLM has written so far: its own list, which grows."""
    log_probs: list[float] | None = None
    generator: torch.Generator | None = None
    drawn: Tensor | None = None
    block: int = -1

    def gumbel(self, position: int, block: int, vocabulary: int) -> Tensor:
        """The noise of a position. A position before the present block starts the stream again."""
        number, offset = divmod(position, block)
        if self.generator is None or number < self.block:
            self.generator, self.block = torch.Generator().manual_seed(self.seed), -1
        while self.block < number:
            self.drawn = draw_gumbel([self.generator], block, vocabulary)
            self.block += 1
        assert self.drawn is not None
        return self.drawn[offset, 0]


class GeneratorRows(GeneratorSampler):
    """`GeneratorSampler` for rows that are at different positions."""

    rows: Sequence[Row] = ()

    def gumbel(self, logits: Tensor) -> Tensor:
        """The noise of every row at its own position."""
        noise = [row.gumbel(len(row.output), self.block, logits.shape[-1]) for row in self.rows]
        return torch.stack(noise).to(logits.device, non_blocking=True)


class CounterRows(CounterSampler):
    """`CounterSampler` for rows that are at different positions."""

    rows: Sequence[Row] = ()

    def position_seeds(self, device: torch.device) -> Tensor:
        """The seeds of each row's own position."""
        seeds = torch.tensor([to_signed(row.seed) for row in self.rows])
        index = torch.tensor([[len(row.output)] for row in self.rows])
        return numbers_at(seeds.to(device), index.to(device))[:, 0]


class ForcedRows(GeneratorSampler):
    """Takes given ids."""

    rows: Sequence[Row] = ()

    def sample(self, logits: Tensor) -> Tensor:
        """The given id of each row at its position."""
        ids = [(row.forced or [0])[len(row.output)] for row in self.rows]
        return torch.tensor(ids, device=logits.device)


RowSampler: TypeAlias = "GeneratorRows | CounterRows | ForcedRows"
SAMPLERS: dict[str, type[GeneratorRows | CounterRows | ForcedRows]] = {
    "generator": GeneratorRows,
    "counter": CounterRows,
    "forced": ForcedRows,
}


def make_row_sampler(sampling: Mapping[str, Any], rows: Sequence[Row]) -> RowSampler:
    """The sampler of a call, for rows that all sample, or all take given ids."""
    kind = "forced" if rows and rows[0].forced is not None else sampling["noise"]
    return SAMPLERS[kind](
        [],
        sampling["temperature"],
        sampling["top_p"],
        sampling["banned"],
        sampling["vocabulary"],
        log_probs=sampling["log_probs"],
    )

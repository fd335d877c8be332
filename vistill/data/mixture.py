"""The order of several data sets with weights: a pure function of (seed, step).

Each position of the endless sequence of prompts belongs to one data set. How many of the first `p`
positions belong to each set is a closed formula, so step 1,000,000 starts as fast as step 1. Within
its positions a set goes through its own epochs, each a permutation of its rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np

from vistill.data.keys import keyed_generator
from vistill.data.set_settings import DataSet
from vistill.errors import ConfigError
from vistill.types import Prompt

#: The label of a prompt with the name of its data set.
LABEL = "data_set"


def set_of(prompt: Prompt) -> str:
    """The name of the data set of a prompt; empty without named data sets."""
    return prompt.labels.get(LABEL, "")


@dataclass(frozen=True)
class Mixture:
    """The data sets of a run, in the order of their names."""

    names: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    """Indices of the training rows of each set."""
    weights: tuple[Fraction, ...]

    @cached_property
    def total(self) -> Fraction:
        """The sum of the weights."""
        return sum(self.weights, Fraction())

    @property
    def num_rows(self) -> int:
        """Rows of all sets."""
        return sum(map(len, self.rows))

    def shares(self) -> dict[str, float]:
        """Share of the prompts that each set has."""
        return {
            name: float(weight / self.total)
            for name, weight in zip(self.names, self.weights, strict=True)
        }

    def counts(self, positions: int) -> list[int]:
        """How many of the first positions belong to each set.

        The first set gets `floor(positions * share)`; the others share what is left in the same
        way. Every count grows by 0 or 1 with a position, and all counts add up to the positions.
        """
        counts, left, total = [], positions, self.total
        for weight in self.weights[:-1]:
            count = left * weight // total
            counts.append(int(count))
            left, total = left - int(count), total - weight
        return [*counts, left]

    def most_per_step(self, per_step: int) -> list[int]:
        """An upper bound of the prompts of each set in one step."""
        most, left, total = [], per_step, self.total
        for weight in self.weights:
            share = weight / total
            most.append(min(left, -(-left * share.numerator // share.denominator)))
            rest = Fraction(left) * (1 - share)
            left, total = -(-rest.numerator // rest.denominator), total - weight
        return most

    def rows_of_step(
        self,
        step: int,
        per_step: int,
        seed: int,
        is_replaced: Callable[[int], bool] = lambda row: False,
    ) -> tuple[list[int], list[int]]:
        """Row indices of a step (from 0), and for each the epoch of its set.

        The slot of a replaced row takes the next row of its set that is neither replaced nor in
        this step. So does the second slot of a row that ends one epoch and begins the next.
        """
        start, end = self.counts(step * per_step), self.counts((step + 1) * per_step)
        following = [self.sequence(s, seed, end[s]) for s in range(len(self.names))]
        rows, epochs, sets = [], [], list(self.sets_of_positions(step * per_step, per_step))
        for s in sets:
            rows.append(self.row_at(s, seed, start[s]))
            epochs.append(start[s] // len(self.rows[s]))
            start[s] += 1
        for slot, row in enumerate(rows):
            if is_replaced(row) or row in rows[:slot]:
                while is_replaced(row) or row in rows:
                    row = next(following[sets[slot]])
                rows[slot] = row
        return rows, epochs

    def sets_of_positions(self, first: int, number: int) -> Iterator[int]:
        """The set of each position: the one whose count grows there."""
        before = self.counts(first)
        for position in range(first, first + number):
            after = self.counts(position + 1)
            yield next(s for s, count in enumerate(after) if count > before[s])
            before = after

    def sequence(self, s: int, seed: int, position: int) -> Iterator[int]:
        """The rows of a set from a position of its own sequence on."""
        while True:
            yield self.row_at(s, seed, position)
            position += 1

    def row_at(self, s: int, seed: int, position: int) -> int:
        """The row at a position of the sequence of a set."""
        epoch, index = divmod(position, len(self.rows[s]))
        return self.rows[s][int(order_of_set(seed, self.names[s], epoch, len(self.rows[s]))[index])]


@lru_cache(maxsize=8)
def order_of_set(seed: int, name: str, epoch: int, num_rows: int) -> np.ndarray:
    """The permutation of the rows of a set in one epoch; the last few are kept."""
    return keyed_generator("order", seed, name, epoch).permutation(num_rows)


def mixture_of(prompts: Sequence[Prompt], sets: Mapping[str, DataSet]) -> Mixture | None:
    """The mixture of training rows; None for a recipe without `data.sets`."""
    if not sets:
        return None
    names = tuple(sorted(sets))
    rows: dict[str, list[int]] = {name: [] for name in names}
    for index, prompt in enumerate(prompts):
        rows[set_of(prompt)].append(index)
    weights = [
        Fraction(len(rows[name]))
        if sets[name].weight == "rows"
        else Fraction(repr(float(sets[name].weight)))
        for name in names
    ]
    return Mixture(names, tuple(tuple(rows[name]) for name in names), tuple(weights))


def check_mixture(
    mixture: Mixture, per_step: int, is_missing: Callable[[int], bool] = lambda row: False
) -> None:
    """C101 if a prompt of some data set would occur twice in one step."""
    usable = [sum(not is_missing(row) for row in rows) for rows in mixture.rows]
    for name, most, count in zip(
        mixture.names, mixture.most_per_step(per_step), usable, strict=True
    ):
        if most <= count:
            continue
        smaller = next((n for n in range(per_step - 1, 0, -1) if fits(mixture, n, usable)), 0)
        fixes = [f"train.prompts_per_step={smaller}"] if smaller else []
        raise ConfigError(
            "C101",
            f"up to {most} prompts per step come from the data set {name}, of {count:,} rows",
            why="a prompt would occur twice in a step, with the same noise and the same responses",
            fix="   or, without this set,   ".join([*fixes, f"data.sets.{name}=null"]),
            note=f"a smaller data.sets.{name}.weight takes fewer of its rows",
        )


def fits(mixture: Mixture, per_step: int, usable: Sequence[int]) -> bool:
    """Whether every set has enough rows for a step of this size."""
    pairs = zip(mixture.most_per_step(per_step), usable, strict=True)
    return all(most <= count for most, count in pairs)


def describe_mixture(mixture: Mixture, steps: int, per_step: int) -> str:
    """Rows, share of the prompts and epochs of each data set, in words."""
    shares, counts = mixture.shares(), mixture.counts(steps * per_step)
    parts = [
        f"{name} {len(rows):,} rows, {shares[name]:.1%} of the prompts,"
        f" {count / max(1, len(rows)):.2g} epochs"
        for name, rows, count in zip(mixture.names, mixture.rows, counts, strict=True)
    ]
    return "; ".join(parts)

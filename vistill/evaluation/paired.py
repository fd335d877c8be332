"""Two evaluations on the same questions: joined by question, never by place, with the statistics of pairs.

Two models find the same questions hard, so the difference on common questions is known much better than two separate
accuracies suggest; and a difference between accuracies on different questions says nothing at all. Needs no torch.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Z = 1.959964
#: From here on a difference counts as one.
LEVEL = 0.05
#: 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; beyond them the normal one is 4 % smaller at most.
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One question and whether each answer to it was right."""

    text: str
    gold: str
    asked: str
    """Digest of words and pictures; empty in the files of older versions."""
    right: tuple[bool, ...]

    @property
    def share(self) -> float:
        """Share of right answers."""
        return sum(self.right) / len(self.right)

    def same_as(self, other: "Question") -> bool:
        """Whether the same is asked and the same answer is wanted."""
        digests = not self.asked or not other.asked or self.asked == other.asked
        return digests and (self.text, self.gold) == (other.text, other.gold)


def questions_of(
    records: Iterable[Mapping[str, Any]], view: str = "full", mode: str = "sampled"
) -> dict[str, Question]:
    """The questions of a per-sample file (`samples/step-000300.jsonl`) by prompt id.

    Rows without a gold answer are left out.
    """
    answers: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record.get("view") == view and record.get("mode") == mode and record.get("gold"):
            answers.setdefault(str(record["prompt"]), []).append(record)
    return {
        name: Question(
            str(rows[0].get("question")),
            str(rows[0]["gold"]),
            str(rows[0].get("asked", "")),
            tuple(bool(row["correct"]) for row in rows),
        )
        for name, rows in answers.items()
    }


@dataclass(frozen=True)
class Paired:
    """`a` against `b` on the questions that both answered."""

    questions: int
    """Asked of both, with the same words, pictures and gold answer."""
    only_a: int
    only_b: int
    other: int
    """Under one id in both, but not the same question: left out."""
    accuracy_a: float = math.nan
    """On the common questions."""
    accuracy_b: float = math.nan
    difference: float = math.nan
    """`accuracy_a - accuracy_b`: the mean of the differences question by question."""
    error: float = math.nan
    """Standard error of that mean."""
    low: float = math.nan
    """95 % interval of the difference."""
    high: float = math.nan
    p: float = math.nan
    """Exact two-sided sign-flip test that there is no difference; McNemar's exact test with one sample a question."""
    better: int = 0
    """Questions that `a` answers more often than `b`."""
    worse: int = 0

    @property
    def comparable(self) -> bool:
        """Whether there are common questions, and no more that merely share an id."""
        return self.questions > 0 and self.questions > self.other

    @property
    def beyond_chance(self) -> bool:
        """Whether the difference is significant at 5 %."""
        return self.comparable and self.p < LEVEL

    @property
    def same_set(self) -> bool:
        """Whether both were asked exactly the same questions."""
        return self.comparable and not (self.only_a or self.only_b or self.other)

    def denominator(self, a: str, b: str) -> str:
        """On what the comparison stands, in words."""
        if not self.comparable:
            return f"not compared: {self.nothing_common(a, b)}"
        if self.same_set:
            return f"on the same {self.questions:,} questions"
        left = [
            f"{count:,} only in {name}"
            for count, name in ((self.only_a, a), (self.only_b, b))
            if count
        ]
        left += [f"{self.other:,} differ under one id"] if self.other else []
        return f"on the {self.questions:,} questions both answered; {', '.join(left)}"

    def nothing_common(self, a: str, b: str) -> str:
        """Why there is no comparison."""
        if self.other:
            return f"{a} and {b} were asked other questions under the same ids ({self.other:,}; equal: {self.questions:,})"
        if not self.only_a or not self.only_b:
            return f"no answers are stored of {b if self.only_a else a if self.only_b else f'{a} and {b}'}"
        return f"{a} and {b} have no question in common ({self.only_a:,} and {self.only_b:,} questions)"


def compare(a: Mapping[str, Question], b: Mapping[str, Question]) -> Paired:
    """Join two evaluations by prompt id and compare them on the questions that are equal."""
    both = [name for name in a if name in b]
    common = [name for name in both if a[name].same_as(b[name])]
    counts = (len(common), len(a) - len(both), len(b) - len(both), len(both) - len(common))
    if not common:
        return Paired(*counts)
    shares_a, shares_b = [a[name].share for name in common], [b[name].share for name in common]
    differences = [x - y for x, y in zip(shares_a, shares_b, strict=True)]
    n = len(common)
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1) if n > 1 else math.nan
    low, high = difference_interval(differences)
    units = math.lcm(*{len(q[name].right) for q in (a, b) for name in common})
    return Paired(
        *counts,
        accuracy_a=sum(shares_a) / n,
        accuracy_b=sum(shares_b) / n,
        difference=mean,
        error=math.sqrt(variance / n) if n > 1 else math.nan,
        low=low,
        high=high,
        p=sign_flip_p([round(d * units) for d in differences]),
        better=sum(d > 0 for d in differences),
        worse=sum(d < 0 for d in differences),
    )


def difference_interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean paired difference: Wald after two more pairs, half a win and half a loss among them.

    Source: Agresti and Min (2005) for one sample a question. It never has width 0, whatever the answers.
    """
    n = len(differences) + 2
    mean = sum(differences) / n
    square = (sum(d * d for d in differences) + 1.0) / n
    half = Z * math.sqrt(max(0.0, square - mean * mean) / n)
    return max(-1.0, mean - half), min(1.0, mean + half)


def sign_flip_p(differences: Sequence[int]) -> float:
    """Exact two-sided p of a sum of integers if each might as well have had the other sign.

    The whole distribution of the sum is made by convolution. For differences of +1, 0 and -1 it is the binomial sign
    test of McNemar.
    """
    sizes = [abs(d) for d in differences if d]
    if not sizes:
        return 1.0
    unit = math.gcd(*sizes)
    observed, total = abs(sum(differences)) // unit, sum(sizes) // unit
    chance = np.zeros(total + 1)  # of k: the sum over all sizes that keep their sign is k
    chance[0], reached = 1.0, 0
    for size in (s // unit for s in sizes):
        kept = chance[: reached + 1].copy()
        reached += size
        chance[: reached + 1] *= 0.5
        chance[size : reached + 1] += 0.5 * kept
    at = np.abs(2 * np.arange(total + 1) - total)
    return float(min(1.0, chance[at >= observed].sum()))


@dataclass(frozen=True)
class OverSeeds:
    """A difference that was measured once for each seed."""

    differences: tuple[float, ...]
    mean: float
    deviation: float
    """Standard deviation over seeds; NaN for one."""
    low: float
    """95 % interval of the mean by Student's t; NaN for one seed."""
    high: float
    pairs: tuple[Paired, ...] = field(default=(), repr=False)


def over_seeds(pairs: Sequence[Paired]) -> OverSeeds:
    """The mean difference over seeds with the spread between seeds, from one comparison a seed.

    What differs between seeds (data order, noise, weights) is in the spread; the questions are the same, so
    the result is about the method on these questions.
    """
    assert pairs, "there is no seed"
    assert all(pair.comparable for pair in pairs), "every seed needs a comparison"
    values = tuple(pair.difference for pair in pairs)
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return OverSeeds(values, mean, math.nan, math.nan, math.nan, tuple(pairs))
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    quantile = T_QUANTILES[n - 2] if n - 1 <= len(T_QUANTILES) else Z
    half = quantile * deviation / math.sqrt(n)
    return OverSeeds(values, mean, deviation, mean - half, mean + half, tuple(pairs))


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm): the chance that any of them is below 5 % by luck is 5 %."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    corrected, largest = [1.0] * len(values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = largest
    return corrected

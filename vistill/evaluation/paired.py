"""Paired statistics of two evaluations, joined by question and never by position.

Two models find the same questions hard, so the paired difference on common questions is much more
precise than the two separate accuracies suggest. Accuracies on different questions are not
comparable. Needs no torch.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Z = 1.959964
#: Significance level of a difference.
LEVEL = 0.05
#: 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom. Beyond 30 the normal quantile
#: is at most 4 % smaller.
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One question and whether each answer to it was correct."""

    text: str
    gold: str
    digest: str
    """Digest of text and images; empty in the files of older versions."""
    correct: tuple[bool, ...]

    @property
    def share(self) -> float:
        """Share of correct answers."""
        return sum(self.correct) / len(self.correct)

    def same_as(self, other: "Question") -> bool:
        """Whether text, images and gold answer are equal."""
        same_digest = not self.digest or not other.digest or self.digest == other.digest
        return same_digest and (self.text, self.gold) == (other.text, other.gold)


def questions_by_id(
    records: Iterable[Mapping[str, Any]], view: str = "full", mode: str = "sampled"
) -> dict[str, Question]:
    """The questions of a per-sample file (`samples/step-000300.jsonl`) by prompt id.

    Skips rows without a gold answer.
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
class PairedComparison:
    """Comparison of `a` with `b` on the questions that both answered."""

    questions: int
    """Common questions: equal text, images and gold answer."""
    only_a: int
    only_b: int
    mismatched: int
    """Ids that both have with different questions; not compared."""
    accuracy_a: float = math.nan
    """Accuracy of `a` on the common questions."""
    accuracy_b: float = math.nan
    difference: float = math.nan
    """`accuracy_a - accuracy_b`: the mean of the differences question by question."""
    standard_error: float = math.nan
    """Standard error of the difference."""
    low: float = math.nan
    """95 % interval of the difference."""
    high: float = math.nan
    p: float = math.nan
    """p-value of an exact two-sided sign-flip test; with one sample per question it is McNemar's
    exact test."""
    better: int = 0
    """Questions that `a` answers more often than `b`."""
    worse: int = 0

    @property
    def is_comparable(self) -> bool:
        """Whether there are common questions, and more of them than mismatched ids."""
        return self.questions > 0 and self.questions > self.mismatched

    @property
    def is_significant(self) -> bool:
        """Whether the difference is significant at 5 %."""
        return self.is_comparable and self.p < LEVEL

    @property
    def same_questions(self) -> bool:
        """Whether both answered exactly the same questions."""
        return self.is_comparable and not (self.only_a or self.only_b or self.mismatched)

    def denominator(self, a: str, b: str) -> str:
        """The questions that the comparison uses, in words."""
        if not self.is_comparable:
            return f"not compared: {self.why_not_comparable(a, b)}"
        if self.same_questions:
            return f"on the same {self.questions:,} questions"
        left_out = [
            f"{count:,} only in {name}"
            for count, name in ((self.only_a, a), (self.only_b, b))
            if count
        ]
        left_out += (
            [f"{self.mismatched:,} with another question under the same id"]
            if self.mismatched
            else []
        )
        return f"on the {self.questions:,} questions both answered; {', '.join(left_out)}"

    def why_not_comparable(self, a: str, b: str) -> str:
        """Why there is no comparison."""
        if self.mismatched:
            counts = f"{self.mismatched:,} differ, {self.questions:,} are equal"
            return f"{a} and {b} have different questions under the same ids ({counts})"
        if not self.only_a or not self.only_b:
            missing = b if self.only_a else a if self.only_b else f"{a} and {b}"
            return f"no answers are stored for {missing}"
        counts = f"{self.only_a:,} and {self.only_b:,} questions"
        return f"{a} and {b} have no question in common ({counts})"


def compare(a: Mapping[str, Question], b: Mapping[str, Question]) -> PairedComparison:
    """Join two evaluations by prompt id and compare them on the equal questions."""
    both = [name for name in a if name in b]
    common = [name for name in both if a[name].same_as(b[name])]
    counts = (len(common), len(a) - len(both), len(b) - len(both), len(both) - len(common))
    if not common:
        return PairedComparison(*counts)
    shares_a, shares_b = [a[name].share for name in common], [b[name].share for name in common]
    differences = [x - y for x, y in zip(shares_a, shares_b, strict=True)]
    n = len(common)
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1) if n > 1 else math.nan
    low, high = difference_interval(differences)
    units = math.lcm(*{len(q[name].correct) for q in (a, b) for name in common})
    return PairedComparison(
        *counts,
        accuracy_a=sum(shares_a) / n,
        accuracy_b=sum(shares_b) / n,
        difference=mean,
        standard_error=math.sqrt(variance / n) if n > 1 else math.nan,
        low=low,
        high=high,
        p=sign_flip_p([round(d * units) for d in differences]),
        better=sum(d > 0 for d in differences),
        worse=sum(d < 0 for d in differences),
    )


def difference_interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean paired difference: Wald with one win and one loss added.

    The interval never has width 0. Source: Agresti and Min (2005), for one sample per question.
    """
    n = len(differences) + 2
    mean = sum(differences) / n
    square = (sum(d * d for d in differences) + 1.0) / n
    half = Z * math.sqrt(max(0.0, square - mean * mean) / n)
    return max(-1.0, mean - half), min(1.0, mean + half)


def sign_flip_p(differences: Sequence[int]) -> float:
    """Exact two-sided p-value of a sum of integers whose signs are equally likely + and -.

    The distribution of the sum is computed by convolution. For differences of +1, 0 and -1 this is
    the binomial sign test of McNemar.
    """
    sizes = [abs(d) for d in differences if d]
    if not sizes:
        return 1.0
    unit = math.gcd(*sizes)
    observed, total = abs(sum(differences)) // unit, sum(sizes) // unit
    # chance[k]: probability that the sizes with a + sign sum to k
    chance = np.zeros(total + 1)
    chance[0], reached = 1.0, 0
    for size in (s // unit for s in sizes):
        previous = chance[: reached + 1].copy()
        reached += size
        chance[: reached + 1] *= 0.5
        chance[size : reached + 1] += 0.5 * previous
    at = np.abs(2 * np.arange(total + 1) - total)
    return float(min(1.0, chance[at >= observed].sum()))


@dataclass(frozen=True)
class SeedStatistics:
    """A difference measured once per seed, with its spread over seeds."""

    differences: tuple[float, ...]
    mean: float
    deviation: float
    """Standard deviation over seeds; NaN for one."""
    low: float
    """95 % interval of the mean by Student's t; NaN for one seed."""
    high: float
    pairs: tuple[PairedComparison, ...] = field(default=(), repr=False)


def compare_over_seeds(pairs: Sequence[PairedComparison]) -> SeedStatistics:
    """Mean and spread of the difference over seeds, from one comparison per seed.

    The spread includes everything that differs between seeds (data order, noise, weights). All
    seeds use the same questions, so the result is about the method on these questions.
    """
    assert pairs, "no comparison given"
    assert all(pair.is_comparable for pair in pairs), "every seed needs common questions"
    values = tuple(pair.difference for pair in pairs)
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return SeedStatistics(values, mean, math.nan, math.nan, math.nan, tuple(pairs))
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    quantile = T_QUANTILES[n - 2] if n - 1 <= len(T_QUANTILES) else Z
    half = quantile * deviation / math.sqrt(n)
    return SeedStatistics(values, mean, deviation, mean - half, mean + half, tuple(pairs))


def holm_correction(values: Sequence[float]) -> list[float]:
    """Holm-corrected p-values: the chance of any false positive at 5 % is at most 5 %.

    A p-value that is NaN stays so; it counts as a hypothesis, with the largest of all.
    """
    order = sorted(range(len(values)), key=lambda i: (math.isnan(values[i]), values[i]))
    corrected, largest = [math.nan] * len(values), 0.0
    for rank, index in enumerate(order):
        if math.isnan(values[index]):
            break
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = largest
    return corrected

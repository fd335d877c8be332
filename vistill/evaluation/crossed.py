"""Paired differences of runs that cross students with teachers: intervals and tests.

Runs with the same student, or with the same teacher, are not independent. The bootstrap therefore
draws students and teachers, not runs. Needs no torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vistill.evaluation.paired import T_QUANTILES, Z

#: Bootstrap draws, and the seed of its generator: the same runs give the same interval.
DRAWS, BOOTSTRAP_SEED = 10_000, 20_261_128
#: Most runs of the exact sign-flip test, which looks at all 2^n signs.
MOST_FLIPPED = 16

Crossed = Mapping[tuple[int, int, int], float]
"""(student, teacher, seed) -> difference."""


@dataclass(frozen=True)
class CrossedStatistics:
    """A mean difference with its uncertainty over students and teachers."""

    runs: int
    students: int
    teachers: int
    mean: float
    """Mean over runs."""
    low: float
    """95 % percentile interval of the bootstrap over students and teachers; NaN for one of each."""
    high: float
    student_low: float
    """95 % interval by Student's t over the means of the students; NaN for one student."""
    student_high: float
    p: float
    """Two-sided t-test over the means of the students; NaN for one student."""
    sign_flip_p: float
    """Exact two-sided sign-flip test over the runs, as if they were independent; NaN above 16."""
    ahead: int
    """Runs with a positive difference."""
    behind: int


def crossed_statistics(differences: Crossed) -> CrossedStatistics:
    """The statistics of one difference per run."""
    values = list(differences.values())
    students, teachers = ({key[place] for key in differences} for place in (0, 1))
    means = student_means(differences)
    t_low, t_high, p = t_test(means)
    low, high = crossed_bootstrap(differences)
    return CrossedStatistics(
        runs=len(values),
        students=len(students),
        teachers=len(teachers),
        mean=sum(values) / len(values),
        low=low,
        high=high,
        student_low=t_low,
        student_high=t_high,
        p=p,
        sign_flip_p=sign_flips(values),
        ahead=sum(v > 0 for v in values),
        behind=sum(v < 0 for v in values),
    )


def student_means(differences: Crossed) -> list[float]:
    """Mean difference of each student: over seeds of a teacher, then over its teachers."""
    means = []
    for student in sorted({key[0] for key in differences}):
        by_teacher: dict[int, list[float]] = {}
        for (s, teacher, _), value in sorted(differences.items()):
            if s == student:
                by_teacher.setdefault(teacher, []).append(value)
        inner = [sum(values) / len(values) for values in by_teacher.values()]
        means.append(sum(inner) / len(inner))
    return means


def crossed_bootstrap(differences: Crossed, draws: int = DRAWS) -> tuple[float, float]:
    """95 % percentile interval of the mean under draws of students and teachers with replacement.

    NaN for one student and one teacher, or if a difference is NaN. A draw without any run (in a
    design that is not complete) is drawn again.
    """
    keys = sorted(differences)
    values = np.array([differences[key] for key in keys])
    students, teachers = (sorted({key[place] for key in keys}) for place in (0, 1))
    if len(students) == 1 and len(teachers) == 1:
        return math.nan, math.nan
    row = np.array([students.index(key[0]) for key in keys])
    column = np.array([teachers.index(key[1]) for key in keys])
    rng, means = np.random.default_rng(BOOTSTRAP_SEED), np.empty(0)
    sizes = np.repeat([len(students), len(teachers)], [len(students), len(teachers)])
    while len(means) < draws:
        drawn = rng.integers(np.broadcast_to(sizes, (draws, len(sizes))))
        s, t = counts(drawn[:, : len(students)]), counts(drawn[:, len(students) :])
        weight = s[:, row] * t[:, column]
        weight = weight[weight.sum(1) > 0]
        means = np.concatenate([means, (weight * values).sum(1) / weight.sum(1)])[:draws]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def counts(drawn: np.ndarray) -> np.ndarray:
    """How often each of 0 ... n - 1 is in each row of n drawn numbers, `(draws, n)`."""
    return (drawn[:, :, None] == np.arange(drawn.shape[1])).sum(1)


def sign_flips(values: Sequence[float]) -> float:
    """Share of all sign patterns whose sum is at least as far from 0.

    NaN for too many values, or if one is NaN.
    """
    n = len(values)
    if n > MOST_FLIPPED or any(map(math.isnan, values)):
        return math.nan
    signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    sums = np.abs(signs @ np.array(values))
    return float((sums >= abs(sum(values)) - 1e-12).mean())


def t_test(values: Sequence[float]) -> tuple[float, float, float]:
    """95 % interval of a mean by Student's t, and the two-sided p-value of a mean of 0.

    All are NaN for one value, or if a value is NaN.
    """
    n = len(values)
    if n < 2 or any(map(math.isnan, values)):
        return math.nan, math.nan, math.nan
    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    quantile = T_QUANTILES[n - 2] if n - 1 <= len(T_QUANTILES) else Z
    half = quantile * deviation / math.sqrt(n)
    if deviation == 0:
        return mean - half, mean + half, 1.0 if mean == 0 else 0.0
    return mean - half, mean + half, t_tail(abs(mean) / deviation * math.sqrt(n), n - 1)


def t_tail(t: float, freedom: int) -> float:
    """P(|T| >= t) of Student's t with a whole number of degrees of freedom.

    Source: Abramowitz and Stegun 26.7.3 and 26.7.4.
    """
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2 == 1
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(1 if odd else 0, freedom - 1, 2):
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return min(1.0, max(0.0, 1.0 - inside))

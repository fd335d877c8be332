"""Confidence intervals of shares and means."""

import math
from collections.abc import Sequence


def wilson_interval(successes: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """95 % Wilson interval of a share; (0, 1) without observations."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float], samples: int = 1) -> tuple[float, float]:
    """95 % interval of a mean over questions (avg@k); values in [0, 1].

    A Wilson interval for the effective number of answers, p (1 - p) / s.e.^2, limited to the range
    from the number of questions to the number of all answers. For one sample per question it equals
    `wilson_interval`. A normal interval would have width 0 if all questions had the same value.

    Args:
        values: the share of correct answers of each question.
        samples: answers per question (k).
    """
    n = len(values)
    if n == 0:
        return 0.0, 1.0
    p = sum(values) / n
    spread = sum((v - p) ** 2 for v in values)
    effective = p * (1 - p) * n * (n - 1) / spread if spread > 0 else math.inf
    if n == 1 or p in (0.0, 1.0):
        effective = n  # nothing is known about the spread over questions
    effective = min(max(effective, n), n * samples)
    return wilson_interval(p * effective, effective)


def mean(values: Sequence[float]) -> float:
    """Mean; NaN for an empty sequence."""
    return sum(values) / len(values) if values else math.nan

"""Intervals with their denominators."""

import math
from collections.abc import Sequence


def wilson(successes: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """95 % Wilson interval of a share; (0, 1) without observations."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float], samples: int = 1) -> tuple[float, float]:
    """95 % interval of a mean over questions (avg@k); each value is a question's share of right answers in [0, 1].

    A Wilson interval with the number of answers that the spread over questions is worth, p (1 - p) / s.e.^2, which
    lies between the number of questions and that of all answers. For one sample it is `wilson`; a normal interval
    would have no width where every question has the same value, and claim certainty.

    Args:
        values: a value for each question.
        samples: answers a question (k).
    """
    n = len(values)
    if n == 0:
        return 0.0, 1.0
    p = sum(values) / n
    spread = sum((v - p) ** 2 for v in values)
    worth = p * (1 - p) * n * (n - 1) / spread if spread > 0 else math.inf
    if n == 1 or p in (0.0, 1.0):
        worth = n  # one question, all right or all wrong: nothing is known of how questions differ
    worth = min(max(worth, n), n * samples)
    return wilson(p * worth, worth)


def mean(values: Sequence[float]) -> float:
    """Mean; NaN of nothing."""
    return sum(values) / len(values) if values else math.nan

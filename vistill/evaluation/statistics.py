"""Intervals with their denominators."""

import math
from collections.abc import Sequence


def wilson(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % Wilson interval of a share; (0, 1) without observations."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float], z: float = 1.959964) -> tuple[float, float]:
    """95 % normal interval of a mean over questions; for avg@k each value is a question's mean over its samples."""
    n = len(values)
    if n < 2:
        return 0.0, 1.0
    mean = sum(values) / n
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return max(0.0, mean - z * error), min(1.0, mean + z * error)


def mean(values: Sequence[float]) -> float:
    """Mean; NaN of nothing."""
    return sum(values) / len(values) if values else math.nan

"""From units to values with intervals: a bootstrap over clusters of questions."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vistill.evaluation.benchmarks.benchmark import (
    Benchmark,
    ScoredReply,
    Unit,
    Units,
    units_by_fact,
)
from vistill.evaluation.statistics import wilson_interval

RESAMPLES = 2000
#: Resamples times clusters that are drawn at once.
BLOCK = 2_000_000


@dataclass(frozen=True)
class Score:
    """A metric with its 95 % interval; values in [0, 1]."""

    value: float
    low: float
    high: float
    units: int
    """The denominator: rows, groups or figures."""
    clusters: int
    """Independent clusters behind them, which the bootstrap draws."""

    def to_dict(self) -> dict[str, float]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class ClusterSums:
    """Sum and number of the units of each cluster, in one order of clusters for all metrics."""

    total: np.ndarray
    count: np.ndarray
    units: int

    @property
    def value(self) -> float:
        """The mean over the units."""
        return float(self.total.sum() / self.count.sum())


def sum_by_cluster(units: Sequence[Unit], index: Mapping[str, int]) -> ClusterSums:
    """The units of a metric, summed by cluster."""
    places = np.array([index[unit.cluster] for unit in units], dtype=np.int64)
    values = np.array([unit.value for unit in units], dtype=np.float64)
    size = len(index)
    total = np.bincount(places, weights=values, minlength=size)
    count = np.bincount(places, minlength=size).astype(np.float64)
    return ClusterSums(total, count, len({unit.key for unit in units}))


def score_units(
    units: Units, means: Mapping[str, tuple[str, ...]] | None = None, seed: int = 0
) -> dict[str, Score]:
    """The scores of metrics, and of means of metrics; metrics without a unit are left out.

    Interval: the 2.5 % and 97.5 % quantiles of the metric over resamples of whole clusters, the
    same resamples for all metrics. Where all clusters have one value, which resampling cannot
    vary, it is Wilson's for the number of clusters.

    Args:
        units: by metric.
        means: by name the metrics whose unweighted mean it is; left out if one has no unit.
        seed: of the resamples.
    """
    filled = {name: list(part) for name, part in units.items() if part}
    # sorted, so that resamples do not depend on the order in which responses were written
    clusters = sorted({unit.cluster for part in filled.values() for unit in part})
    index = {name: i for i, name in enumerate(clusters)}
    sums = {name: sum_by_cluster(part, index) for name, part in filled.items()}
    draws = resample(sums, len(index), seed) if sums else {}
    values = {name: part.value for name, part in sums.items()}
    groups: dict[str, tuple[str, ...]] = {name: (name,) for name in sums}
    for name, parts in (means or {}).items():
        if all(part in sums for part in parts):
            groups[name] = parts
            values[name] = float(np.mean([values[part] for part in parts]))
            draws[name] = np.mean([draws[part] for part in parts], axis=0)
    return {
        name: score_of(values[name], draws[name], [sums[part] for part in parts])
        for name, parts in groups.items()
    }


def score_of(value: float, draws: np.ndarray, parts: Sequence[ClusterSums]) -> Score:
    """One score from its resamples."""
    present = min(int((part.count > 0).sum()) for part in parts)
    drawn = draws[np.isfinite(draws)]
    if len(drawn) == 0 or float(drawn.min()) == float(drawn.max()):
        low, high = wilson_interval(value * present, present)
    else:
        low, high = (float(q) for q in np.quantile(drawn, [0.025, 0.975]))
    return Score(value, low, high, max(part.units for part in parts), present)


def resample(sums: Mapping[str, ClusterSums], size: int, seed: int) -> dict[str, np.ndarray]:
    """The value of each metric in every resample of the clusters; NaN where it has no unit."""
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK // size)
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in sums}
    for start in range(0, RESAMPLES, rows):
        count = min(rows, RESAMPLES - start)
        weights = rng.multinomial(size, np.full(size, 1 / size), size=count).astype(np.float64)
        for name, part in sums.items():
            units = weights @ part.count
            with np.errstate(invalid="ignore"):
                pieces[name].append(np.where(units > 0, weights @ part.total / units, np.nan))
    return {name: np.concatenate(part) for name, part in pieces.items()}


def score_benchmark(benchmark: Benchmark, replies: Sequence[ScoredReply]) -> dict[str, Any]:
    """Everything that is reported of one benchmark in one mode, as plain values.

    Args:
        benchmark: its metrics and categories.
        replies: of one mode; every row has the same number of samples.
    """
    scores = score_units(benchmark.score(replies), benchmark.means)
    parts = {
        fact: {k: s.to_dict() for k, s in score_units(units_by_fact(replies, fact)).items()}
        for fact in benchmark.categories
    }
    questions = len({reply.row.id for reply in replies})
    return {
        "metrics": {name: score.to_dict() for name, score in scores.items()},
        "categories": {fact: values for fact, values in parts.items() if values},
        "questions": questions,
        "replies": len(replies),
        "unparsed_share": share([reply.unparsed for reply in replies]),
        "truncated_share": share([reply.truncated for reply in replies]),
        "tokens": float(np.mean([r.tokens for r in replies])) if replies else 0.0,
    }


def share(flags: Sequence[bool]) -> float:
    """The share of true flags; 0 without flags."""
    return sum(flags) / len(flags) if flags else 0.0

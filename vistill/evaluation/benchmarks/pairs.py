"""Paired differences of two sets of replies to the same rows: two models, or with and without view.

Both sides are resampled with the same clusters, so what makes a question hard for both cancels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vistill.data.keys import keyed_seed
from vistill.evaluation.benchmarks.benchmark import Benchmark, ScoredReply, Units, units_by_fact
from vistill.evaluation.benchmarks.scores import resample, sum_by_cluster
from vistill.evaluation.paired import difference_interval


@dataclass(frozen=True)
class Difference:
    """`first - second` of a metric with its 95 % interval; values in [-1, 1]."""

    value: float
    low: float
    high: float
    first: float
    """The metric of the first side on the common rows."""
    second: float
    units: int
    """Rows, groups or figures that both sides have."""
    clusters: int
    draws: np.ndarray
    """The difference in every resample."""

    def to_dict(self) -> dict[str, float]:
        """As plain values, without the resamples."""
        return {name: value for name, value in asdict(self).items() if name != "draws"}


def units_difference(
    first: Units, second: Units, means: Mapping[str, tuple[str, ...]], seed: int = 0
) -> dict[str, Difference]:
    """The differences of metrics that both sides have, and of means of them.

    Interval: the 2.5 % and 97.5 % quantiles over resamples of whole clusters, the same for both
    sides and all metrics. Where resampling cannot vary the difference, it is that of Agresti and
    Min for the number of clusters.

    Args:
        first: units by metric.
        second: units of the same rows.
        means: by name the metrics whose unweighted mean it is.
        seed: of the resamples.
    """
    names = [name for name, part in first.items() if part and second.get(name)]
    sides = {f"{side} {name}": part[name] for side, part in enumerate((first, second), 0)
             for name in names}  # fmt: skip
    clusters = sorted({unit.cluster for part in sides.values() for unit in part})
    index = {name: i for i, name in enumerate(clusters)}
    sums = {name: sum_by_cluster(part, index) for name, part in sides.items()}
    drawn = resample(sums, len(index), seed) if sums else {}
    groups = {name: (name,) for name in names}
    groups |= {name: parts for name, parts in means.items() if set(parts) <= set(names)}
    return {
        name: difference_of(
            [(sums[f"0 {part}"], sums[f"1 {part}"]) for part in parts],
            [drawn[f"0 {part}"] - drawn[f"1 {part}"] for part in parts],
        )
        for name, parts in groups.items()
    }


def difference_of(sums: Sequence[Any], draws: Sequence[np.ndarray]) -> Difference:
    """One difference: the mean over the parts of a metric."""
    first = float(np.mean([a.value for a, _ in sums]))
    second = float(np.mean([b.value for _, b in sums]))
    clusters = min(int(((a.count > 0) & (b.count > 0)).sum()) for a, b in sums)
    units = max(min(a.units, b.units) for a, b in sums)
    drawn = np.mean(draws, axis=0)
    low, high = interval_of(first - second, drawn, clusters)
    return Difference(first - second, low, high, first, second, units, clusters, drawn)


def interval_of(value: float, draws: np.ndarray, clusters: int) -> tuple[float, float]:
    """The interval of a difference from its resamples."""
    finite = draws[np.isfinite(draws)]
    if len(finite) == 0 or float(np.ptp(finite)) < 1e-12:
        return difference_interval([value] * max(1, clusters))
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)


def in_both(
    first: Sequence[ScoredReply], second: Sequence[ScoredReply]
) -> tuple[list[ScoredReply], list[ScoredReply]]:
    """The replies to the rows and samples that both sides have."""
    common = {(r.row.id, r.sample) for r in first} & {(r.row.id, r.sample) for r in second}
    left = [reply for reply in first if (reply.row.id, reply.sample) in common]
    return left, [reply for reply in second if (reply.row.id, reply.sample) in common]


def paired_results(
    benchmark: Benchmark, first: Sequence[ScoredReply], second: Sequence[ScoredReply]
) -> tuple[dict[str, Any], dict[str, Difference]]:
    """The differences of one benchmark in one mode on the rows and samples that both sides have.

    Returns:
        Metrics and categories as plain values with the number of rows, and the metrics with their
        resamples.
    """
    left, right = in_both(first, second)
    seed = keyed_seed("paired resamples", benchmark.name)
    metrics = units_difference(benchmark.score(left), benchmark.score(right), benchmark.means, seed)
    categories = {
        fact: as_plain(units_difference(units_by_fact(left, fact), units_by_fact(right, fact), {}))
        for fact in benchmark.categories
    }
    plain = {
        "metrics": as_plain(metrics),
        "categories": {fact: values for fact, values in categories.items() if values},
        "rows": len({reply.row.id for reply in left}),
    }
    return plain, metrics


def as_plain(differences: Mapping[str, Difference]) -> dict[str, dict[str, float]]:
    """Differences as plain values."""
    return {name: one.to_dict() for name, one in differences.items()}

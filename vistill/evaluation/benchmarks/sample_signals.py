"""Signals of stored samples (`eval.signals`): their means, and refusals. Needs no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vistill.errors import ConfigError
from vistill.evaluation.benchmarks.benchmark import Unit
from vistill.evaluation.benchmarks.scores import resample, sum_by_cluster

#: Signals of a sample, in nats per token.
NAMES = ("log_prob", "entropy", "visual_advantage", "visual_dependency")
#: What a signal is called as a reducer in tables: nats, not a share.
SIGNAL = "signal"


def check_can_measure(engine: str) -> None:
    """C101 for an engine whose model does not run here."""
    if engine == "server":
        raise ConfigError(
            "C101",
            "eval.signals needs a model that runs here, and rollout.engine=server writes elsewhere",
            where="rollout.engine = server",
            why="signals are read from distributions over the whole vocabulary, under other views"
            " of the picture too; a server gives neither",
            fix="eval.signals=false",
        )


class SignalMeans:
    """Collects the signals of the samples of one mode."""

    def __init__(self) -> None:
        self.units: dict[str, list[Unit]] = {name: [] for name in NAMES}
        self.present = 0
        self.total = 0

    def add(self, row: str, cluster: str, signals: Mapping[str, float | None] | None) -> None:
        """One sample; None if nothing was measured."""
        self.total += 1
        if signals is None:
            return
        self.present += 1
        for name in NAMES:
            value = signals.get(name)
            if value is not None:
                self.units[name].append(Unit(row, cluster, float(value)))

    def results(self) -> dict[str, Any]:
        """`signals`: means with intervals, of how many responses; none if nothing was measured."""
        if not self.present:
            return {}
        signals = {
            "measured": self.present,
            "replies": self.total,
            "responses": {name: len(units) for name, units in self.units.items()},
            "means": mean_signals(self.units),
        }
        return {"signals": signals}


def mean_signals(units: Mapping[str, Sequence[Unit]]) -> dict[str, dict[str, Any]]:
    """Means over responses; the interval is that of resamples of whole clusters, as of metrics.

    Of one cluster there is no interval (None): resampling cannot vary it.
    """
    filled = {name: part for name, part in units.items() if part}
    # sorted, so that resamples do not depend on the order in which responses were written
    clusters = sorted({unit.cluster for part in filled.values() for unit in part})
    index = {name: i for i, name in enumerate(clusters)}
    sums = {name: sum_by_cluster(part, index) for name, part in filled.items()}
    draws = resample(sums, len(index), 0) if sums else {}
    means = {}
    for name, part in sums.items():
        drawn = draws[name][np.isfinite(draws[name])]
        own = int((part.count > 0).sum())
        low, high = (
            (float(q) for q in np.quantile(drawn, [0.025, 0.975])) if own > 1 else (None, None)
        )
        means[name] = {"value": part.value, "low": low, "high": high, "units": part.units,
                       "clusters": own}  # fmt: skip
    return means


def signal_lines(signals: Mapping[str, Any]) -> list[str]:
    """The means as text; of how many responses is said where it is not all."""
    if not signals:
        return []
    lines = []
    for name, one in signals["means"].items():
        text = f"    {name}, nats per token"
        band = f"   95 % [{one['low']:7.4f}, {one['high']:7.4f}]" if one["clusters"] > 1 else ""
        lines.append(f"{text:<38} {one['value']:7.4f}{band}   on {one['units']:,}")
    return lines + [f"    {note}" for note in signal_notes(signals)]


def signal_notes(signals: Mapping[str, Any]) -> list[str]:
    """What a reader of the means must know: responses that have no value."""
    notes = []
    if signals["measured"] < signals["replies"]:
        notes.append(f"signals of {signals['measured']:,} of {signals['replies']:,} responses")
    visual = signals["responses"]["visual_advantage"]
    if visual < signals["responses"]["log_prob"]:
        without = signals["responses"]["log_prob"] - visual
        notes.append(f"no visual signals for {without:,} responses written without a full picture")
    return notes

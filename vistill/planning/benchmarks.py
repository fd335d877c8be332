"""The responses that `eval.tasks` asks during a run. Needs no torch."""

from dataclasses import dataclass

from vistill.evaluation.benchmarks.catalogue import find_benchmarks, naming_settings
from vistill.evaluation.benchmarks.protocols import find_protocol, view_of, with_blind
from vistill.evaluation.settings import EvalSettings
from vistill.types import View


@dataclass(frozen=True)
class PlannedBenchmark:
    """One benchmark in one evaluation of a run."""

    name: str
    rows: int
    """At most: `eval.task_limit`, or the rows that the protocol takes."""
    responses: int
    """With samples and blind modes; at most, because blind modes leave out rows without a
    picture."""
    readings: int
    """Forward passes over a whole response, for `eval.signals`."""
    limit: int
    """Most tokens of a response."""


def planned_benchmarks(settings: EvalSettings) -> list[PlannedBenchmark]:
    """The benchmarks of each evaluation; none without `eval.tasks` or evaluations.

    Raises:
        ConfigError: C105, a benchmark is unknown.
    """
    if not settings.tasks or not settings.every:
        return []
    protocol = find_protocol(settings.task_protocol)
    limit = min(protocol.max_new_tokens, settings.max_new_tokens)
    samples = (with_blind(protocol) if settings.task_blind else protocol).samples
    views = {mode: 3 if view_of(mode) == View.FULL else 1 for mode in samples}
    planned = []
    with naming_settings():
        benchmarks = find_benchmarks(settings.tasks)
    for one in benchmarks:
        rows = one.paper_rows.get(protocol.name, one.rows)
        rows = rows if settings.task_limit is None else min(rows, settings.task_limit)
        readings = rows * sum(views[mode] * count for mode, count in samples.items())
        responses = rows * sum(samples.values())
        planned.append(
            PlannedBenchmark(one.name, rows, responses, readings if settings.signals else 0, limit)
        )
    return planned

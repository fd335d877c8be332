"""The figures of runs with several data sets or several teachers, by their names."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from vistill.report.charts import Axes, Series, line_chart
from vistill.report.run_data import RunData

#: The kinds of parts, as metrics name them, and their titles.
KINDS = {"set": "data set", "teacher": "teacher", "benchmark": "benchmark"}
#: Charts over steps: kind, where the values are, the metric, title, unit.
CHARTS = (
    ("set", "evaluations", "accuracy", "Accuracy by data set", "accuracy"),
    ("benchmark", "evaluations", "accuracy", "Benchmarks during the run", "headline metric"),
    ("teacher", "evaluations", "kl/mean", "KL(student || teacher) by teacher", "nats per token"),
    ("teacher", "metrics", "va/mean", "Mean visual advantage by teacher", "nats per token"),
)


def names_of(records: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    """The names of the data sets or teachers that some records have figures of."""
    keys = (key.split("/") for record in records for key in record)
    return sorted({parts[1] for parts in keys if parts[0] == kind and len(parts) > 2})


def figures(record: Mapping[str, Any], kind: str, name: str) -> dict[str, Any]:
    """The figures of one data set or teacher in a record, by their plain names."""
    start = f"{kind}/{name}/"
    return {key.removeprefix(start): record[key] for key in record if key.startswith(start)}


def part_rows(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """A row of the last evaluation for each data set and each teacher of a run."""
    return [
        {"run": run.name, "kind": title, "name": name, "record": figures(run.last, kind, name)}
        for run in runs
        for kind, title in KINDS.items()
        for name in names_of([run.last], kind)
    ]


def part_charts(runs: Sequence[RunData]) -> list[Markup]:
    """Charts of accuracy by data set, and of KL and visual advantage by teacher."""
    charts = []
    for kind, where, metric, title, unit in CHARTS:
        series = []
        for run in runs:
            records = getattr(run, where)
            for name in names_of(records, kind):
                key = f"{kind}/{name}/{metric}"
                points = [(float(r["step"]), float(r[key])) for r in records if key in r]
                label = name if len(runs) == 1 else f"{run.name}: {name}"
                series.append(Series(label, points, len(series)))
        if any(one.points for one in series):
            charts.append(line_chart(series, Axes(title, "step", unit)))
    return charts


def teacher_of(run: RunData) -> str:
    """The teacher of a run, or its teachers with their names."""
    several = run.recipe.get("teachers") or {}
    named = ", ".join(f"{name}: {one.get('model', '')}" for name, one in several.items())
    return named or run.recipe.get("teacher", {}).get("model", "") or "no teacher"

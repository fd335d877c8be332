"""`vistill methods`: every method for a few steps from the same student on the same prompts, and one table."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from vistill.api import Run, train
from vistill.config import Recipe, load_stages, method_schemas
from vistill.errors import ConfigError
from vistill.studies.stages import tell_kept
from vistill.report.page import write_report
from vistill.report.sheet import write_sheet
from vistill.runtime import keep_big_blocks, quiet, use_one_thread_on_cpu

#: Key of a row, heading, number format.
COLUMNS = (
    ("stage", "method", ""),
    ("loss_first", "loss, first step", ".4f"),
    ("loss_last", "loss, last", ".4f"),
    ("kl", "KL to teacher", ".4f"),
    ("va", "VA", ".4f"),
    ("vds", "VDS", ".4f"),
    ("passes", "passes", ""),
    ("after_rollouts", "time after rollouts / opd", ".2f"),
    ("whole_step", "whole step / opd", ".2f"),
)


def run_methods(
    recipe: str, overrides: Sequence[str], progress: Callable[[dict[str, Any]], None]
) -> tuple[list[dict[str, Any]], Path]:
    """Train every stage of a recipe in order (a finished one is not repeated); write the table and the report.

    Returns:
        The rows of the table, costs relative to the stage `opd`, and the path of the report.
    """
    quiet()
    use_one_thread_on_cpu()
    keep_big_blocks()
    stages = load_stages(recipe, overrides)
    if "opd" not in stages:
        raise ConfigError(
            "C101",
            f"{recipe} has no stage `opd`",
            why="costs are stated relative to it",
            fix="add   opd: {method: opd}   under stages",
        )
    tell_kept(recipe, overrides, list(stages))
    rows = [row_of(name, made, train(made, progress=progress)) for name, made in stages.items()]
    base = next(row for row in rows if row["stage"] == "opd")
    costs = {key: base[key] for key in ("after_rollouts", "whole_step")}
    rows = [row | {key: row[key] / cost for key, cost in costs.items()} for row in rows]
    paths = [Path(made.run) for made in stages.values()]
    write_csv(rows, paths[0].parent / "methods.csv")
    return rows, write_report(paths, paths[0].parent / "report.html")


def row_of(name: str, made: Recipe, run: Run) -> dict[str, Any]:
    """First and last loss, what the last evaluation measured, passes, median seconds of a step after the first."""
    metrics, last = run.metrics, run.evaluations[-1] if run.evaluations else {}
    seconds = [record["seconds"] for record in run.folder.read(run.folder.timing)]
    seconds = seconds[1:] or seconds
    return {
        "stage": name,
        "loss_first": metrics[0]["loss"],
        "loss_last": metrics[-1]["loss"],
        "kl": last.get("kl/mean"),
        "va": last.get("va/mean"),
        "vds": last.get("vds/mean"),
        "passes": passes_of(made),
        "after_rollouts": median(sum(v for k, v in s.items() if k != "rollout") for s in seconds),
        "whole_step": median(sum(s.values()) for s in seconds),
    }


def passes_of(made: Recipe) -> str:
    """`1 + 2`: passes with gradient and passes without, the machine-independent part of the cost."""
    schema = method_schemas()[made.method]
    total, learnt = len(schema["x-passes"]), len(schema["x-gradient"])
    return f"{learnt} + {total - learnt}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, ready for a document."""
    lines = [f"| {' | '.join(heading for _, heading, _ in COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    for row in rows:
        cells = ["-" if row[key] is None else format(row[key], form) for key, _, form in COLUMNS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_csv(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """The same rows, unrounded."""
    write_sheet(out, [key for key, _, _ in COLUMNS], rows)

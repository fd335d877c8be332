"""`vistill methods`: every method for a few steps from the same student on the same prompts, and one table."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from vistill.config import method_schemas
from vistill.errors import ConfigError
from vistill.report.csv_file import write_sheet
from vistill.report.page import write_report
from vistill.studies.arms import Arm, arms_of, train_in_order, unmatched_sentence
from vistill.studies.stages import tell_kept

if TYPE_CHECKING:  # a mistake in the recipe is reported before torch is imported
    from vistill.api import Run

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
    arms = arms_of(recipe, overrides)
    base = next((arm for arm in arms if arm.name == "opd"), None)
    if base is None:
        raise ConfigError(
            "C101",
            f"{recipe} has no stage `opd`",
            why="costs are stated relative to it",
            fix="add   opd: {method: opd}   under stages",
        )
    tell_kept(recipe, overrides, [arm.name for arm in arms])
    unmatched = unmatched_sentence(arms, base, varies=("views",))  # a method chooses its views
    if unmatched:
        print(unmatched, file=sys.stderr)
    rows = [row_of(arm, run) for arm, run in train_in_order(arms, progress)]
    costs = next(row for row in rows if row["stage"] == base.name)
    relative = {key: costs[key] for key in ("after_rollouts", "whole_step")}
    rows = [row | {key: row[key] / cost for key, cost in relative.items()} for row in rows]
    folder = base.folder.parent
    write_csv(rows, folder / "methods.csv")
    return rows, write_report([arm.folder for arm in arms], folder / "report.html")


def row_of(arm: Arm, run: "Run") -> dict[str, Any]:
    """First and last loss, what the last evaluation measured, passes, median seconds of a step after the first."""
    metrics, last = run.metrics, run.evaluations[-1] if run.evaluations else {}
    seconds = [record["seconds"] for record in run.folder.read(run.folder.timing)]
    seconds = seconds[1:] or seconds
    return {
        "stage": arm.name,
        "loss_first": metrics[0]["loss"],
        "loss_last": metrics[-1]["loss"],
        "kl": last.get("kl/mean"),
        "va": last.get("va/mean"),
        "vds": last.get("vds/mean"),
        "passes": passes_of(arm.settings.method),
        "after_rollouts": median(sum(v for k, v in s.items() if k != "rollout") for s in seconds),
        "whole_step": median(sum(s.values()) for s in seconds),
    }


def passes_of(method: str) -> str:
    """`1 + 2`: passes with gradient and passes without, the machine-independent part of the cost."""
    schema = method_schemas()[method]
    total, learnt = len(schema["x-passes"]), len(schema["x-gradient"])
    return f"{learnt} + {total - learnt}"


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, ready for a document."""
    lines = [
        f"| {' | '.join(heading for _, heading, _ in COLUMNS)} |",
        f"|{' --- |' * len(COLUMNS)}",
    ]
    for row in rows:
        cells = ["-" if row[key] is None else format(row[key], form) for key, _, form in COLUMNS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_csv(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """The same rows, unrounded."""
    write_sheet(out, [key for key, _, _ in COLUMNS], rows)

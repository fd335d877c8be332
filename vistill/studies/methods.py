"""`vistill methods`: train every method for a few steps and print one table."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from vistill.config import method_schemas
from vistill.errors import ConfigError
from vistill.report.csv_file import write_csv
from vistill.report.page import write_report
from vistill.studies.arms import Arm, make_arms, train_in_order, unmatched_sentence
from vistill.studies.stages import warn_stage_settings

if TYPE_CHECKING:  # report a mistake in the recipe before the slow import of torch
    from vistill.api import Run

#: Key of the row, heading, number format.
COLUMNS = (
    ("stage", "method", ""),
    ("loss_first", "loss, first step", ".4f"),
    ("loss_last", "loss, last", ".4f"),
    ("kl", "KL to teacher", ".4f"),
    ("va", "VA", ".4f"),
    ("vds", "VDS", ".4f"),
    ("passes", "passes with + without gradient", ""),
    ("after_rollouts", "seconds after rollouts / those of opd", ".2f"),
    ("whole_step", "whole step / opd", ".2f"),
)


def run_methods(
    recipe: str, overrides: Sequence[str], progress: Callable[[dict[str, Any]], None]
) -> tuple[list[dict[str, Any]], Path]:
    """Train every stage of a recipe in order, skip finished ones, write the table and the report.

    Returns:
        The rows of the table with costs relative to the stage `opd`, and the path of the report.
    """
    arms = make_arms(recipe, overrides)
    base = next((arm for arm in arms if arm.name == "opd"), None)
    if base is None:
        raise ConfigError(
            "C101",
            f"{recipe} has no stage `opd`",
            why="the table states costs relative to it",
            fix="add   opd: {method: opd}   under stages",
        )
    warn_stage_settings(recipe, overrides, [arm.name for arm in arms])
    unmatched = unmatched_sentence(arms, base, varies=("views",))  # the method determines its views
    if unmatched:
        print(unmatched, file=sys.stderr)
    rows = [method_row(arm, run) for arm, run in train_in_order(arms, progress)]
    costs = next(row for row in rows if row["stage"] == base.name)
    relative = {key: costs[key] for key in ("after_rollouts", "whole_step")}
    rows = [row | {key: row[key] / cost for key, cost in relative.items()} for row in rows]
    folder = base.folder.parent
    write_methods_csv(rows, folder / "methods.csv")
    return rows, write_report([arm.folder for arm in arms], folder / "report.html")


def method_row(arm: Arm, run: "Run") -> dict[str, Any]:
    """Losses, last evaluation, passes, and median seconds per step without the first step."""
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
        "passes": count_passes(arm.settings.method),
        "after_rollouts": median(sum(v for k, v in s.items() if k != "rollout") for s in seconds),
        "whole_step": median(sum(s.values()) for s in seconds),
    }


def count_passes(method: str) -> str:
    """`1 + 2`: passes with and without gradient, the part of the cost that no machine changes."""
    schema = method_schemas()[method]
    total, with_gradient = len(schema["x-passes"]), len(schema["x-gradient"])
    return f"{with_gradient} + {total - with_gradient}"


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the rows as a Markdown table."""
    lines = [
        f"| {' | '.join(heading for _, heading, _ in COLUMNS)} |",
        f"|{' --- |' * len(COLUMNS)}",
    ]
    for row in rows:
        cells = ["-" if row[key] is None else format(row[key], form) for key, _, form in COLUMNS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_methods_csv(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write the unrounded rows."""
    write_csv(out, [key for key, _, _ in COLUMNS], rows)

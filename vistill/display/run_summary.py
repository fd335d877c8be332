"""The end of a run in a small table: before, after, what the chosen student is, what comes next."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vistill.evaluation.unparsed import unparsed_warning
from vistill.notebook_html import grid_html, table_html
from vistill.registry import plugin_words
from vistill.report.headline import percent
from vistill.report.parts import names_of
from vistill.report.run_data import RunData, read_run

#: Width of the first column and of the others: three columns fit into 40 characters.
NAME_WIDTH, WIDTH = 15, 12


def run_summary(path: Path) -> str:
    """The table of a run folder, its student, and the next commands; empty without a result."""
    run = read_run(path)
    if not run.result.get("finished"):
        return ""
    columns = summary_columns(run)
    lines = [*table_lines(columns), *student_lines(run)]
    warning = unparsed_warning(run.last)
    if warning:
        lines.append(f"WARNING: {warning}")
    commands = next_commands(run)
    lines += [f"{'next' if i == 0 else '':<{NAME_WIDTH}} {c}" for i, c in enumerate(commands)]
    return "\n".join(lines)


def run_html(path: Path) -> str:
    """The same for a notebook."""
    run = read_run(path)
    columns = summary_columns(run)
    facts = {
        "run": path,
        "method": run.method,
        "steps": f"{run.metrics[-1]['step']:,}" if run.metrics else "0",
        "student": path / "student" if run.result.get("finished") else "not finished",
        "checkpoint": run.result.get("checkpoint"),
        "report": path / "report.html" if (path / "report.html").is_file() else "",
        "warning": unparsed_warning(run.last),
    }
    return table_html(facts) + (grid_html(table_rows(columns)) if columns else "")


def summary_columns(run: RunData) -> dict[str, dict[str, Any]]:
    """The first and the last evaluation; the one of the chosen student if it is another."""
    if not run.evaluations:
        return {}
    columns = {"before": run.first, "after": run.last} if len(run.evaluations) > 1 else {}
    columns = columns or {"after" if run.last.get("step") else "before": run.last}
    chosen = chosen_step(run)
    record = next((r for r in reversed(run.evaluations) if r.get("step") == chosen), None)
    if record is not None and record not in columns.values():
        columns["student"] = record
    return columns


def chosen_step(run: RunData) -> int | None:
    """The step of the chosen checkpoint."""
    chosen = run.result.get("chosen")
    return int(chosen["step"]) if isinstance(chosen, Mapping) and "step" in chosen else None


def table_rows(columns: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The cells of the table by row; rows that no evaluation has are left out."""

    def row(name: str, cells: Sequence[str]) -> list[list[str]]:
        return [[name, *cells]] if any(cells) else []

    def share(record: Mapping[str, Any], key: str) -> str:
        return percent(record[key]) if record.get(key) is not None else ""

    records = list(columns.values())
    return [
        ["", *columns],
        ["step", *(f"{int(r.get('step', 0)):,}" for r in records)],
        *row("accuracy", [share(r, "accuracy") for r in records]),
        *(
            cells
            for name in names_of(records, "set")
            for cells in row(
                f"  {name}"[:NAME_WIDTH], [share(r, f"set/{name}/accuracy") for r in records]
            )
        ),
        *row("95 % interval", list(map(interval_cell, records))),
        *row("blind gap", list(map(gap_cell, records))),
        *row("unparsed", [share(r, "unparsed_share") for r in records]),
        *row("questions", [f"{int(r['rows']):,}" if r.get("rows") else "" for r in records]),
    ]


def interval_cell(record: Mapping[str, Any]) -> str:
    """`51.6 - 57.7`, in percent."""
    low, high = record.get("accuracy_low"), record.get("accuracy_high")
    return "" if low is None or high is None else f"{100 * low:.1f} - {100 * high:.1f}"


def gap_cell(record: Mapping[str, Any]) -> str:
    """The points of accuracy that are lost with the pixelated image."""
    gap = record.get("gap/pixelated")
    return "" if gap is None else f"{100 * gap:.1f}"


def table_lines(columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The table as lines of text."""
    if not columns:
        return []
    lines = []
    for name, *cells in table_rows(columns):
        lines.append(f"{name:<{NAME_WIDTH}}" + "".join(f"{cell:>{WIDTH}}" for cell in cells))
    if any(line.startswith("blind gap") for line in lines):
        lines.append("blind gap: points lost when pixelated")
    return lines


def student_lines(run: RunData) -> list[str]:
    """The path of the student, and which checkpoint it is."""
    checkpoint = run.result.get("checkpoint")
    if not checkpoint:
        return []
    chosen = run.result.get("chosen") or {}
    by = "the last step" if chosen.get("by") == "last" else f"best {chosen.get('by', 'accuracy')}"
    value = f", {percent(chosen['value'])}" if "value" in chosen else ""
    return [
        f"{'student':<{NAME_WIDTH}} {run.path / 'student'}",
        f"{'checkpoint':<{NAME_WIDTH}} {checkpoint} ({by}{value})",
    ]


def next_commands(run: RunData) -> list[str]:
    """Three commands for the finished run, quoted for the shell."""
    words, path = plugin_words(), str(run.path)
    return [
        shlex.join(["vistill", "chat", path, *words]),
        shlex.join(["vistill", "eval", path, *words]),
        shlex.join(["vistill", "export", path]),
    ]

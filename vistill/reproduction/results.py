"""A table with its results: as plain values, Markdown, and an offline HTML page. Needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vistill.errors import VistillError
from vistill.redaction import mask_secrets
from vistill.report.headline import interval
from vistill.report.page import page_environment
from vistill.reproduction.cells import FINISHED, Cell, CellResult, read_cell
from vistill.reproduction.suites import SuiteOptions, measured_columns
from vistill.reproduction.tables import Row, Table
from vistill.runs.storage import write_json, write_text

NOT_MEASURED = "-"
TINY = (
    "Tiny models, diagrams and few steps: this shows that every run of the table works. It says"
    " nothing about the methods."
)
UNMEASURED = (
    "No benchmark was run (`vistill reproduce TABLE --data FOLDER` runs them), so the columns of"
    " benchmarks hold the paper's values alone. What vistill measured is the accuracy on the"
    " held-out rows of each run."
)
MEASURED = (
    "Behind a slash is what vistill measured: other weights and other data than the paper's, and"
    " rules in place of a language model as judge. `*`: the rows are not the whole benchmark."
)


@dataclass(frozen=True)
class TableResult:
    """A table and what its cells show now."""

    table: Table
    cells: Sequence[Cell]
    folder: Path
    """The folder of the runs."""
    tiny: bool
    errors: dict[str, Exception] = field(default_factory=dict)
    """By cell: why it failed in this call."""
    waiting: dict[str, list[str]] = field(default_factory=dict)
    """By cell: the cells that it needs and that failed in this call."""
    suite: SuiteOptions | None = None
    """How finished cells are evaluated on the benchmarks of the paper; None runs none."""

    def results(self) -> dict[str, CellResult]:
        """The state of each cell, read from its folder."""
        return {cell.name: read_cell(cell.arm) for cell in self.cells}

    def to_dict(self) -> dict[str, Any]:
        """The table as plain values."""
        results, folders = self.results(), {cell.name: str(cell.arm.folder) for cell in self.cells}
        rows = [self.row_dict(row, results, folders) for row in self.table.rows]
        is_measured = any(value for row in rows for value in row["ours"].values())
        others = [name for name in results if name not in self.table.stages]
        return {
            "table": self.table.name,
            "title": self.table.title,
            "source": self.table.source,
            "checkpoint": self.table.checkpoint,
            "rule": self.table.rule,
            "protocol": self.table.protocol,
            "tiny": self.tiny,
            "complete": all(result.state == FINISHED for result in results.values()),
            "columns": list(self.table.columns),
            "rows": rows,
            "also_run": [self.cell_dict(name, results[name], folders[name]) for name in others],
            "notes": [
                *([TINY] if self.tiny else []),
                MEASURED if is_measured else UNMEASURED,
                *self.table.notes,
            ],
        }

    def row_dict(
        self, row: Row, results: Mapping[str, CellResult], folders: Mapping[str, str]
    ) -> dict[str, Any]:
        """A row: the paper's values, ours, and the cell behind it."""
        columns = self.table.columns
        plain = {
            "label": row.label,
            "paper": dict(zip(columns, row.paper, strict=True)),
            "ours": dict.fromkeys(columns),
        }
        if not row.cell:
            return plain | {"cell": None, "state": "paper only", "held_out": None}
        run = Path(folders[row.cell])
        plain["ours"] = measured_columns(columns, run, start=bool(row.start_of))
        return plain | self.cell_dict(
            row.cell, results[row.cell], folders[row.cell], start=bool(row.start_of)
        )

    def cell_dict(
        self, name: str, result: CellResult, folder: str, start: bool = False
    ) -> dict[str, Any]:
        """The state of a cell and what was measured on its held-out rows."""
        error = first_line(self.errors[name]) if name in self.errors else result.error
        state = "failed" if error else result.state
        if name in self.waiting:
            state = f"{state}: needs {', '.join(self.waiting[name])}"
        return {
            "cell": name,
            "folder": folder,
            "state": state,
            "error": error,
            "step": 0 if start else result.step,
            "chosen_by": "before training" if start else result.chosen_by,
            "held_out": measured(result.start if start else result.chosen),
        }

    def write(self) -> dict[str, Path]:
        """Write the table in three forms and return their paths."""
        values = self.to_dict()
        base = self.folder / "tables" / self.table.name
        files = {kind: base.with_name(f"{base.name}.{kind}") for kind in ("json", "md", "html")}
        write_json(files["json"], values)
        write_text(files["md"], mask_secrets(format_markdown(values)) + "\n")
        write_text(files["html"], mask_secrets(render_page(values)))
        return files


def first_line(error: Exception) -> str:
    """The code and the text of an error in one line."""
    if isinstance(error, VistillError):
        return f"{error.code}: {error.what}"
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]:.200}"


def measured(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an evaluation says of the held-out rows; None without one."""
    if record.get("accuracy") is None:
        return None
    keys = ("accuracy", "accuracy_low", "accuracy_high", "rows", "samples")
    keys += ("greedy_accuracy", "greedy_rows", "va/mean", "truncated_share", "unparsed_share")
    return {key: record[key] for key in keys if record.get(key) is not None}


def headings(values: Mapping[str, Any]) -> list[str]:
    """The headings of the printed table."""
    return ["", *values["columns"], "held-out accuracy, ours", "step", "state"]


def body(values: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the printed table: the paper's value, then ours where there is one."""
    rows = []
    for row in values["rows"]:
        pairs = [(row["paper"][name], row["ours"][name]) for name in values["columns"]]
        held_out = row["held_out"]
        shown = interval(held_out) if held_out else NOT_MEASURED
        step = row.get("step")
        state = row["state"] + (f": {row['error']}" if row.get("error") else "")
        cells = [value_text(*pair) for pair in pairs]
        at_step = NOT_MEASURED if step is None else f"{step:,}"
        rows.append([row["label"], *cells, shown, at_step, state])
    return rows


def value_text(paper: Any, ours: Any) -> str:
    """`43.3 / 41.9`: the paper's value and ours."""
    shown = NOT_MEASURED if paper is None else str(paper)
    return shown if ours is None else f"{shown} / {ours}"


def format_markdown(values: Mapping[str, Any]) -> str:
    """The table as Markdown."""
    head = headings(values)
    lines = [
        f"# {values['title']}",
        "",
        f"Source: {values['source']}. Values: {values['protocol']}. Checkpoint: {values['rule']}.",
        "",
        f"| {' | '.join(head)} |",
        f"|{' --- |' * len(head)}",
        *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in body(values)),
        "",
    ]
    lines += [f"- Also run: {cell['cell']} ({cell['state']})" for cell in values["also_run"]]
    return "\n".join([*lines, *(f"- {note}" for note in values["notes"])])


def render_page(values: Mapping[str, Any]) -> str:
    """The table as one offline HTML page."""
    template = page_environment().get_template("table.html.jinja")
    reports = {
        row["cell"]: f"../{Path(row['folder']).name}/report.html"
        for row in [*values["rows"], *values["also_run"]]
        if row["cell"] and (Path(row["folder"]) / "report.html").is_file()
    }
    return template.render(
        values=values, headings=headings(values), rows=body(values), reports=reports
    )

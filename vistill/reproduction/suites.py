"""The benchmarks of a table's paper, on the students of its cells. Torch is imported when asked."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistill.report.run_data import read_json
from vistill.reproduction.cells import Cell
from vistill.reproduction.tables import Table

#: Folder of these evaluations, next to the runs.
FOLDER = "suites"
#: Which value stands first where a paper prints two.
MODES = ("greedy", "sampled")


@dataclass(frozen=True)
class SuiteOptions:
    """Where the rows of the benchmarks come from, and how many are asked."""

    data: Path | None
    """A folder with `NAME/data.jsonl`; None reads the hub."""
    limit: int | None = None
    """Most rows of a benchmark, in whole groups."""


def suite_of(table: Table) -> str:
    """The suite of the table's paper: `va_opd` for `va_opd-1`."""
    return table.name.partition("-")[0]


def suite_folder(run: Path, start: bool) -> Path:
    """Where the results of a cell are: of its chosen student, or of its start."""
    return run.parent / FOLDER / (f"{run.name}-start" if start else run.name)


def evaluate_cell(table: Table, cell: Cell, options: SuiteOptions, tiny: bool) -> None:
    """Run the suite on what the rows of the table show of a finished cell; continues if killed.

    Args:
        table: its rows decide whether the start, the chosen student or both are evaluated.
        cell: is finished.
        options: rows.
        tiny: ask one short response per question.

    Raises:
        VistillError: a benchmark or the model cannot be read; C203, other settings.
    """
    from vistill.evaluation.benchmarks.catalogue import BENCHMARKS, find_suite
    from vistill.evaluation.benchmarks.protocols import find_protocol
    from vistill.studies.benchmark_run import BenchmarkRequest, run_benchmarks

    suite = find_suite(suite_of(table))
    protocol, changed = find_protocol(suite.name), {}
    recipe = cell.arm.settings
    if tiny:
        length = recipe.eval.max_new_tokens
        protocol = dataclasses.replace(
            protocol, samples=dict.fromkeys(protocol.samples, 1), max_new_tokens=length
        )
        changed = {"samples": 1, "max_new_tokens": length}
    benchmarks = [BENCHMARKS[name] for name in suite.benchmarks]
    request = BenchmarkRequest(benchmarks, protocol, suite, options.data, options.limit, changed)
    for start in starts_of(table, cell):
        model = recipe.student.model if start else str(cell.arm.folder)
        own = dataclasses.replace(recipe.student, model=model)
        folder = str(suite_folder(cell.arm.folder, start))
        run_benchmarks(dataclasses.replace(recipe, student=own, run=folder), request)


def starts_of(table: Table, cell: Cell) -> list[bool]:
    """Whether rows show the start of a cell (True), its chosen student (False), or both."""
    kinds = {bool(row.start_of) for row in table.rows if row.cell == cell.name}
    return sorted(kinds)


def measured_columns(columns: Sequence[str], run: Path, start: bool) -> dict[str, str | None]:
    """Our values in percent by column, from the results alone; None where there is none.

    Two modes are two values, `45.8/47.3`. `*` marks rows that are not the whole benchmark, or an
    incomplete result.
    """
    results = read_json(suite_folder(run, start) / "results.json")
    modes = (results.get("suite") or {}).get("modes", {})
    marks = marked_titles(results)
    values: dict[str, str | None] = {}
    for column in columns:
        shown = []
        for mode in MODES:
            named = {**modes.get(mode, {}).get("columns", {})} | modes.get(mode, {}).get(
                "averages", {}
            )
            value = {plain_name(k): v for k, v in named.items()}.get(plain_name(column))
            shown += [] if value is None else [f"{100 * value:.1f}"]
        mark = "*" if plain_name(column) in marks else ""
        values[column] = "/".join(shown) + mark if shown else None
    return values


def marked_titles(results: Mapping[str, Any]) -> set[str]:
    """Columns and averages whose rows are not the whole benchmark."""
    if not results.get("suite"):
        return set()
    from vistill.evaluation.benchmarks.catalogue import find_suite

    suite, tasks = find_suite(results["suite"]["name"]), results["tasks"]
    partial = {
        name
        for name, task in tasks.items()
        if task["subset"] or task["failed"] or task["missing_replies"]
    }
    titles = {column.title for column in suite.columns if column.benchmark in partial}
    averages = {name for name, parts in suite.averages.items() if titles.intersection(parts)}
    return {plain_name(title) for title in titles | averages}


def plain_name(title: str) -> str:
    """A title without case, blanks and signs: papers spell `WeMath` and `We-Math`."""
    return "".join(filter(str.isalnum, title)).casefold()

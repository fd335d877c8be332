"""Run the cells of a table in order; a cell that fails does not stop the others."""

import gc
import re
from collections.abc import Callable, Sequence
from typing import Any

from vistill.config import all_keys
from vistill.errors import ArmError, Preempted, VistillError
from vistill.report.page import write_report
from vistill.reproduction.cells import Cell
from vistill.reproduction.results import TableResult, first_line
from vistill.reproduction.suites import evaluate_cell
from vistill.schema import key_info
from vistill.studies.arms import train_in_order

Progress = Callable[[dict[str, Any]], None]


def run_cells(
    result: TableResult, chosen: Sequence[Cell], progress: Progress, log: Callable[[str], None]
) -> None:
    """Train the chosen cells that are not finished, and write the table after each.

    The same call continues: a finished cell is not touched, an unfinished one resumes.

    Args:
        result: the table; errors of cells are added to it.
        chosen: the cells to run, in order.
        progress: is called with each record of a run.
        log: is called with a line before and after each cell.

    Raises:
        VistillError: what every cell failed with; A102 if some failed, or for several reasons.
    """
    for number, cell in enumerate(chosen, start=1):
        label = f"cell {number} of {len(chosen)}: {cell.name}"
        result.write()
        if cell.arm.is_finished():
            log(f"{label}: already finished")
            if not (cell.arm.folder / "report.html").is_file():  # killed while it was written
                write_report([cell.arm.folder], cell.arm.folder / "report.html")
            run_suite(result, cell, label, log)
            continue
        log(label)
        missing = unfinished_needs(result, cell)
        if missing:
            result.waiting[cell.name] = missing
            log(f"{label}: not started: it needs {', '.join(missing)}")
            continue
        error = train_cell(cell, progress)
        if error is not None:
            result.errors[cell.name] = error
            log(f"{label}: failed: {first_line(error)}")
        else:
            run_suite(result, cell, label, log)
    result.write()
    check_errors(result, len(chosen))


def run_suite(result: TableResult, cell: Cell, label: str, log: Callable[[str], None]) -> None:
    """Evaluate a finished cell on the benchmarks of the paper, if that is asked."""
    if result.suite is None:
        return
    log(f"{label}: benchmarks")
    try:
        evaluate_cell(result.table, cell, result.suite, result.tiny)
    except Preempted:
        raise
    except Exception as error:  # noqa: BLE001  any failure is of this cell
        result.errors[cell.name] = error
        log(f"{label}: failed: {first_line(error)}")
    finally:
        gc.collect()


def train_cell(cell: Cell, progress: Progress) -> Exception | None:
    """Train one cell; its error, if it fails. A signal ends the table."""

    def show(record: dict[str, Any]) -> None:
        progress({"stage": cell.name, **record})

    try:
        for _ in train_in_order([cell.arm], show):
            pass
    except Preempted:
        raise
    except Exception as error:  # noqa: BLE001  any failure is of this cell; events.log has it
        return error
    finally:
        gc.collect()  # frees the models of the cell
    return None


def unfinished_needs(result: TableResult, cell: Cell) -> list[str]:
    """The cells that are not finished and whose student this one reads."""
    by_name = {cell.name: cell for cell in result.cells}
    return [name for name in cell.needs if not by_name[name].arm.is_finished()]


def check_errors(result: TableResult, count: int) -> None:
    """Raise if a cell failed: the error itself if all `count` cells failed with the same."""
    errors = result.errors
    own = [error for error in errors.values() if isinstance(error, VistillError)]
    if len(own) == count and len({(error.code, error.what) for error in own}) == 1:
        raise own[0]
    if errors:
        raise failed_cells_error(result, count)


def failed_cells_error(result: TableResult, count: int) -> ArmError:
    """A102 with the first failure; its fix sets the keys of that cell alone."""
    name, error = next(iter(result.errors.items()))
    again = "the same command runs only the cells that are not finished"
    waiting = f"; not started: {', '.join(result.waiting)}" if result.waiting else ""
    fix = fix_for_cell(error.fix, name) if isinstance(error, VistillError) else ""
    return ArmError(
        "A102",
        f"{len(result.errors)} of {count} cells of {result.table.name} failed:"
        f" {', '.join(result.errors)}{waiting}",
        where=str(result.folder / "tables" / f"{result.table.name}.md"),
        why=f"{name}: {first_line(error)}",
        fix=fix or "read events.log in the run folder of the cell",
        note=again,
    )


def fix_for_cell(fix: str, name: str) -> str:
    """A fix whose settings are those of one stage."""
    known = all_keys()

    def in_stage(match: re.Match[str]) -> str:
        group = match[1].rpartition(".")[0]  # of free keys, such as those of reward.extra
        is_key = key_info(known, match[1]) or key_info(known, group)
        return f"stages.{name}.{match[1]}=" if is_key else match[0]

    return re.sub(r"(?<![\w.])([A-Za-z_]\w*(?:\.\w+)+)=", in_stage, fix)

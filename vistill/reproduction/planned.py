"""`vistill reproduce TABLE --dry-run`: hours, disk and fit of every cell. Needs no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from vistill.config import naming_stage
from vistill.errors import StorageError, quote_setting
from vistill.planning.run_plan import RunPlan
from vistill.planning.table import columns
from vistill.reproduction.cells import Cell
from vistill.reproduction.tables import Table
from vistill.runs.folder import RunFolder
from vistill.runs.storage import free_space
from vistill.studies.plan import PlanOptions, check_fits
from vistill.training.checks.disk import bytes_in


def planned_dict(
    table: Table, cells: Sequence[Cell], plans: Mapping[str, RunPlan]
) -> dict[str, Any]:
    """The plans of all cells as plain values, and their sums."""
    rows = [cell_plan(cell, plans[cell.name]) for cell in cells]
    left = [row for row in rows if not row["finished"]]
    return {
        "table": table.name,
        "title": table.title,
        "gpu": next(iter(plans.values())).gpu.name,
        "cells": rows,
        "hours": total_of(left, "hours"),
        "disk_gb": total_of(left, "disk_gb"),
        "money": total_of(left, "money"),
        "fits": all(row["fits"] for row in rows),
    }


def total_of(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """The sum over cells; None where a cell has no value."""
    values = [row[key] for row in rows]
    return None if None in values else sum(values)


def cell_plan(cell: Cell, plan: RunPlan) -> dict[str, Any]:
    """The plan of one cell."""
    seconds, disk = plan.cost.total_seconds(), plan.cost.disk_bytes()
    return {
        "cell": cell.name,
        "method": plan.recipe.method,
        "student": plan.student.name,
        "teacher": plan.teacher.name if plan.teacher else None,
        "steps": plan.cost.steps,
        "hours": None if seconds is None else sum(seconds.values()) / 3600,
        "disk_gb": (disk["checkpoints"] + disk["journal"]) / 1e9,
        "money": plan.cost.money(),
        "peak_gib": plan.peak.total / 2**30,
        "fits": plan.fits,
        "finished": cell.arm.is_finished(),
    }


def format_planned(values: Mapping[str, Any]) -> str:
    """The plans as a table for the terminal."""
    rows = [["cell", "method", "student", "teacher", "steps", "hours", "disk GB", values["gpu"]]]
    for row in values["cells"]:
        steps, hours = row["steps"], row["hours"]
        verdict = f"{'fits' if row['fits'] else 'does NOT fit'}, {row['peak_gib']:.1f} GiB"
        rows.append([
            row["cell"],
            row["method"],
            short_name(row["student"]),
            short_name(row["teacher"]),
            "?" if steps is None else f"{steps:,}",
            "?" if hours is None else f"{hours:,.1f}",
            f"{row['disk_gb']:.3g}",
            "finished" if row["finished"] else verdict,
        ])  # fmt: skip
    hours = "unknown" if values["hours"] is None else f"{values['hours']:,.0f}"
    total = f"all: {hours} hours on one {values['gpu']}, {values['disk_gb']:,.0f} GB of disk"
    if values["money"]:
        total += f", money: {values['money']:,.0f}"
    return "\n".join([f"{values['table']}: {values['title']}", "", *columns(rows), "", total])


def short_name(name: str | None) -> str:
    """A hub id without its owner."""
    return "-" if name is None else name.rpartition("/")[2]


def check_plans(cells: Sequence[Cell], plans: Mapping[str, RunPlan], options: PlanOptions) -> None:
    """C130 or C131 for the first cell that does not fit; C131 if the disk does not hold all."""
    for cell in cells:
        with naming_stage(cell.name, cell.arm.own_keys):
            check_fits({cell.name: plans[cell.name]}, options)
    check_disk_of_all(cells, plans, options.disk)


def check_disk_of_all(
    cells: Sequence[Cell], plans: Mapping[str, RunPlan], free: float | None
) -> None:
    """C131 if the disk does not hold the runs of all cells that are not finished."""
    folder = cells[0].arm.folder.parent
    unfinished = [cell for cell in cells if not cell.arm.is_finished()]
    kept = sum(bytes_in(RunFolder(cell.arm.folder)) for cell in unfinished)
    available = (free_space(folder) + kept) / 1e9 if free is None else free
    left = sum(cell_plan(cell, plans[cell.name])["disk_gb"] for cell in unfinished)
    if left <= available:
        return
    raise StorageError(
        "C131",
        f"the runs of all cells need {left:,.1f} GB of disk, {available:,.1f} GB are free",
        where=str(folder),
        why="the checkpoints of every cell stay until you remove them",
        fix=f"{quote_setting('run', 'FOLDER')} --disk {1.05 * left:.3g}   on another disk",
    )

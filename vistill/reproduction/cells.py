"""The cells of a table: one run each, in order, with the runs that they need. Needs no torch."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistill.config import (
    find_recipe,
    naming_stage,
    read_recipe_text,
    split_overrides,
)
from vistill.errors import ConfigError, closest, quote_command
from vistill.planning.run_plan import RunPlan
from vistill.report.run_data import read_json
from vistill.reproduction.tables import Table
from vistill.reproduction.tiny import make_tiny, with_settings
from vistill.runs.folder import RunFolder
from vistill.runs.storage import read_lines
from vistill.strict_yaml import parse_text
from vistill.studies.arms import Arm, make_arms
from vistill.studies.plan import PlanOptions, plan_recipes

FINISHED, FAILED, UNFINISHED, NOT_RUN = "finished", "failed", "not finished", "not run"


@dataclass(frozen=True)
class Cell:
    """A run of a table."""

    arm: Arm
    needs: tuple[str, ...] = ()
    """Cells whose student this one reads as a model."""

    @property
    def name(self) -> str:
        """The stage of the recipe."""
        return self.arm.name


@dataclass(frozen=True)
class CellResult:
    """What the folder of a cell shows."""

    state: str
    step: int | None = None
    """The step of the chosen checkpoint."""
    chosen_by: str = ""
    start: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The evaluation before the first step."""
    chosen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The evaluation of the chosen checkpoint."""
    error: str = ""
    """Code and text of the error that ended the cell."""


def base_folder(table: Table, overrides: Sequence[str], tiny: bool) -> Path:
    """The folder of all runs of the table's recipe."""
    file = find_recipe(table.recipe)
    tree = parse_text(read_recipe_text(file), file)
    own = split_overrides(overrides).get("run")
    return Path(own) if own else Path(f"{tree['run']}-tiny" if tiny else tree["run"])


def make_cells(table: Table, overrides: Sequence[str] = (), tiny: bool = False) -> list[Cell]:
    """The cells of a table in order; a cell that another one needs stands before it.

    Args:
        table: the table.
        overrides: settings as `key=value`, for all cells; `stages.NAME.key=value` for one.
        tiny: use the tiny models of the package, and few steps.
    """
    words = [*overrides, f"run={base_folder(table, overrides, tiny)}"]
    arms = {arm.name: arm for arm in make_arms(table.recipe, words)}
    by_folder = {str(arm.folder): name for name, arm in arms.items()}
    keys = split_overrides(overrides)
    cells: dict[str, Cell] = {}

    def add(name: str) -> None:
        if name in cells:
            return
        arm = arms[name]
        settings = arm.settings
        readers = (settings.student, settings.teacher, *settings.teachers.values())
        needs = tuple(by_folder[one.model] for one in readers if one.model in by_folder)
        for other in needs:
            add(other)
        if tiny:
            kept = {key.removeprefix(f"stages.{name}.") for key in keys}
            with naming_stage(name, arm.own_keys):
                arm = dataclasses.replace(arm, recipe=make_tiny(arm.settings, kept))
        cells[name] = Cell(arm, needs)

    for stage in table.stages:
        add(stage)
    return list(cells.values())


def choose_cells(table: Table, cells: Sequence[Cell], names: Collection[str]) -> list[Cell]:
    """The named cells and those that they need; all for no name (C140 for an unknown one)."""
    if not names:
        return list(cells)
    by_name = {cell.name: cell for cell in cells}
    chosen: set[str] = set()

    def choose(name: str) -> None:
        chosen.add(name)
        for other in by_name[name].needs:
            choose(other)

    for name in names:
        if name not in by_name:
            raise unknown_cell_error(table, name, list(by_name))
        choose(name)
    return [cell for cell in cells if cell.name in chosen]


def unknown_cell_error(table: Table, name: str, known: Sequence[str]) -> ConfigError:
    """C140 for a cell that the table does not have."""
    near = [*closest(name, known), *known][0]
    return ConfigError(
        "C140",
        f'{table.name} has no cell "{name:.60}"',
        why=f"cells: {', '.join(known)}",
        fix=f"{quote_command('--cell', near)}   in place of {quote_command('--cell', name)}",
    )


def plan_cells(cells: Sequence[Cell], options: PlanOptions) -> dict[str, RunPlan]:
    """The plan of every cell, with the settings of a memory profile."""
    settings = split_overrides(options.settings)
    recipes = {cell.name: with_settings(cell.arm.settings, settings) for cell in cells}
    own_keys = {cell.name: cell.arm.own_keys or () for cell in cells}
    return plan_recipes(recipes, own_keys, options)


def read_cell(arm: Arm) -> CellResult:
    """The state and the results of a cell, from its run folder alone."""
    folder = RunFolder(arm.folder)
    evaluations = list(read_lines(folder.evaluations)) if folder.evaluations.exists() else []
    start = next((record for record in evaluations if record.get("step") == 0), {})
    if arm.is_finished():
        result = read_json(arm.folder / "result.json")
        chosen = result.get("chosen") or {}
        step = chosen.get("step")
        record = next((r for r in reversed(evaluations) if r.get("step") == step), {})
        return CellResult(FINISHED, step, str(chosen.get("by", "")), start, record)
    error = read_json(arm.folder / "error.json")
    if error:
        return CellResult(FAILED, start=start, error=f"{error['code']}: {error['what']}")
    return CellResult(UNFINISHED if folder.has_started() else NOT_RUN, start=start)

"""`vistill replay`: recompute a step of a run from its recipe, data, checkpoints and journal."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vistill.answers.math_process import shared_judge
from vistill.batch import Objective
from vistill.config import build_recipe, method_schemas
from vistill.errors import ConfigError, StorageError, in_place_of
from vistill.registry import load_plugins, way_back
from vistill.runs.folder import RunFolder
from vistill.runs.near_runs import missing_run_error
from vistill.runs.storage import append_line
from vistill.runtime import prepare_process
from vistill.training.build import make_setup, method_name
from vistill.training.provided_inputs import changed_knobs
from vistill.training.recipe import Recipe
from vistill.training.replay import Replayed, copied_run_folder, replay_step
from vistill.training.run_lock import check_unmasked


def replay(
    path: str | Path,
    step: int | None = None,
    say: Callable[[str], None] = lambda text: None,
    objective: Objective | None = None,
    plugins: Sequence[str | Path] = (),
) -> tuple[Replayed, int]:
    """Recompute a step of a run (default: the last one) without changing its folder.

    Args:
        path: the run folder, of a recipe or of `vistill.distill`.
        step: the step to recompute.
        say: receives one line per step.
        objective: the method, if it is your own class.
        plugins: the plug-in files of the run.

    Raises:
        StorageError: S605, the folder holds no recipe, or the step is not in its log.
        ConfigError: C102, the method is not part of the package and `objective` is missing.
    """
    prepare_process()
    load_plugins(plugins)
    path = Path(path)
    folder = RunFolder(path)
    recipe = stored_recipe(path, objective)
    at = (
        step
        if step is not None
        else max((record["step"] for record in folder.read(folder.metrics)), default=0)
    )
    with copied_run_folder(folder) as copy:
        setup = make_setup(recipe, copy, "replay", objective=objective)
        with shared_judge().kept_in(copy.path, append_line):
            return replay_step(setup, folder, at, say), at


def stored_recipe(path: Path, objective: Objective | None) -> Recipe:
    """Load the recipe of a run folder."""
    file = path / "recipe.json"
    if not path.exists():
        raise missing_run_error(path)
    if not file.exists():
        stages = sorted(folder.parent for folder in path.glob("*/recipe.json"))
        raise StorageError(
            "S605",
            f"{path} holds no recipe.json",
            where=str(path),
            why="replay needs the recipe; earlier versions of vistill.distill wrote none",
            fix=in_place_of(str(stages[0]) if stages else "RUN_FOLDER", str(path)),
            note="of a recipe with stages: the folder of one stage",
        )
    check_unmasked(RunFolder(path))
    tree = {**json.loads(file.read_text(encoding="utf-8")), "run": str(path)}
    name = str(tree.get("method"))
    if name in method_schemas():
        return build_recipe(tree, name=str(file))
    if objective is None or method_name(objective) != name:
        again = way_back(str(path), f"methods.{name}")
        raise ConfigError(
            "C102",
            f"the method of the run, {name}, is not part of the package",
            where=str(file),
            why="vistill never loads code from a run folder; pass the method yourself",
            fix=again or f"vistill.replay({str(path)!r}, objective=YOUR_OBJECTIVE)",
        )
    tree.pop(name, None)
    recipe = build_recipe({**tree, "method": "sft"}, name=str(file))
    return with_method(recipe, name, objective)


def with_method(recipe: Recipe, name: str, objective: Objective) -> Recipe:
    """The recipe with the name and the knobs of your own method."""
    return replace(recipe, method=name, knobs=changed_knobs(objective))

"""`vistill replay`: a run folder's own recipe, data, checkpoints and journal, to recompute a step of it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vistill.batch import Objective
from vistill.config import build_recipe, method_schemas
from vistill.errors import ConfigError, StorageError
from vistill.runs.folder import RunFolder
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
) -> tuple[Replayed, int]:
    """Recompute a step (the last one where none is named) of a run; nothing in its folder changes.

    Args:
        path: the run folder, of a recipe or of `vistill.distill`.
        step: to recompute.
        say: is told about each step.
        objective: the method, where it is a class of your own.

    Raises:
        StorageError: S605, the folder holds no recipe or the step was never logged.
        ConfigError: C102, the method is not one of the package's and none was handed in.
    """
    prepare_process()
    path = Path(path)
    folder = RunFolder(path)
    recipe = stored_recipe(path, objective)
    at = (
        step
        if step is not None
        else max((record["step"] for record in folder.read(folder.metrics)), default=0)
    )
    with copied_run_folder(folder) as place:
        setup = make_setup(recipe, place, "replay", objective=objective)
        return replay_step(setup, folder, at, say), at


def stored_recipe(path: Path, objective: Objective | None) -> Recipe:
    """The recipe that a run folder holds."""
    file = path / "recipe.json"
    if not file.exists():
        raise StorageError(
            "S605",
            f"{path} holds no recipe.json",
            where=str(path),
            why="a step is recomputed from the run's own recipe; earlier versions of vistill.distill wrote none",
            fix="vistill replay RUN_FOLDER   (of a recipe with stages: the folder of one stage)",
        )
    check_unmasked(RunFolder(path))
    tree = {**json.loads(file.read_text(encoding="utf-8")), "run": str(path)}
    name = str(tree.get("method"))
    if name in method_schemas():
        return build_recipe(tree, name=str(file))
    if objective is None or method_name(objective) != name:
        raise ConfigError(
            "C102",
            f"the run was made by {name}, a class that is not part of the package",
            where=str(file),
            why="code comes from the person at the keyboard, never from a run folder",
            fix=f"vistill.replay({str(path)!r}, objective=YOUR_OBJECTIVE)",
        )
    tree.pop(name, None)
    recipe = build_recipe({**tree, "method": "sft"}, name=str(file))
    return as_method(recipe, name, objective)


def as_method(recipe: Recipe, name: str, objective: Objective) -> Recipe:
    """The recipe under the name and knobs of a method of one's own."""
    return replace(recipe, method=name, knobs=changed_knobs(objective))

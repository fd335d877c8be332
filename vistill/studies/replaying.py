"""`vistill replay`: a run folder's own recipe, data, checkpoints and journal, to recompute a step of it."""

import json
from collections.abc import Callable
from pathlib import Path

from vistill.assembly import plan_of
from vistill.config import build_recipe
from vistill.errors import StorageError
from vistill.runs.folder import RunFolder
from vistill.runtime import quiet
from vistill.training.replay import Replayed, aside, replay


def replay_run(path: Path, step: int | None, say: Callable[[str], None] = lambda text: None) -> tuple[Replayed, int]:
    """Recompute a step (the last one where none is named) of a run; nothing in its folder changes.

    Raises:
        StorageError: S605, the folder holds no recipe or the step was never logged.
    """
    quiet()
    folder = RunFolder(path)
    file = path / "recipe.json"
    if not file.exists():
        raise StorageError(
            "S605",
            f"{path} holds no recipe.json",
            where=str(path),
            why="a step is recomputed from the run's own recipe; runs of `vistill train` write one down",
            fix="vistill replay RUN_FOLDER   (of a recipe with stages: the folder of one stage)",
        )
    recipe = build_recipe(json.loads(file.read_text(encoding="utf-8")), name=str(file))
    at = step if step is not None else max((record["step"] for record in folder.read(folder.metrics)), default=0)
    with aside(folder) as place:
        return replay(plan_of(recipe, place, lambda record: None), folder, at, say), at

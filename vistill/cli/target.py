"""What `vistill eval` and `vistill probe` were pointed at."""

import json
from pathlib import Path
from typing import Any

from vistill.config import (
    Recipe,
    build_recipe,
    load_recipe,
    method_schemas,
    override,
    set_dotted,
    split_override,
)
from vistill.errors import StorageError
from vistill.runs.folder import RunFolder
from vistill.training.recipe import stored_in
from vistill.training.run_lock import check_unmasked


def recipe_for(target: str, overrides: list[str], verb: str) -> Recipe:
    """A recipe file, a run folder (its own recipe, data and chosen student), or a model (evaluated on diagrams).

    Results go into `run`, by default a new folder next to the target.

    Raises:
        StorageError: S605, a run folder that does not say which data it was made with.
    """
    pairs = dict(split_override(text) for text in overrides)
    if target.endswith((".yaml", ".toml")):
        return load_recipe(target, pairs)
    folder = Path(target)
    if (folder / "recipe.json").is_file():
        check_unmasked(RunFolder(folder), pairs)
        tree = recipe_of_run(folder)
        tree["run"] = f"{target.rstrip('/')}-{verb}"
        pairs = {"eval.limit": pairs.get("eval.final_limit", tree["eval"]["final_limit"])} | pairs
    elif (folder / "run.lock.json").is_file() and "data.train" not in pairs:
        raise no_data_error(target, verb)
    else:
        tree = {
            "run": f"runs/{verb}-{folder.name.replace(':', '-')}",
            "method": "sft",
            "eval": {"limit": 200},
        }
        tree |= {"student": {}, "data": {"train": "diagrams"}}
    set_dotted(tree, "student.model", target)
    override(tree, pairs)
    return build_recipe(tree, name=verb)


def recipe_of_run(folder: Path) -> dict[str, Any]:
    """The recipe of a run folder, for judging its student: a method of the user's own plays no part in that."""
    tree = stored_in(str(folder), json.loads((folder / "recipe.json").read_text(encoding="utf-8")))
    if tree["method"] not in method_schemas():
        tree.pop(tree["method"], None)
        tree["method"] = "sft"
    return tree


def no_data_error(target: str, verb: str) -> StorageError:
    """S605 for a run of an earlier version's `vistill.distill`."""
    return StorageError(
        "S605",
        f"{target} does not say which data its run was made with",
        where=target,
        why="it holds no recipe.json; judged on other data, its accuracy would mean something else",
        fix=f"vistill {verb} {target} data.train=FILE.jsonl   or   data.train=diagrams",
    )

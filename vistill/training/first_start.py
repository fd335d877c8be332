"""What a run's first start wrote down, and what may be another now. Needs no torch."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vistill.errors import ConfigError, StorageError
from vistill.runs.folder import RunFolder
from vistill.runs.recipe_changes import compare_recipes, unused_folder
from vistill.runs.storage import read_json
from vistill.training.recipe import default_settings

#: 1: up to commit f223428, whose warm-up went above the peak where it was no whole number of steps.
FORMAT = 2
#: Accepted, a run of format 1 goes on with a warm-up that ends at the peak.
WARMUP = "train.schedule.warmup"


def read_lock(folder: RunFolder) -> dict[str, Any]:
    """The lock as it was written; empty where there is none."""
    if not folder.lock_file.exists():
        return {}
    return read_json(folder.lock_file)


def check_unmasked(folder: RunFolder, given: Collection[str] = ()) -> None:
    """S605 where `recipe.json` lacks a setting, because a secret in it was masked, and it is not given now."""
    hidden = [key for key in read_lock(folder).get("masked", []) if key not in given]
    if hidden:
        raise StorageError(
            "S605",
            f"recipe.json does not hold {hidden[0]} as the run had it: a secret in it was masked",
            where=str(folder.path),
            why="secrets are never written; with *** in its place the prompts or paths would be others",
            fix=f"vistill eval {folder.path} {' '.join(f'{key}=VALUE' for key in hidden)}",
            note="such a run cannot be replayed; keep secrets in the environment and out of settings",
        )


def check_recipe_changes(
    folder: RunFolder, earlier: Mapping[str, Any], tree: Mapping[str, Any], accept: Sequence[str]
) -> list[str]:
    """Keys of the recipe that changed since the first start and were accepted.

    Args:
        folder: of the run.
        earlier: its lock; empty where no step was taken yet.
        tree: the recipe of this start, without secrets.
        accept: changed schedule keys that are wanted.

    Raises:
        ConfigError: C201, something changed that may not change, or was not accepted.
    """
    if "recipe" not in earlier:
        return []
    before = earlier["recipe"]
    if "student" not in before:
        raise old_distill_error(folder)
    above = has_old_warmup(earlier, before)
    if above and WARMUP not in accept:
        raise old_warmup_error(before)
    changed = compare_recipes(before, tree, accept, default_settings(str(tree["method"])))
    return sorted({*changed, *([WARMUP] if above else [])})


def has_old_warmup(earlier: Mapping[str, Any], recipe: Mapping[str, Any]) -> bool:
    """Whether an earlier version took this run's warm-up above its peak; whole warm-ups were right there too."""
    if earlier.get("format", 1) >= FORMAT:
        return False
    settings = recipe.get("train", {})
    share, steps = settings.get("schedule", {}).get("warmup", 0.05), settings.get("steps")
    return not (steps and float(share * steps).is_integer())


def old_warmup_error(recipe: Mapping[str, Any]) -> ConfigError:
    """C201 for a run whose learning rate would change in the middle."""
    return ConfigError(
        "C201",
        "this run was started by an earlier version, whose learning rate warmed up above its peak",
        where=str(recipe.get("run")),
        why="there a warm-up of 3.2 steps ended at 1.25 times the peak; from here on it is int(share * steps) steps",
        fix=f"new run: run={unused_folder(str(recipe.get('run')))}   or continue knowingly: --accept train.schedule.warmup",
    )


def old_distill_error(folder: RunFolder) -> ConfigError:
    """C201 for a folder of `vistill.distill` from a version that wrote neither models nor prompts down."""
    return ConfigError(
        "C201",
        "this run was started by an earlier version, which did not write down its models and prompts",
        where=str(folder.path),
        why="nothing says whether the models and prompts handed in now are those it began with",
        fix=f"start a new run: out={unused_folder(str(folder.path))}",
        note="its checkpoints are ordinary model folders: vistill eval RUN/checkpoint-000123/student",
    )

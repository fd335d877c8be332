"""`run.lock.json`: what a run was started with. Every later start is compared with it, so no change goes unnoticed."""

import datetime
import hashlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
import xxhash
from torch import nn

from vistill.errors import ConfigError
from vistill.models.loading import VLM
from vistill.redaction import mask_secret_settings
from vistill.runs.folder import RunFolder, checkpoints_in
from vistill.runs.recipe_changes import flatten, unused_folder
from vistill.runs.storage import file_hash, replace_nonfinite, to_json
from vistill.training.first_start import FORMAT, check_recipe_changes, read_lock
from vistill.training.recipe import Recipe

PACKAGES = (
    "vistill",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "pillow",
    "numpy",
    "math-verify",
)
#: Students that a run of this process trains, with its folder: its checkpoints replace their weights on resume.
TRAINED_STUDENTS: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()


def lock_recipe(folder: RunFolder, recipe: Recipe, accept: Sequence[str]) -> None:
    """Compare the recipe with that of the run's first start, then write both `recipe.json` and `run.lock.json`.

    Raises:
        ConfigError: C201, something changed that may not change, or was not accepted.
    """
    tree = json.loads(to_json(recipe.to_dict()))  # without secrets, as it was written
    earlier = read_lock(folder) if folder.has_started() else {}
    accepted = check_recipe_changes(folder, earlier, tree, accept)
    for key in accepted:
        folder.event(f"accepted change of {key}")
    if "recipe" in earlier:
        log_version_changes(folder, earlier.get("versions", {}))
    start = {"at": utc_now(), "command": command_line(), "versions": package_versions()}
    record = {
        "format": FORMAT,
        "recipe": tree,
        "command": earlier.get("command", command_line()),
        "versions": earlier.get("versions", package_versions()),
        "machine": machine_facts(),
        "started": earlier.get("started", utc_now()),
        "starts": [*earlier.get("starts", []), start],
        "accepted": [*earlier.get("accepted", []), *accepted],
        "models": earlier.get("models", {}),
        "masked": masked_keys(recipe, tree),
    }
    folder.write_lock(record)
    folder.write("recipe.json", to_json(tree, indent=2))


def masked_keys(recipe: Recipe, tree: Mapping[str, Any]) -> list[str]:
    """Settings that `recipe.json` does not hold as they are, because a secret in them is masked."""
    written = flatten(tree)
    return [
        key
        for key, value in flatten(
            json.loads(json.dumps(replace_nonfinite(recipe.to_dict())))
        ).items()
        if value != written[key]
    ]


def log_version_changes(folder: RunFolder, before: Mapping[str, str]) -> None:
    """Say which packages are others than at the first start: they decide the last bits of every number."""
    here = package_versions()
    for name, old in before.items():
        if here.get(name, old) != old:
            folder.event(
                f"version of {name}: {old} at the first start, {here[name]} now; last bits may differ"
            )


def lock_models(folder: RunFolder, models: Mapping[str, VLM], reads_reference: bool) -> str:
    """Compare the models' weights with those of the first start, and write them down. Returns one hash of all.

    Raises:
        ConfigError: C202, a model is not the one this run began with.
    """
    lock = read_lock(folder)
    known: dict[str, Any] = lock.get("models", {}) if folder.has_started() else {}
    here = {role: hash_weights(vlm.model) for role, vlm in models.items()}
    for role, facts in here.items():
        before = known.get(role)
        if before is None:
            continue
        if before["dtype"] != facts["dtype"]:
            folder.event(
                f"the {role} is read in {facts['dtype']}, at the last start in {before['dtype']}"
            )
        elif before["hash"] != facts["hash"]:
            trained_here = role == "student" and TRAINED_STUDENTS.get(models[role].model) == str(
                folder.path.resolve()
            )
            replaced = trained_here and checkpoints_in(
                folder.path
            )  # else the run would begin with trained weights
            if not replaced or reads_reference:
                raise changed_weights_error(folder, role, models[role])
            here[role] = before
    folder.write_lock({**lock, "models": {**known, **here}})
    return hashlib.sha256(json.dumps(here, sort_keys=True).encode()).hexdigest()


def changed_weights_error(folder: RunFolder, role: str, vlm: VLM) -> ConfigError:
    """C202."""
    return ConfigError(
        "C202",
        f"the {role} is not the one this run began with: its weights are others",
        where=vlm.source,
        why="their hash differs from the one in run.lock.json, so from here on it would be another experiment",
        fix=f"load the {role} of the first start again, or start a new run: run={unused_folder(str(folder.path))}",
    )


def hash_weights(model: nn.Module) -> dict[str, str]:
    """xxh3-128 of all weights by name, in the precision they are held in."""
    digest, seen = xxhash.xxh3_128(), set()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.data_ptr() in seen:  # a tied head
            continue
        seen.add(tensor.data_ptr())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    dtype = next(model.parameters()).dtype
    return {"dtype": str(dtype).removeprefix("torch."), "hash": digest.hexdigest()}


def run_fingerprint(recipe: Recipe, models: str, rows: Path) -> str:
    """One hash of settings, models and rows: responses of another fingerprint are never taken."""
    parts = [recipe.fingerprint(), models, file_hash(rows) if rows.exists() else ""]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def command_line() -> str:
    """The command this process was started with, without the interpreter's path and without secrets."""
    words = ["vistill" if "vistill" in sys.argv[0] else Path(sys.argv[0]).name, *sys.argv[1:]]
    return mask_secret_settings(" ".join(words))


def utc_now() -> str:
    """The time in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def machine_facts() -> dict[str, str]:
    """Python, system and processor."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "cpu": platform.machine(),
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide numbers."""
    numbers = {}
    for name in PACKAGES:
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            numbers[name] = "not installed"
    return numbers

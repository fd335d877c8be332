"""`run.lock.json`: what a run was started with. Every later start is compared with it.

Settings that differ are C201, model weights that differ are C202. `vistill check --fast` reads the
lock too, so this module imports torch only where it hashes weights.
"""

import datetime
import hashlib
import itertools
import json
import platform
import re
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import xxhash

from vistill.data.sources import check_source_exists
from vistill.data.stored_prompts import PREFIX
from vistill.errors import ConfigError, StorageError, quote_command
from vistill.redaction import mask_secret_settings
from vistill.runs.chosen_student import resolve_model
from vistill.runs.folder import RunFolder, checkpoints_in
from vistill.runs.model_not_found import looks_like_hub_id, model_not_found_error
from vistill.runs.recipe_changes import compare_recipes, flatten, in_new_folder, unused_folder
from vistill.runs.storage import file_hash, read_json, replace_nonfinite, to_json
from vistill.training.kept_settings import kept_settings
from vistill.training.recipe import Recipe, default_settings

if TYPE_CHECKING:
    from torch import nn

    from vistill.models.loading import VLM

#: Format 1 (up to commit f223428): the warm-up exceeded the peak unless it was a whole number of
#: steps.
FORMAT = 2
#: When accepted, a run of format 1 continues with a warm-up that ends at the peak.
WARMUP = "train.schedule.warmup"
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
#: Students that a run of this process trains, with the run's folder. On resume the checkpoint
#: replaces their weights.
TRAINED_STUDENTS: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()


def read_lock(folder: RunFolder) -> dict[str, Any]:
    """Read the lock; empty if the run folder has none."""
    if not folder.lock_file.exists():
        return {}
    return read_json(folder.lock_file)


# the recipe


def lock_recipe(folder: RunFolder, recipe: Recipe, accept: Sequence[str]) -> None:
    """Compare the recipe with that of the first start, then write `recipe.json` and the lock.

    Raises:
        ConfigError: C201, a setting changed that may not change, or that was not accepted.
    """
    tree = json.loads(to_json(recipe.to_dict()))  # as written: secrets are masked
    earlier = read_lock(folder) if folder.has_started() else {}
    try:
        accepted = check_recipe_changes(folder, earlier, tree, accept)
    except ConfigError:
        check_changed_names(earlier["recipe"], recipe.located())
        raise
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
        "code": earlier.get("code", {}),
        "masked": masked_keys(recipe, tree),
        "kept": kept_settings(earlier),
    }
    folder.write_lock(record)
    folder.write("recipe.json", to_json(tree, indent=2))


def check_changed_names(before: Mapping[str, Any], recipe: Recipe) -> None:
    """D102 or M103 for a changed file or model that does not exist.

    It is misspelt: the way out is the right name, not a new run. `vistill.distill` has no names: it
    is given models and prompts.
    """
    if "student" not in before or recipe.data.train.startswith(PREFIX):
        return
    earlier = flatten(before)
    sets = {f"data.sets.{name}": one for name, one in recipe.data.sets.items()}
    for group, part in itertools.product({"data": recipe.data, **sets}.items(), ("train", "eval")):
        key, source = f"{group[0]}.{part}", getattr(group[1], part)
        is_plain = source and source != "diagrams" and not re.match(r"hf:|prompts:|\w+://", source)
        if source != earlier.get(key) and is_plain:
            check_source_exists(source, key)
    several = {f"teachers.{name}": one.model for name, one in recipe.teachers.items()}
    roles = {"student": recipe.student.model, "teacher": recipe.teacher.model, **several}
    for role, model in roles.items():
        if not model or model == earlier.get(f"{role}.model"):
            continue
        folder = resolve_model(model, role)
        if not looks_like_hub_id(folder) and not Path(folder).is_dir():
            raise model_not_found_error(model, role)


def check_recipe_changes(
    folder: RunFolder, earlier: Mapping[str, Any], tree: Mapping[str, Any], accept: Sequence[str]
) -> list[str]:
    """Return the keys that changed since the first start and were accepted.

    Args:
        folder: of the run.
        earlier: its lock; empty before the first step.
        tree: the recipe of this start, secrets masked.
        accept: schedule keys that may change.

    Raises:
        ConfigError: C201, a setting changed that may not change, or that was not accepted.
    """
    if "recipe" not in earlier:
        return []
    before = earlier["recipe"]
    if "student" not in before:
        raise old_distill_error(folder)
    old_warmup = has_old_warmup(earlier, before)
    if old_warmup and WARMUP not in accept:
        raise old_warmup_error(before)
    changed = compare_recipes(before, tree, accept, default_settings(str(tree["method"])))
    return sorted({*changed, *([WARMUP] if old_warmup else [])})


def has_old_warmup(earlier: Mapping[str, Any], recipe: Mapping[str, Any]) -> bool:
    """Whether an earlier version of vistill warmed this run's learning rate up above its peak.

    A warm-up of a whole number of steps was correct in that version too.
    """
    if earlier.get("format", 1) >= FORMAT:
        return False
    settings = recipe.get("train", {})
    share, steps = settings.get("schedule", {}).get("warmup", 0.05), settings.get("steps")
    return share > 0 and not (steps and float(share * steps).is_integer())


def old_warmup_error(recipe: Mapping[str, Any]) -> ConfigError:
    """C201 for a run whose learning rate would change in the middle."""
    new_run = in_new_folder(str(recipe.get("run")))
    return ConfigError(
        "C201",
        "this run was started by an earlier version, whose learning rate warmed up above its peak",
        where=str(recipe.get("run")),
        why="in that version a warm-up of 3.2 steps ended at 1.25 times the peak;"
        " now the warm-up takes int(share * steps) steps",
        fix=f"new run: {new_run}   or accept the change: --accept {WARMUP}",
    )


def old_distill_error(folder: RunFolder) -> ConfigError:
    """C201 for a `vistill.distill` folder of a version that stored neither models nor prompts."""
    return ConfigError(
        "C201",
        "this run was started by an earlier version, which did not store its models and prompts",
        where=str(folder.path),
        why="the folder does not say whether these models and prompts are those of the first start",
        fix=f"start a new run:   vistill.distill(..., out={unused_folder(str(folder.path))!r})",
        note="its checkpoints are model folders: vistill eval RUN/checkpoint-000123/student",
    )


def masked_keys(recipe: Recipe, tree: Mapping[str, Any]) -> list[str]:
    """Keys whose value in `recipe.json` differs from the run's, because a secret is masked."""
    written = flatten(tree)
    values = flatten(json.loads(json.dumps(replace_nonfinite(recipe.to_dict()))))
    return [key for key, value in values.items() if value != written[key]]


def check_unmasked(folder: RunFolder, given: Collection[str] = ()) -> None:
    """S605 if `recipe.json` lacks a masked setting and `given` does not supply it."""
    hidden = [key for key in read_lock(folder).get("masked", []) if key not in given]
    if hidden:
        raise StorageError(
            "S605",
            f"recipe.json does not hold the value of {hidden[0]}: a secret in it was masked",
            where=str(folder.path),
            why="secrets are never written; with *** in their place prompts or paths would differ",
            fix=quote_command("vistill", "eval", folder.path, *(f"{key}=VALUE" for key in hidden)),
            note="such a run cannot be replayed; keep secrets in the environment, not in settings",
        )


# the models


def lock_models(folder: RunFolder, models: "Mapping[str, VLM]", reads_reference: bool) -> str:
    """Compare the models' weights with those of the first start, and write their hashes.

    Returns one hash of all.

    Raises:
        ConfigError: C202, a model is not the one this run began with.
    """
    lock = read_lock(folder)
    known: dict[str, Any] = lock.get("models", {}) if folder.has_started() else {}
    hashes = {role: hash_weights(vlm.model) for role, vlm in models.items()}
    for role, entry in hashes.items():
        before = known.get(role)
        if before is None:
            continue
        if before["dtype"] != entry["dtype"]:
            folder.event(
                f"the {role} is read in {entry['dtype']}, at the last start in {before['dtype']}"
            )
        elif before["hash"] != entry["hash"]:
            in_training = role == "student" and TRAINED_STUDENTS.get(models[role].model) == str(
                folder.path.resolve()
            )
            # without a checkpoint the run would begin with trained weights
            is_restored = in_training and checkpoints_in(folder.path)
            if not is_restored or reads_reference:
                raise changed_weights_error(folder, role, models[role])
            hashes[role] = {key: before[key] for key in entry}
    written = {
        role: {**entry, "family": models[role].family.describe()} for role, entry in hashes.items()
    }
    folder.write_lock({**lock, "models": {**known, **written}})
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def changed_weights_error(folder: RunFolder, role: str, vlm: "VLM") -> ConfigError:
    """C202."""
    new_run = in_new_folder(folder.path)
    return ConfigError(
        "C202",
        f"the {role} is not the one this run began with: its weights differ",
        where=vlm.source,
        why="their hash differs from the one in run.lock.json;"
        " continuing would mix two experiments in one run",
        fix=f"load the {role} of the first start again, or start a new run: {new_run}",
    )


def hash_weights(model: "nn.Module") -> dict[str, str]:
    """xxh3-128 of all weights by name, in the dtype they are stored in."""
    import torch

    digest, seen = xxhash.xxh3_128(), set()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.data_ptr() in seen:  # a tied head
            continue
        seen.add(tensor.data_ptr())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    dtype = next(model.parameters()).dtype
    return {"dtype": str(dtype).removeprefix("torch."), "hash": digest.hexdigest()}


def run_fingerprint(recipe: Recipe, models: str, rows: Path, code: str = "") -> str:
    """One hash of settings, models, rows and plug-ins; it keys the journal's responses."""
    parts = [recipe.fingerprint(), models, file_hash(rows) if rows.exists() else ""]
    parts += [code] if code else []
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


# facts about a start


def log_version_changes(folder: RunFolder, before: Mapping[str, str]) -> None:
    """Log packages whose version changed: versions decide the last bits of every number."""
    current = package_versions()
    for name, old in before.items():
        if current.get(name, old) != old:
            folder.event(
                f"version of {name}: {old} at the first start, {current[name]} now;"
                " last bits may differ"
            )


def command_line() -> str:
    """The command of this process, without the interpreter's path and without secrets."""
    words = ["vistill" if "vistill" in sys.argv[0] else Path(sys.argv[0]).name, *sys.argv[1:]]
    return shlex.join(map(mask_secret_settings, words))


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

"""A run from models and prompts of the caller, written down so that the run folder says everything about itself.

`vistill.distill` has no recipe file, so one is made: settings as they are, models by where they can be loaded from,
prompts by a file in the run folder. With it `eval`, `replay`, `check` and `report` work on the folder as on any other.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils.hub import cached_file

from vistill.batch import Objective
from vistill.data.settings import DataSettings
from vistill.data.stored_prompts import PREFIX, write_prompts
from vistill.errors import VistillError
from vistill.models.loading import VLM, load_encoder
from vistill.models.save import save_vlm
from vistill.runs.chosen_student import resolve_model
from vistill.runs.folder import RunFolder
from vistill.runs.model_not_found import model_name
from vistill.training.build import method_name
from vistill.training.first_start import read_lock
from vistill.training.recipe import HERE, ModelSettings, Recipe
from vistill.training.setup import ProvidedInputs

#: Where the run folder keeps what cannot be loaded from anywhere else.
DATA_FOLDER, MODELS_FOLDER = "data", "start"


def make_recipe(
    out: Path, given: ProvidedInputs, objective: Objective, settings: Mapping[str, Any]
) -> Recipe:
    """The recipe of a run whose models and prompts were handed in.

    Args:
        out: the run folder.
        given: models and prompts.
        objective: the method.
        settings: further fields of a `Recipe`; the others have its defaults.
    """
    folder = RunFolder(out)
    files = {part: f"{PREFIX}{HERE}/{DATA_FOLDER}/{part}.jsonl" for part in ("train", "eval")}
    data = replace(
        settings.get("data", DataSettings()),
        train=files["train"],
        eval=files["eval"] if given.eval_prompts else "",
        max_image_tokens=image_limit(given.student),
    )
    teacher = (
        ModelSettings()
        if given.teacher is None
        else ModelSettings(model_location(folder, "teacher", given.teacher))
    )
    made_here = {
        "run": str(out),
        "student": ModelSettings(model_location(folder, "student", given.student)),
        "teacher": teacher,
        "method": method_name(objective),
        "knobs": changed_knobs(objective),
        "data": data,
    }
    return Recipe(**{**settings, **made_here})


def changed_knobs(objective: Objective) -> dict[str, Any]:
    """The knobs of a method that are not at their defaults, as a recipe would name them."""
    knobs: dict[str, Any] = {}
    for f in fields(objective):  # pyright: ignore[reportArgumentType]  every method is a dataclass
        value = getattr(objective, f.name)
        if f.default is MISSING or value != f.default:
            knobs[f.name] = value
    return knobs


def store_inputs(folder: RunFolder, recipe: Recipe, given: ProvidedInputs) -> None:
    """Write prompts, and models that cannot be loaded again from where they came from; once, before the first step."""
    if folder.has_started():
        return
    write_prompts(given.train_prompts, folder.path / DATA_FOLDER / "train.jsonl")
    if given.eval_prompts:
        write_prompts(given.eval_prompts, folder.path / DATA_FOLDER / "eval.jsonl")
    for role, model, vlm in (
        ("student", recipe.student, given.student),
        ("teacher", recipe.teacher, given.teacher),
    ):
        if vlm is not None and model.model == f"{HERE}/{MODELS_FOLDER}/{role}":
            save_vlm(vlm, folder.path / MODELS_FOLDER / role)


def model_location(folder: RunFolder, role: str, vlm: VLM) -> str:
    """Where a model can be loaded from: its source if that still holds these very weights, else the run folder."""
    here = f"{HERE}/{MODELS_FOLDER}/{role}"
    if folder.has_started():  # what lies in the folder may be of a start that failed
        known = read_lock(folder).get("recipe", {}).get(role, {})
        return (
            here
            if isinstance(known, Mapping) and known.get("model") == here
            else model_name(vlm.source)
        )
    return model_name(vlm.source) if matches_source(vlm) else here


def matches_source(vlm: VLM) -> bool:
    """Whether loading the model's source again would give these very weights and this very image grid."""
    try:
        place = local_model_folder(resolve_model(vlm.source))
        if place is None:
            return False
        encoder = load_encoder(place)
        limit = image_limit(vlm)
        if limit is not None:
            encoder.family.limit_image_tokens(limit)
        return encoder.family.image_grid() == vlm.family.image_grid() and has_same_weights(
            vlm, place
        )
    except (VistillError, OSError, ValueError, SafetensorError):
        return False


def local_model_folder(source: str) -> Path | None:
    """The folder behind a model: itself, or of a hub id the snapshot in the cache; nothing is downloaded."""
    if Path(source).is_dir():
        return Path(source)
    config = cached_file(
        source, "config.json", local_files_only=True, _raise_exceptions_for_missing_entries=False
    )
    return None if config is None else Path(config).parent


def has_same_weights(vlm: VLM, place: Path) -> bool:
    """Whether every weight is the one in the folder's safetensors files, read one after the other."""
    files = sorted(place.glob("*.safetensors"))
    weights: Mapping[str, torch.Tensor] = vlm.model.state_dict()
    tied = set(getattr(vlm.model, "_tied_weights_keys", None) or ())
    seen: set[str] = set()
    for file in files:
        with safe_open(file, framework="pt") as stored:  # pyright: ignore[reportPrivateImportUsage]
            for name in stored.keys():  # noqa: SIM118  it is no dictionary
                if name not in weights:
                    return False
                weight = weights[name].detach()
                if not torch.equal(stored.get_tensor(name).to(weight.dtype), weight.cpu()):
                    return False
                seen.add(name)
    return bool(files) and weights.keys() - seen <= tied


def image_limit(vlm: VLM) -> int | None:
    """Image tokens per picture under which the model was loaded; None where it is its own processor's limit."""
    grid = vlm.family.image_grid()
    try:
        own = load_encoder(resolve_model(vlm.source)).family.image_grid()
    except (VistillError, OSError, ValueError):
        return None
    if own == grid:
        return None
    return int(grid["max_pixels"]) // (int(grid["patch"]) * int(grid["merge"])) ** 2

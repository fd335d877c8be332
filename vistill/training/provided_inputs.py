"""The recipe and the stored inputs of a run whose caller passes in models and prompts.

`vistill.distill` has no recipe file, so this module makes one: settings as they are, models by the
place they can be loaded from, prompts as a file in the run folder. With it `eval`, `replay`,
`check` and `report` work on the folder as on any other.
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
from vistill.errors import ConfigError, VistillError
from vistill.models.adapters import (
    adapter_config,
    has_adapters,
    is_adapter_name,
    settings_of,
)
from vistill.models.loading import VLM, load_encoder
from vistill.models.save import save_vlm
from vistill.runs.chosen_student import resolve_model
from vistill.runs.folder import RunFolder
from vistill.runs.model_not_found import model_name
from vistill.runs.recipe_changes import flatten
from vistill.training.build import method_name
from vistill.training.recipe import (
    HERE,
    NamedTeacherSettings,
    Recipe,
    StudentSettings,
    TeacherSettings,
)
from vistill.training.run_lock import read_lock
from vistill.training.setup import ProvidedInputs
from vistill.views import ViewContext
from vistill.views.settings import ViewSettings

#: Folders inside the run folder, for prompts and for models that cannot be loaded from elsewhere.
DATA_FOLDER, MODELS_FOLDER = "data", "start"


def make_recipe(
    out: Path, given: ProvidedInputs, objective: Objective, settings: Mapping[str, Any]
) -> Recipe:
    """Make the recipe of a run whose models and prompts the caller passes in.

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
        max_image_tokens=image_token_limit(given.student),
    )
    teacher = (
        TeacherSettings()
        if given.teacher is None
        else TeacherSettings(model_location(folder, "teacher", given.teacher))
    )
    teachers = {
        name: NamedTeacherSettings(model_location(folder, f"teachers.{name}", vlm))
        for name, vlm in given.teachers.items()
    }
    from_inputs = {
        "run": str(out),
        "student": student_settings(model_location(folder, "student", given.student), given),
        "teacher": teacher,
        "teachers": teachers,
        "method": method_name(objective),
        "knobs": changed_knobs(objective),
        "data": data,
    }
    if isinstance(settings.get("views"), ViewContext):
        from_inputs["views"] = view_settings(settings["views"])
    return Recipe(**{**settings, **from_inputs})


def view_settings(context: ViewContext) -> ViewSettings:
    """The settings of a recipe behind the parameters of the views."""
    drawn = (context.degrade, context.thought, context.noise)
    return ViewSettings(context.pixel_share, context.mask_share, *drawn)  # pyright: ignore[reportArgumentType]


def student_settings(location: str, given: ProvidedInputs) -> StudentSettings:
    """The student of the recipe: with adapters, only these are trained."""
    vlm = given.student
    if not has_adapters(vlm.model):
        return StudentSettings(location)
    if not matches_base(vlm):
        raise ConfigError(
            "C101",
            "the weights below the student's adapters cannot be loaded again",
            where=vlm.source,
            why="a checkpoint holds adapters only, and names the model that they belong to",
            fix="load the student with its adapters from a folder or hub id, as docs/lora.md shows",
        )
    return StudentSettings(location, train="lora", lora=settings_of(vlm))


def matches_base(vlm: VLM) -> bool:
    """Whether loading the base of the adapters again gives the weights below them."""
    try:
        folder = local_model_folder(
            resolve_model(adapter_config(vlm.model).base_model_name_or_path)
        )
        return folder is not None and has_same_weights(vlm, folder)
    except (VistillError, OSError, ValueError, TypeError, SafetensorError):
        return False


def changed_knobs(objective: Objective) -> dict[str, Any]:
    """The knobs of a method that are not at their defaults, as a recipe names them."""
    knobs: dict[str, Any] = {}
    for f in fields(objective):  # pyright: ignore[reportArgumentType]  every method is a dataclass
        value = getattr(objective, f.name)
        if f.default is MISSING or value != f.default:
            knobs[f.name] = value
    return knobs


def store_inputs(folder: RunFolder, recipe: Recipe, given: ProvidedInputs) -> None:
    """Before the first step, write the prompts, and each model that its source does not hold."""
    if folder.has_started():
        return
    write_prompts(given.train_prompts, folder.path / DATA_FOLDER / "train.jsonl")
    if given.eval_prompts:
        write_prompts(given.eval_prompts, folder.path / DATA_FOLDER / "eval.jsonl")
    several = [(f"teachers.{n}", recipe.teachers[n], vlm) for n, vlm in given.teachers.items()]
    for role, model, vlm in (
        ("student", recipe.student, given.student),
        ("teacher", recipe.teacher, given.teacher),
        *several,
    ):
        if vlm is not None and model.model == f"{HERE}/{MODELS_FOLDER}/{role}":
            save_vlm(vlm, folder.path / MODELS_FOLDER / role)


def model_location(folder: RunFolder, role: str, vlm: VLM) -> str:
    """Where to load a model from: its source if that has the same weights, else the run folder."""
    in_run_folder = f"{HERE}/{MODELS_FOLDER}/{role}"
    if folder.has_started():  # the lock decides: a failed start may have left a model in the folder
        known = flatten(read_lock(folder).get("recipe", {}))
        is_stored = known.get(f"{role}.model") == in_run_folder
        return in_run_folder if is_stored else model_name(vlm.source)
    return model_name(vlm.source) if matches_source(vlm) else in_run_folder


def matches_source(vlm: VLM) -> bool:
    """Whether loading the model's source again gives the same weights and the same image grid."""
    if has_adapters(vlm.model):
        return False
    try:
        folder = local_model_folder(resolve_model(vlm.source))
        if folder is None:
            return False
        encoder = load_encoder(folder)
        limit = image_token_limit(vlm)
        if limit is not None:
            encoder.family.limit_image_tokens(limit)
        same_grid = encoder.family.image_grid() == vlm.family.image_grid()
        return same_grid and has_same_weights(vlm, folder)
    except (VistillError, OSError, ValueError, SafetensorError):
        return False


def local_model_folder(source: str) -> Path | None:
    """The folder of a model: the path itself, or a hub id's cached snapshot. Downloads nothing."""
    if Path(source).is_dir():
        return Path(source)
    config = cached_file(
        source, "config.json", local_files_only=True, _raise_exceptions_for_missing_entries=False
    )
    return None if config is None else Path(config).parent


def has_same_weights(vlm: VLM, folder: Path) -> bool:
    """Whether every weight equals the one in the folder's safetensors files, read one by one.

    Adapters do not count: they have a file of their own.
    """
    files = sorted(folder.glob("*.safetensors"))
    weights: Mapping[str, torch.Tensor] = {
        name.replace(".base_layer.", "."): weight
        for name, weight in vlm.model.state_dict().items()
        if not is_adapter_name(name)
    }
    tied = set(getattr(vlm.model, "_tied_weights_keys", None) or ())
    seen: set[str] = set()
    for file in files:
        with safe_open(file, framework="pt") as stored:  # pyright: ignore[reportPrivateImportUsage]
            for name in stored.keys():  # noqa: SIM118  safe_open is not a dictionary
                if name not in weights:
                    return False
                weight = weights[name].detach()
                if not torch.equal(stored.get_tensor(name).to(weight.dtype), weight.cpu()):
                    return False
                seen.add(name)
    return bool(files) and weights.keys() - seen <= tied


def image_token_limit(vlm: VLM) -> int | None:
    """Tokens per image that the model was loaded with; None if that is its processor's limit."""
    return vlm.family.image_token_limit

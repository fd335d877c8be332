"""Checks of what is passed to the functions of `vistill` in Python (C001, C002)."""

import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_type_hints

from vistill.batch import Objective
from vistill.data.set_settings import check_name
from vistill.data.settings import DataSettings
from vistill.errors import ConfigError, closest, quote_command, quote_setting
from vistill.evaluation.settings import EvalSettings
from vistill.models.loading import VLM
from vistill.python_fixes import INNER, argument, method_expression
from vistill.ranges import is_number, is_text
from vistill.registry import methods
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.recipe_changes import unused_folder
from vistill.training.recipe import Recipe
from vistill.training.settings import RewardSettings, SaveSettings, TrainSettings
from vistill.types import Prompt
from vistill.views import ViewContext
from vistill.views.settings import ViewSettings

#: Options of `distill` that are groups of settings, with the classes that each may have.
SETTINGS_OF_DISTILL: dict[str, tuple[type, ...]] = {
    "train": (TrainSettings,),
    "rollout": (RolloutSettings,),
    "save": (SaveSettings,),
    "evaluation": (EvalSettings,),
    "reward": (RewardSettings,),
    "views": (ViewSettings, ViewContext),
    "data": (DataSettings,),
}


def is_response(value: object) -> bool:
    """Whether a value is a text that a tokenizer reads."""
    return isinstance(value, str) and is_text(value)


def check_options(
    options: Mapping[str, object],
    known: Sequence[str],
    function: str = "distill",
    other_names: Mapping[str, str] | None = None,
) -> None:
    """C001 for a keyword that a function does not have: it would be ignored silently.

    Args:
        options: what was passed.
        known: the keywords that the function has.
        function: its name.
        other_names: keys of a recipe by the names of other trainers.
    """
    for name, value in options.items():
        if name in known:
            continue
        keys = keys_named(name) if other_names is not None and name != "eval" else []
        keys += [key] if (key := (other_names or {}).get(name)) and key not in keys else []
        why = f"known here: {', '.join(known)}"
        meant = "evaluation" if name == "eval" else next(iter(closest(name, known)), None)
        if keys:
            others = f"; also {', '.join(keys[1:])}" if keys[1:] else ""
            why = f"in a recipe it is {keys[0]}{others}; groups of a recipe are settings classes"
            fix = f"vistill.{function}(..., {argument(keys[0], value)})   in place of {name}="
        elif meant:
            fix = f"vistill.{function}(..., {meant}=...)   in place of {name}="
        else:
            fix = f"leave {name} out"
        raise ConfigError("C001", f'vistill.{function} has no option "{name}"', why=why, fix=fix)


def keys_named(name: str) -> list[str]:
    """The keys of groups of `distill` with this name, such as `train.lr` of `lr`."""
    keys = []
    for option, kinds in SETTINGS_OF_DISTILL.items():
        group = "eval" if option == "evaluation" else option
        hints = get_type_hints(kinds[0])
        inner = {key: hint for key, hint in hints.items() if dataclasses.is_dataclass(hint)}
        keys += [f"{group}.{name}"] if name in hints.keys() - inner.keys() else []
        keys += [
            f"{group}.{key}.{name}"
            for key, hint in inner.items()
            if f"{group}.{key}" in INNER and name in get_type_hints(hint)
        ]
    return keys


def check_model(model: object, name: str) -> None:
    """C002 for a model that is not loaded, such as its name."""
    if isinstance(model, VLM):
        return
    is_name = isinstance(model, (str, Path))
    raise ConfigError(
        "C002",
        f"{name} is a {type(model).__name__}, not a loaded model",
        why=f"{str(model)!r:.80}" if is_name else "it takes what vistill.load returns",
        fix=f"vistill.load({str(model)!r})" if is_name else "vistill.load(FOLDER_OR_HUB_ID)",
    )


def check_teachers(teacher: object) -> Mapping[str, VLM]:
    """Several teachers by name; none for one. C002 for anything but loaded models."""
    if teacher is None:
        return {}
    if not isinstance(teacher, Mapping):
        check_model(teacher, "teacher")
        return {}
    if not teacher:
        raise ConfigError(
            "C002",
            "teacher is an empty mapping",
            why="it has a loaded model for each name",
            fix='vistill.distill(student, {"math": vistill.load(FOLDER_OR_HUB_ID)}, ...)',
        )
    for name, vlm in teacher.items():
        check_name(str(name), "teacher")
        check_model(vlm, f"teacher[{name!r}]")
    return teacher


def check_method_argument(objective: object) -> None:
    """C002 for a method's name, or its class, in place of a method."""
    name = str(objective) if isinstance(objective, str) else ""
    if inspect.isclass(objective) and issubclass(objective, Objective):
        name = methods.name_of(objective) or ""
        fix = method_expression(name) if name else f"{objective.__name__}()"
    elif name:
        near = name if name in methods.builtin else next(iter(closest(name, methods.builtin)), "")
        fix = method_expression(near or "opd")
    else:
        return
    what = f'"{name:.80}" is the name of a method' if name else "this is the class of a method"
    why = "vistill.distill takes a method with its knobs"
    raise ConfigError("C002", f"{what}, not a method", why=why, fix=fix)


def check_distill_arguments(
    options: Mapping[str, object],
    known: Sequence[str],
    out: object,
    other_names: Mapping[str, str],
) -> None:
    """C001 or C002 for an option or a run folder that `distill` cannot use.

    Args:
        options: what was passed.
        known: the options that it has.
        out: the run folder.
        other_names: keys of a recipe by the names of other trainers.
    """
    check_options(options, known, other_names=other_names)
    check_option_types(options)
    check_folder(out)


def check_option_types(options: Mapping[str, object]) -> None:
    """C002 for an option of `distill` that is a group of settings in another form."""
    for name, kinds in SETTINGS_OF_DISTILL.items():
        value = options.get(name)
        if name not in options or isinstance(value, kinds):
            continue
        kind = f"vistill.{kinds[0].__name__}"
        fields = {f.name for f in dataclasses.fields(kinds[0])}
        named = value if isinstance(value, Mapping) and {*value} <= fields else {}
        values = ", ".join(f"{key}={given!r}" for key, given in named.items())
        raise ConfigError(
            "C002",
            f"{name} is a {type(value).__name__}, not a {kinds[0].__name__}",
            why="vistill.distill takes the groups of a recipe as settings of their class",
            fix=f"{kind}({values})",
        )
    if not callable(options.get("progress", print)) and options["progress"] is not None:
        raise ConfigError(
            "C002",
            f"progress is a {type(options['progress']).__name__}, not a function",
            why="it is called with each record",
            fix="pass a function, or leave progress out",
        )


def check_folder(out: object) -> None:
    """C002 for a run folder that is no path."""
    if not isinstance(out, (str, Path)):
        raise ConfigError(
            "C002",
            f"out is a {type(out).__name__}, not a folder",
            why="the run is written into it",
            fix='vistill.distill(..., out="runs/mine")',
        )


def check_source(source: object) -> str:
    """The name of a model; C002 for what is no name."""
    if isinstance(source, (str, Path)):
        return str(source)
    raise ConfigError(
        "C002",
        f"the source of a model is a {type(source).__name__}, not a name",
        why="it is a folder, a hub id or a run folder",
        fix="vistill.load(FOLDER_OR_HUB_ID)",
    )


def check_recipe(recipe: object, function: str) -> None:
    """C002 for a recipe that is neither loaded nor named; C004 for a run folder in its place.

    Args:
        recipe: what was passed.
        function: `train` or `evaluate`.
    """
    if isinstance(recipe, str | Path):
        is_run = function == "evaluate" and (Path(recipe) / "recipe.json").is_file()
        if is_run:
            raise ConfigError(
                "C004",
                f"{recipe} is a run folder, not a recipe",
                why="vistill.evaluate takes a recipe, which names the student and the data",
                fix="pass a recipe, such as recipe.yaml",
                note=f"{quote_command('vistill', 'eval', recipe)}   evaluates the run's student "
                "in a shell",
            )
    elif not isinstance(recipe, Recipe):
        raise ConfigError(
            "C002",
            f"the recipe is a {type(recipe).__name__}",
            where=f"vistill.{function}",
            why="it is a file, the name of a shipped recipe, or what vistill.load_recipe returns",
            fix="pass a file, such as recipe.yaml",
        )


def training_folder_error(run: str) -> ConfigError:
    """C201 for an evaluation that would overwrite the records of a training run."""
    folder = f"{run}-eval"
    return ConfigError(
        "C201",
        "this is the folder of a training run, and an evaluation would overwrite its record",
        where=run,
        why="evaluations.jsonl, data.json and result.json are those of the training",
        fix=quote_setting("run", unused_folder(folder) if Path(folder).exists() else folder),
        note=f"{quote_command('vistill', 'eval', run)}   judges the run's own student and writes "
        "next to it",
    )


def check_source_of_rows(
    source: object, image_folder: object, settings: Mapping[str, object]
) -> None:
    """C002 for a data source that is no name, and for a folder in place of the image column."""
    for name, value in (("source", source), ("image_folder", image_folder)):
        if not isinstance(value, str | Path):
            raise ConfigError(
                "C002",
                f"{name} is a {type(value).__name__}, not a name",
                where="vistill.load_prompts",
                why="a source is a file, hf:owner/name[split] or diagrams; a folder is a path",
                fix="pass a file, such as train.jsonl",
            )
    images = settings.get("images")
    if isinstance(images, str | Path) and (isinstance(images, Path) or Path(images).is_dir()):
        is_column = isinstance(images, str) and re.fullmatch(r"\w+", images)
        if not is_column:
            raise ConfigError(
                "C002",
                f"images is {str(images)!r:.60}, a folder",
                where="vistill.load_prompts",
                why="images names the column of the pictures",
                fix="pass the folder as image_folder, and as images the name of the column",
            )


def check_share(degraded: object) -> None:
    """C002 for a share of the side of an image that is not above 0 and at most 1."""
    if not is_number(degraded) or not 0 < float(str(degraded)) <= 1:
        raise ConfigError(
            "C002",
            f"degraded cannot be {degraded!r:.40}",
            why="it is the side of the reduced image as a share: above 0 and at most 1",
            fix="pass a share such as 0.1",
        )


def check_responses(prompts: Sequence[Prompt], responses: object) -> None:
    """C002 unless there is one response, a text, for each prompt."""
    if isinstance(responses, str):
        given = "one text"
    elif not isinstance(responses, Sequence):
        given = f"a {type(responses).__name__}"
    elif len(responses) != len(prompts):
        given = f"{len(responses)} responses"
    elif all(map(is_response, responses)):
        return
    else:
        other = next(response for response in responses if not is_response(response))
        given = f"a response that is no text, {other!r:.40},"
    raise ConfigError(
        "C002",
        f"{given} for {len(prompts)} prompts",
        why="each prompt is read with one response of its own",
        fix="vistill.visual_advantage(model, prompts, [RESPONSE, ...])   one for each prompt",
    )

"""The recipe: one strict file, typed, frozen, with errors that teach. Needs no torch."""

import copy
import dataclasses
import json
import re
import textwrap
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
from pydantic import ConfigDict, TypeAdapter, ValidationError

from vistill.errors import ConfigError, closest, suggest
from vistill.runs.recipe_changes import compare_recipes, flatten, key_class
from vistill.strict_yaml import line_of, parse_text, set_dotted, split_override
from vistill.training.recipe import ModelSettings, Recipe

__all__ = [
    "ModelSettings",
    "Recipe",
    "compare_recipes",
    "flatten",
    "key_class",
    "load_recipe",
    "load_stages",
]

SCHEMA_FILE = Path(__file__).parent / "schema" / "methods.json"
RECIPES = Path(__file__).parent / "recipes"


@cache
def method_schemas() -> dict[str, Any]:
    """The packaged knobs of every method."""
    return json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


@cache
def recipe_adapter() -> TypeAdapter[Recipe]:
    """Validation of the dataclasses; unknown keys are refused."""
    for kind in settings_types(Recipe):
        kind.__pydantic_config__ = ConfigDict(extra="forbid", strict=False)  # pyright: ignore[reportAttributeAccessIssue]
    return TypeAdapter(Recipe)


def settings_types(kind: type) -> list[type]:
    """A dataclass and every dataclass among its fields."""
    found = [kind]
    for hint in typing.get_type_hints(kind).values():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found += settings_types(hint)
    return found


def load_recipe(path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        path: a `.yaml` or `.toml` file, or the name of a shipped recipe.
        overrides: `["train.lr=2e-6"]` or `{"train.lr": 2e-6}`.

    Raises:
        ConfigError: C001 to C005, C101 to C103.
    """
    stages = load_stages(path, overrides)
    if len(stages) > 1:
        raise ConfigError(
            "C101",
            f"{path} has {len(stages)} stages",
            why=f"stages: {', '.join(stages)}",
            fix=f"vistill train {path}   runs them all",
        )
    return next(iter(stages.values()))


def load_stages(
    path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> dict[str, Recipe]:
    """A recipe with `stages:` as one recipe per stage, in order; a plain recipe is one stage named `run`.

    A stage is a name and the keys it changes. It writes into `run/NAME`; `{run}` in its values is the base folder.
    """
    file = find_recipe(path)
    text = read_recipe_text(file)
    tree = parse_text(text, file)
    pairs = (
        overrides.items()
        if isinstance(overrides, Mapping)
        else [split_override(o) for o in overrides]
    )
    override(tree, dict(pairs))
    stages = tree.pop("stages", None)
    if stages is None:
        return {"run": build_recipe(tree, text, file.name)}
    if not isinstance(stages, dict) or not stages:
        what = "stages: a mapping from names to the keys each changes"
        raise ConfigError(
            "C002", what, where=file.name, fix="stages: {first: {method: opd}, second: {}}"
        )
    made: dict[str, Recipe] = {}
    for name, changes in stages.items():
        branch = copy.deepcopy(tree)
        for key, value in flatten(changes or {}).items():
            set_dotted(
                branch,
                key,
                value.replace("{run}", str(tree["run"])) if isinstance(value, str) else value,
            )
        drop_other_methods(branch, tree)
        branch["run"] = f"{tree.get('run')}/{name}"
        try:
            made[name] = build_recipe(branch, text, file.name)
        except ConfigError as error:
            raise error_in_stage(error, name, flatten(changes or {})) from error
    return made


def error_in_stage(error: ConfigError, name: str, own: Mapping[str, Any]) -> ConfigError:
    """The same error of a stage. What a stage sets itself is mended in the stage: its own keys win."""
    mine = "|".join(re.escape(key) for key in own)
    fix = re.sub(rf"(?<![\w.])({mine})=", rf"stages.{name}.\1=", error.fix) if own else error.fix
    where = f"{error.where}, stage {name}"
    return ConfigError(error.code, error.what, where=where, why=error.why, fix=fix, note=error.note)


def override(tree: dict[str, Any], pairs: Mapping[str, Any]) -> list[str]:
    """Set keys in a recipe. Another `method` leaves the knobs of the file's own behind; returns whose they were.

    Whoever asks for a method by name asks for nothing of another's; knobs that are named here as well are kept.
    """
    asked = {key.split(".")[0] for key in pairs}
    others = [
        m for m in method_schemas() if m in tree and m not in asked and m != pairs.get("method")
    ]
    left = (
        others
        if "method" in pairs and pairs["method"] in method_schemas() and "stages" not in tree
        else []
    )
    for method in left:
        del tree[method]
    for key, value in pairs.items():
        set_dotted(tree, key, value)
    return left


def drop_other_methods(branch: dict[str, Any], base: Mapping[str, Any]) -> None:
    """Knobs of other methods that stand in the shared part do not concern this stage."""
    for method in method_schemas():
        if method != branch.get("method") and method in base:
            branch.pop(method, None)


def find_recipe(path: str | Path) -> Path:
    """The file itself, or a shipped recipe of that name."""
    file = Path(path)
    shipped = [RECIPES / file.name, Path(__file__).parent.parent / "recipes" / file.name]
    for candidate in (file, *shipped):
        if candidate.is_file():
            return candidate
    known = sorted({p.name for folder in shipped for p in folder.parent.glob("*.yaml")})
    meant = closest(file.stem, [Path(k).stem for k in known])
    raise ConfigError(
        "C004",
        f'recipe "{path}" does not exist',
        why="\n".join(
            textwrap.wrap(f"shipped recipes: {', '.join(known)}", 110, break_on_hyphens=False)
        ),
        fix=f"{meant[0]}.yaml   in place of {path}"
        if meant
        else "vistill init va-opd   writes a commented recipe",
    )


def read_recipe_text(file: Path) -> str:
    """A recipe's text (C003 where it is none)."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            "C003",
            "the recipe is not UTF-8 text",
            where=file.name,
            why=str(error),
            fix=f"iconv -f latin1 -t utf-8 {file.name} > utf8.yaml",
        ) from error


def build_recipe(tree: dict[str, Any], text: str = "", name: str = "recipe") -> Recipe:
    """Validate a tree of values."""
    tree = dict(tree)
    method = tree.get("method")
    schemas = method_schemas()
    if method not in schemas:
        raise ConfigError(
            "C102",
            f'unknown method "{method}"' if method else "the recipe names no method",
            where=location_of(text, name, ("method",)),
            why=f"methods: {', '.join(schemas)}   {suggest(str(method), list(schemas))}".rstrip(),
            fix="method=va_opd",
        )
    knobs = tree.pop(method, {}) or {}
    for other in schemas:
        if other != method and other in tree:
            raise ConfigError(
                "C101",
                f'knobs of "{other}", but the method is "{method}"',
                where=location_of(text, name, (other,)),
                why="a knob belongs to the method that uses it",
                fix=f"method={other}   or remove the block {other}: from the recipe",
            )
    check_knobs(method, knobs, schemas[method], text, name)
    try:
        recipe = recipe_adapter().validate_python({**tree, "knobs": knobs})
    except ValidationError as error:
        raise translate_validation_error(error, tree, text, name) from error
    check_together(recipe, schemas[method], text, name)
    return recipe


def location_of(text: str, name: str, path: tuple[str, ...]) -> str:
    """`recipe.yaml:14`."""
    line = line_of(text, path) if text else None
    return f"{name}:{line}" if line else name


def check_knobs(method: str, knobs: Any, schema: dict[str, Any], text: str, name: str) -> None:
    """Validate the method's block against the packaged schema."""
    if not isinstance(knobs, dict):
        what, fix = (
            f'"{method}" must be a group of knobs',
            f"leave {method}: out; its knobs: vistill explain {method}",
        )
        raise ConfigError("C002", what, where=location_of(text, name, (method,)), fix=fix)
    known = list(schema["properties"])
    for key in knobs:
        if key not in known:
            raise unknown_key_error(
                f"{method}.{key}", known, location_of(text, name, (method, key)), knobs[key]
            )
    for error in jsonschema.Draft202012Validator(schema).iter_errors(knobs):
        key = ".".join(str(p) for p in error.absolute_path)
        raise ConfigError(
            "C002",
            f"{method}.{key}: {error.message}",
            where=location_of(text, name, (method, key)),
            why=str(schema["properties"].get(key, {}).get("description", "")),
            fix=f"{method}.{key}={json.dumps(schema['properties'][key]['default'])}",
        )


#: Names other trainers taught, and ours.
SYNONYMS = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "num_generations": "per_prompt",
    "batch_size": "prompts_per_step",
    "max_grad_norm": "clip_norm",
    "max_completion_length": "max_new_tokens",
}


def unknown_key_error(full: str, known: Sequence[str], where: str, value: Any) -> ConfigError:
    """C001 with a suggestion."""
    group, dot, key = full.rpartition(".")
    meant = [SYNONYMS[key]] if SYNONYMS.get(key) in known else closest(key, known)
    fix = (
        f"{group}{dot}{meant[0]}={format_value(value)}   in place of {full}"
        if meant
        else f"leave {full} out"
    )
    hint = f'   did you mean "{meant[0]}"?' if meant else ""
    why = f"known here: {', '.join(known)}{hint}"
    return ConfigError("C001", f'unknown key "{full}"', where=where, why=why, fix=fix)


def translate_validation_error(
    error: ValidationError, tree: Mapping[str, Any], text: str, name: str
) -> ConfigError:
    """The first pydantic error in our words."""
    first = error.errors()[0]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, ConfigError):
        key = (*(str(p) for p in first["loc"]), inner.what.split(" ")[0])
        fix = ".".join((*key[:-1], inner.fix))
        return ConfigError(
            inner.code,
            ".".join((*key[:-1], inner.what)),
            where=location_of(text, name, key),
            why=inner.why,
            fix=fix,
        )
    path = tuple(
        str(p)
        for p in first["loc"]
        if not str(p).startswith(("constrained", "literal", "function"))
    )
    where = location_of(text, name, path)
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = [f.name for f in dataclasses.fields(settings_class_of(path)) if f.name != "knobs"]
        return unknown_key_error(".".join(path), known, where, first.get("input"))
    if first["type"] in ("missing", "missing_argument"):
        return ConfigError(
            "C002", f'"{".".join(path)}" is missing', where=where, fix=f"{'.'.join(path)}=VALUE"
        )
    if not path:
        return ConfigError(
            "C003",
            "the recipe holds characters that are no text",
            where=name,
            why="half a surrogate pair, as an escape in a quoted key leaves it",
            fix="write the key anew in plain letters",
        )
    return ConfigError(
        "C002",
        f"{'.'.join(path)}: {first['msg'].lower()}",
        where=where,
        why=f"got {first.get('input')!r}",
        fix=f"{'.'.join(path)}={format_default(path)}",
        note="every key stands in docs/configuration.md",
    )


def settings_class_of(path: Sequence[str]) -> Any:
    """The dataclass that holds a key."""
    kind: Any = Recipe
    for part in path[:-1]:
        kind = typing.get_type_hints(kind).get(part, kind)
    return kind


def format_default(path: Sequence[str]) -> str:
    """A key's default as it would be typed; VALUE where it has none."""
    default = next(
        (f.default for f in dataclasses.fields(settings_class_of(path)) if f.name == path[-1]),
        dataclasses.MISSING,
    )
    return "VALUE" if default is dataclasses.MISSING else format_value(default)


def format_value(value: Any) -> str:
    """A value as it is typed behind `key=`."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def check_together(recipe: Recipe, schema: Mapping[str, Any], text: str, name: str) -> None:
    """Combinations that cannot be (C101, C103)."""
    switch = "rollout_weights" if "rollout_weights" in schema["properties"] else None
    siblings = "siblings" in schema["x-needs"] and recipe.knobs.get("rollout_weights", True)
    if siblings and recipe.rollout.per_prompt == 1:
        purpose = f"   or, on purpose,   {recipe.method}.{switch}=false" if switch else ""
        raise ConfigError(
            "C103",
            f"rollout.per_prompt = 1, but {recipe.method} weighs siblings of one prompt against each other",
            where=location_of(text, name, ("rollout", "per_prompt")),
            why="with one rollout every weight is 1 and every advantage 0",
            fix=f"rollout.per_prompt=4{purpose}",
        )
    asks_teacher = schema["x-needs-teacher"] or "teacher" in (
        recipe.knobs.get("responses"),
        schema["x-writer"],
    )
    if asks_teacher and not recipe.teacher.model:
        raise ConfigError(
            "C101",
            f"{recipe.method} needs a teacher",
            where=name,
            fix="teacher.model=FOLDER_OR_HUB_ID",
        )
    if recipe.version != 1:
        raise ConfigError(
            "C002", f"version {recipe.version} is unknown", where=name, fix="version=1"
        )

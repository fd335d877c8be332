"""The recipe: one strict file, typed, frozen, with errors that teach. Needs no torch."""

import copy
import dataclasses
import itertools
import json
import re
import shlex
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from vistill.data.set_settings import check_sets_left
from vistill.errors import ConfigError, VistillError, closest, quote_command, quote_setting
from vistill.objectives.schema import MethodSchemas
from vistill.ranges import accepts_text, fits, schemas_of, typed
from vistill.recipe_files import find_recipe, read_recipe_text, shipped_recipes
from vistill.registry import KINDS, PLUGIN_NOTE, load_plugins, methods, way_back
from vistill.runs.recipe_changes import compare_recipes, flatten, key_class
from vistill.schema import KEYS_OF_NAMES, METHODS_FILE, NAMING_KEYS, is_group, key_info, keys_of
from vistill.schema.check import (
    PYTHON_OVERRIDES,
    Source,
    checked_knobs,
    missing_key,
    other_knobs_error,
    settings_from,
    wrong_value,
)
from vistill.strict_yaml import fill_word, parse_text, parts_of, read_value, set_dotted, split_pair
from vistill.training.recipe import ModelSettings, Recipe

__all__ = [
    "ModelSettings",
    "Recipe",
    "compare_recipes",
    "find_recipe",
    "flatten",
    "key_class",
    "load_recipe",
    "load_stages",
    "read_recipe_text",
    "shipped_recipes",
    "split_override",
    "split_overrides",
]

#: Keys whose text may have several lines.
WORDINGS = ("data.template", "data.response_template", "data.system", "rollout.reopen")


@cache
def method_schemas() -> MethodSchemas:
    """The knobs of every method that can be named, packaged and of plug-ins."""
    reserved = [field.name for field in dataclasses.fields(Recipe)]
    return MethodSchemas(json.loads(METHODS_FILE.read_text(encoding="utf-8")), reserved)


def all_keys(*used: str) -> dict[str, dict[str, Any]]:
    """Every group and key of a recipe by its dotted name, with its schema.

    Args:
        used: methods, or keys of their blocks. Only these plug-ins are asked for their knobs, so
            that a recipe imports none that it does not name.
    """
    schemas = method_schemas()
    named = dict.fromkeys(parts_of(key)[0] for key in used)
    plugins = [name for name in named if name in schemas and name not in schemas.reserved]
    return keys_of({**schemas.packaged, **{name: schemas[name] for name in plugins}})


def settings_types(kind: type) -> list[type]:
    """A dataclass and every dataclass among its fields."""
    kinds = [kind]
    for hint in typing.get_type_hints(kind).values():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            kinds += settings_types(hint)
    return kinds


def load_recipe(
    path: str | Path,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    plugins: Sequence[str | Path] = (),
) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        path: a `.yaml` or `.toml` file, or the name of a shipped recipe.
        overrides: `["train.lr=2e-6"]` or `{"train.lr": 2e-6}`.
        plugins: files of your own that are executed first. The recipe can name what they register.

    Raises:
        ConfigError: C001 to C005, C101 to C103, C105, C106.
    """
    load_plugins(plugins)
    stages = load_stages(path, overrides)
    if len(stages) > 1:
        raise ConfigError(
            "C101",
            f"{path} has {len(stages)} stages",
            why=f"stages: {', '.join(stages)}",
            fix=f"{quote_command('vistill', 'train', path)}   runs them all",
        )
    return next(iter(stages.values()))


def load_stages(
    path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> dict[str, Recipe]:
    """The stages of a recipe in order, each a recipe; a plain recipe is one stage named `run`.

    A stage is a name and the keys it changes. It writes into `run/NAME`; `{run}` in its values, and
    in the models of the shared part, is the base folder.
    """
    if not isinstance(path, str | Path):
        what = f"the recipe is a {type(path).__name__}, not a file"
        why = "a recipe is a file, or the name of a shipped one"
        raise ConfigError("C002", what, why=why, fix="pass a file, such as recipe.yaml")
    file = find_recipe(path)
    text = read_recipe_text(file)
    tree = parse_text(text, file)
    is_mapping = isinstance(overrides, Mapping)
    pairs = dict(overrides) if is_mapping else split_overrides(overrides)
    origins = dict.fromkeys(pairs, PYTHON_OVERRIDES if is_mapping else "command line")
    override(tree, pairs)
    stages = tree.pop("stages", None)
    if stages is None:
        return {"run": build_recipe(tree, text, file, overrides=origins)}
    check_stages(stages, tree, Source(text, file, all_keys()))
    fill_word(tree, "model", "{run}", tree["run"])
    recipes: dict[str, Recipe] = {}
    for name, changes in stages.items():
        own = own_keys(changes)
        branch = copy.deepcopy(tree)
        for key, value in own.items():
            set_dotted(
                branch,
                key,
                value.replace("{run}", tree["run"]) if isinstance(value, str) else value,
            )
        drop_other_methods(branch, tree)
        branch["run"] = f"{tree['run']}/{name}"
        own_origins = {
            key.removeprefix(f"stages.{name}."): origin
            for key, origin in origins.items()
            if key not in own
        }
        own_origins |= {k: o for k, o in origins.items() if k.startswith(f"stages.{name}.")}
        with naming_stage(name, own):
            recipes[name] = build_recipe(branch, text, file, overrides=own_origins, stage=name)
    return recipes


def check_stages(stages: Any, tree: Mapping[str, Any], source: Source) -> None:
    """C002 where `stages:` is no mapping from names to keys, or the recipe has no `run`."""
    good = (
        isinstance(stages, dict)
        and stages
        and all(isinstance(c, dict | None) for c in stages.values())
    )
    if not good:
        what = "stages: a mapping from names to the keys each changes"
        where, fix = source.place(("stages",)), "stages: {first: {method: opd}, second: {}}"
        raise ConfigError("C002", what, where=where, fix=fix)
    if "run" not in tree:
        raise missing_key(("run",), source)
    if not fits(schemas_of(Recipe)["run"], tree["run"]):
        raise wrong_value(("run",), tree["run"], source)


def own_keys(changes: Mapping[str, Any] | None, prefix: str = "") -> dict[str, Any]:
    """The keys that a stage sets, dotted. A group without keys changes nothing."""
    flat: dict[str, Any] = {}
    for key, value in (changes or {}).items():
        name = f"{prefix}{key}"
        group = is_group(key_info(all_keys(name), name))
        if isinstance(value, Mapping) and (group or value):
            flat |= own_keys(value, f"{name}.")
        elif value is not None or not group:
            flat[name] = value
    return flat


def split_override(text: str) -> tuple[str, Any]:
    r"""`train.lr=2e-6` to key and value.

    The value is read as YAML, as in a file. The value of a key that takes text is text as it
    stands, braces, colons and all, unless it is in quotes; in wordings (`data.template`,
    `data.system`, ...) `\n` is a line break.

    Raises:
        ConfigError: C005, not of the form key=value, or a value that is not YAML.
    """
    key, value = split_pair(text)
    name = re.sub(r"^stages\.[^.]+\.", "", key)
    info = key_info(all_keys(name), name)
    in_quotes = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    if not accepts_text(info) or in_quotes or (value == "null" and fits(info, None)):
        default = typed(info.get("default", "VALUE"))
        try:
            return key, read_value(text, key, value, quote_setting(key, default))
        except ConfigError:
            if info:
                raise
            return key, value  # of an unknown key, which is an error of its own
    generic = re.sub(r"(^|\.)data\.sets\.\w+\.", r"\1data.", key)
    return key, value.replace("\\n", "\n") if generic.endswith(WORDINGS) else value


def split_overrides(words: Sequence[str]) -> dict[str, Any]:
    """All overrides of a command line.

    Raises:
        ConfigError: C005, as `split_override`; of `train.lr 1e-5` the fix has the missing sign.
    """
    if isinstance(words, str):
        what = f"overrides are the text {words!r:.60}"
        fix = f"vistill.train(RECIPE, [{words!r}])"
        raise ConfigError("C005", what, why="they are a list of texts, or a mapping", fix=fix)
    for index, key in enumerate(words):
        value = next((word for word in words[index + 1 :] if word != "="), "")
        if re.fullmatch(r"[a-z_][\w.]*", key) and value and "=" not in value:
            between = " = " if "=" in words[index + 1 : index + 2] else " "
            fix = f"{quote_setting(key, value)}   in place of {key}{between}{shlex.quote(value)}"
            what = f'"{key}" has a space in place of ='
            raise ConfigError("C005", what, where="command line", fix=fix)
        check_quoted(words, index)
    return dict(split_override(word) for word in words)


def check_quoted(words: Sequence[str], index: int) -> None:
    """C005 where the words after a setting are the rest of its value: it has spaces."""
    key, equals, _ = words[index].partition("=")
    rest = list(itertools.takewhile(lambda word: "=" not in word, words[index + 1 :]))
    name = re.sub(r"^stages\.[^.]+\.", "", key)
    if equals and rest and accepts_text(key_info(all_keys(name), name)):
        text = " ".join([words[index], *rest])
        fix = f"{shlex.quote(text)}   in place of {text}"
        what = f'the value of "{key}" has a space and no quotes: {text}'
        raise ConfigError("C005", what, where="command line", fix=fix)


def keys_of_stages(recipe: str | Path, overrides: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """By stage: the keys that it sets itself; empty for a recipe without stages."""
    file = find_recipe(recipe)
    tree = parse_text(read_recipe_text(file), file)
    override(tree, split_overrides(overrides))
    return {name: tuple(own_keys(changes)) for name, changes in (tree.get("stages") or {}).items()}


@contextmanager
def naming_stage(name: str, keys: Collection[str] | None) -> Iterator[None]:
    """Name the stage in an error that is raised inside; its fix sets the keys of the stage there.

    Args:
        name: of the stage.
        keys: that the stage sets itself; None for a recipe without stages.
    """
    try:
        yield
    except VistillError as error:
        if keys is not None and error.fix:
            in_stage(error, name, keys)
        raise


def in_stage(error: VistillError, name: str, keys: Collection[str]) -> None:
    """Name the stage in an error. The fix of a key that the stage sets is in the stage."""
    mine = "|".join(re.escape(key) for key in keys)
    if mine:
        error.fix = re.sub(rf"(?<![\w.])({mine})=", rf"stages.{name}.\1=", error.fix)
    error.where = f"{error.where}, stage {name}".removeprefix(", ")
    error.args = (error.render(),)


def override(tree: dict[str, Any], pairs: Mapping[str, Any]) -> list[str]:
    """Set keys in a recipe. Another `method` drops the knobs of the file's own; returns whose.

    Knobs of another method are kept only where `pairs` names them too.
    """
    asked = {parts_of(key)[0] for key in pairs}
    others = [
        m for m in method_schemas() if m in tree and m not in asked and m != pairs.get("method")
    ]
    known = str(pairs.get("method")) in method_schemas()
    left = others if known and "stages" not in tree else []
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


def build_recipe(
    tree: dict[str, Any],
    text: str = "",
    name: str | Path = "recipe",
    started: str = "",
    overrides: Mapping[str, str] | None = None,
    stage: str = "",
) -> Recipe:
    """Validate a tree of values.

    Args:
        tree: the recipe's keys.
        text: the file it was read from, for line numbers.
        name: the file, or its name for messages where it is not on disk.
        started: the run folder whose plug-ins are meant; by default the `run` of the tree.
        overrides: keys that do not come from the file, with where they come from, for messages.
        stage: the stage of the file that the tree is of.

    Raises:
        ConfigError: C001, C002, C101 to C103, C105, C106.
    """
    tree, method = dict(tree), tree.get("method")
    source = Source(text, name, all_keys(str(method)), overrides or {}, stage)
    schemas = method_schemas()
    if not isinstance(method, str) or method not in schemas:
        raise unknown_method(str(method or ""), str(tree.get("run")), source.place(("method",)))
    block = tree.pop(method, None)
    for other in schemas:
        if other != method and other in tree:
            raise other_knobs_error(other, method, source)
    knobs = checked_knobs(block, schemas[method], method, source)
    try:
        recipe = settings_from(Recipe, tree, (), source, {"knobs": knobs})
    except ConfigError as error:
        raise with_way_back(error, tree, started or str(tree.get("run"))) from error
    check_sets_left(tree.get("data") or {}, source.place(("data", "sets")))
    check_together(recipe, schemas.with_knobs(method, recipe.knobs), source)
    return recipe


def unknown_method(method: str, run: str, where: str) -> ConfigError:
    """C102; where the run folder says which plug-in it was, with the command that gives it."""
    again = way_back(run, f"methods.{method}")
    near = closest(method, methods)
    fix = again or f"method={near[0] if near else 'va_opd'}"
    return methods.unknown(method, where, fix, PLUGIN_NOTE if again else "")


def with_way_back(error: ConfigError, tree: Mapping[str, Any], run: str) -> ConfigError:
    """C105 with the command that gives the plug-in, where the run folder says which it was."""
    if error.code != "C105":
        return error
    values = flatten(tree)
    names = [(kind, values.get(key)) for key, kind in NAMING_KEYS.items()]
    for key, kind in KEYS_OF_NAMES.items():
        names += [
            (kind, name.removeprefix(f"{key}.")) for name in values if name.startswith(f"{key}.")
        ]
    for kind, name in names:
        if isinstance(name, str) and name not in KINDS[kind]:
            again = way_back(run, f"{kind}.{name}")
            if again:
                parts = {"where": error.where, "why": error.why, "note": PLUGIN_NOTE}
                return ConfigError(error.code, error.what, fix=again, **parts)
            return error
    return error


def check_together(recipe: Recipe, schema: Mapping[str, Any], source: Source) -> None:
    """Combinations that cannot be (C101, C103)."""
    switch = "rollout_weights" if "rollout_weights" in schema["properties"] else None
    siblings = "siblings" in schema["x-needs"] and recipe.knobs.get("rollout_weights", True)
    if siblings and recipe.rollout.per_prompt == 1:
        purpose = f"   or, on purpose,   {recipe.method}.{switch}=false" if switch else ""
        raise ConfigError(
            "C103",
            f"rollout.per_prompt = 1, but {recipe.method} weighs siblings of one prompt against "
            "each other",
            where=source.place(("rollout", "per_prompt")),
            why="with one rollout every weight is 1 and every advantage 0",
            fix=f"rollout.per_prompt=4{purpose}",
        )
    asks_teacher = schema["x-needs-teacher"] or "teacher" in (
        recipe.knobs.get("responses"),
        schema["x-writer"],
    )
    if asks_teacher and not recipe.teacher.model and not recipe.teachers:
        what, fix = f"{recipe.method} needs a teacher", "teacher.model=FOLDER_OR_HUB_ID"
        raise ConfigError("C101", what, where=source.name, fix=fix)

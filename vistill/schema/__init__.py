"""JSON schema of the whole recipe, from packaged files. Needs no torch and no settings class.

`settings.json` holds every group and key, `methods.json` the knobs of every method. Both are
generated from the dataclasses (`python -m vistill.schema.generate`,
`python -m vistill.objectives.schema`).
"""

import copy
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from vistill.ranges import values_of
from vistill.registry import KINDS

SETTINGS_FILE = Path(__file__).parent / "settings.json"
METHODS_FILE = Path(__file__).parent / "methods.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
#: Keys that name something of a registry.
NAMING_KEYS = {
    "rollout.engine": "engines",
    "eval.checker": "checkers",
    "eval.task": "tasks",
    "reward.checker": "checkers",
    "views.thought": "thoughts",
}
#: The key whose own keys are names of a registry.
KEYS_OF_NAMES = {"reward.extra": "rewards"}
#: Keys that only the recipe as a whole has.
REQUIRED = ("run", "student", "method")


@cache
def settings_schema() -> dict[str, Any]:
    """The packaged schema of every group and key, knobs of methods excepted."""
    return json.loads(SETTINGS_FILE.read_text(encoding="utf-8"))


def knobs_schema(name: str, method: Mapping[str, Any]) -> dict[str, Any]:
    """The block of a method: its knobs, without what only the package itself reads."""
    papers = settings_schema()["x-papers"]
    knobs = dict(method["properties"])
    for knob, info in knobs.items():
        if f"{name}.{knob}" in papers:
            knobs[knob] = {**info, "x-papers": papers[f"{name}.{knob}"]}
    kept = {key: value for key, value in method.items() if not key.startswith("x-")}
    return {**kept, "type": ["object", "null"], "properties": knobs}


def recipe_schema(methods: Mapping[str, Any]) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe file.

    Args:
        methods: the schema of every method's knobs, by name.
    """
    settings = with_names(settings_schema()["properties"])
    blocks = {name: knobs_schema(name, method) for name, method in methods.items()}
    named = {**settings["method"], "enum": list(methods)}
    named.pop("type")
    definitions = {name: info for name, info in settings.items() if "properties" in info} | blocks
    keys = {
        name: {"$ref": f"#/$defs/{name}"} if name in definitions else info
        for name, info in settings.items()
    }
    keys |= {"method": named} | {name: {"$ref": f"#/$defs/{name}"} for name in blocks}
    return {
        "$schema": DIALECT,
        "title": "vistill recipe",
        "description": settings_schema()["description"],
        "type": "object",
        "additionalProperties": False,
        "properties": keys | {"stages": stages_schema()},
        **required_schema(),
        "$defs": definitions | {"stage": stage_schema(keys)},
    }


def with_names(groups: Mapping[str, Any]) -> dict[str, Any]:
    """The groups, where keys that name something accept the names of this process."""
    result = copy.deepcopy(dict(groups))
    for key, kind in NAMING_KEYS.items():
        group, _, name = key.partition(".")
        result[group]["properties"][name] |= names_schema(kind)
    for key, kind in KEYS_OF_NAMES.items():
        group, _, name = key.partition(".")
        result[group]["properties"][name]["propertyNames"] = names_schema(kind)
    return result


def names_schema(kind: str) -> dict[str, Any]:
    """A name of a registry, or `module:attribute`."""
    return {"anyOf": [{"enum": KINDS[kind].names()}, {"pattern": r"^[\w.]+:[\w.]+$"}]}


def stages_schema() -> dict[str, Any]:
    """`stages:`, the runs of a recipe that trains several in order."""
    return {
        "description": "Runs in order: a name and the keys that each changes. Stage NAME writes "
        "into run/NAME; `{run}` in its values is the base folder.",
        "type": ["object", "null"],
        "minProperties": 1,
        "additionalProperties": {"$ref": "#/$defs/stage"},
    }


def stage_schema(keys: Mapping[str, Any]) -> dict[str, Any]:
    """One stage: any keys of the recipe."""
    return {
        "description": "The keys that this stage changes.",
        "type": ["object", "null"],
        "additionalProperties": False,
        "properties": dict(keys),
    }


def required_schema() -> dict[str, Any]:
    """A recipe names folder, student and method; with stages, each may name the last two."""
    in_stages = {
        key: {
            "properties": {
                "stages": {"additionalProperties": {"type": "object", "required": [key]}}
            }
        }
        for key in REQUIRED[1:]
    }
    either = [{"anyOf": [{"required": [key]}, there]} for key, there in in_stages.items()]
    has_stages = {"required": ["stages"], "properties": {"stages": {"type": "object"}}}
    return {
        "required": ["run"],
        "if": has_stages,
        "then": {"allOf": either},
        "else": {"required": list(REQUIRED)},
    }


def keys_of(methods: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every group and key of a recipe by its dotted name: `train`, `train.lr`, `vgs.gamma`."""
    settings = dict(walk("", settings_schema()["properties"]))
    blocks = {name: knobs_schema(name, method) for name, method in methods.items()}
    return settings | {"stages": stages_schema()} | dict(walk("", blocks))


def walk(prefix: str, properties: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(dotted name, schema) of everything below some properties."""
    for name, info in properties.items():
        yield f"{prefix}{name}", info
        yield from walk(f"{prefix}{name}.", info.get("properties", {}))


#: Groups whose keys are free names, each with a group of keys.
NAMED_GROUPS = ("data.sets", "teachers")
#: Stands for a free name in the documentation: `teachers.NAME.model`.
ANY_NAME = "NAME"


def key_info(keys: Mapping[str, Mapping[str, Any]], key: str) -> Mapping[str, Any]:
    """The schema of a key, also below a free name (`teachers.math.model`); empty if unknown."""
    for group in NAMED_GROUPS:
        name, _, rest = key.removeprefix(f"{group}.").partition(".")
        if key.startswith(f"{group}.") and name:
            below = values_of(keys.get(group, {}))
            return dict(walk("", below.get("properties", {}))).get(rest, {}) if rest else below
    return keys.get(key, {})


def keys_of_names(keys: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every key below the free names, as `teachers.NAME.model`."""
    below: dict[str, dict[str, Any]] = {}
    for group in filter(keys.__contains__, NAMED_GROUPS):
        properties = values_of(keys[group]).get("properties", {})
        below |= dict(walk(f"{group}.{ANY_NAME}.", properties))
    return below


def is_group(info: Mapping[str, Any]) -> bool:
    """Whether a schema is that of a group of keys, not of free names (`reward.extra`)."""
    below = values_of(info)
    return "properties" in info or "properties" in below or "$ref" in below

"""Check a group of keys against its schema; mistakes have a place, a reason and a fix."""

import dataclasses
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vistill.data.set_settings import check_name
from vistill.errors import ConfigError, quote_setting
from vistill.ranges import (
    converted,
    fits,
    group_of_names,
    is_text,
    misfit,
    schemas_of,
    shown,
    takes_whole,
    typed,
    whole,
)
from vistill.registry import explain_command
from vistill.runs.recipe_changes import flatten
from vistill.schema import ANY_NAME, NAMED_GROUPS, key_info, keys_of_names
from vistill.schema.hints import Hint, hint_for
from vistill.strict_yaml import line_of


@dataclass(frozen=True)
class Source:
    """The file that a tree of values was read from, and every key that there is."""

    text: str
    """Its content, for line numbers; empty where there is none."""
    name: str
    keys: Mapping[str, Mapping[str, Any]]
    """Schema of every group and key by its dotted name."""
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Keys that do not come from the file, with where they come from: `command line`."""

    def place(self, path: tuple[str, ...]) -> str:
        """`recipe.yaml:14`, or `command line` for a key that an override set."""
        name = ".".join(path)
        for key, origin in self.overrides.items():
            if key == name or f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}."):
                return origin
        line = line_of(self.text, path) if self.text else None
        return f"{self.name}:{line}" if line else self.name


def settings_from(
    kind: type,
    tree: Any,
    path: tuple[str, ...],
    source: Source,
    given: Mapping[str, Any] | None = None,
) -> Any:
    """A settings class from a group of keys: unknown keys C001, wrong values C002.

    Args:
        kind: the class.
        tree: the group; null is an empty one.
        path: of the group.
        source: for messages.
        given: fields that do not come from the group.
    """
    hints: dict[str, Any] = typing.get_type_hints(kind)
    given = dict(given or {})
    groups: dict[str, Any] = {
        name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)
    }
    named = {name: group for name, hint in hints.items() if (group := group_of_names(hint))}
    plain = {name: schema for name, schema in schemas_of(kind).items() if name not in given}
    tree = group_of_keys(tree, path, source)
    own = checked_keys(
        {key: value for key, value in tree.items() if key not in groups and key not in named},
        plain,
        path,
        source,
        [*groups, *named],
    )
    below = {
        name: named_settings(group, tree[name], (*path, name), source)
        for name, group in named.items()
        if name in tree
    }
    below |= {
        name: settings_from(hint, tree[name], (*path, name), source)
        for name, hint in groups.items()
        if name in tree
    }
    for field in dataclasses.fields(kind):
        absent = field.name not in own | below | given
        if absent and field.default is field.default_factory is dataclasses.MISSING:
            raise missing_key((*path, field.name), source)
    try:
        values = {key: converted(plain[key], value) for key, value in own.items()}
        return kind(**values, **below, **given)
    except ConfigError as error:
        raise within(error, path, source) from error


def named_settings(kind: type, tree: Any, path: tuple[str, ...], source: Source) -> dict[str, Any]:
    """A group of free names, each with settings of a class. null takes a name out."""
    named = group_of_keys(tree, path, source)
    if not all(is_text(str(name)) for name in named):
        raise no_text_key(source)
    for name in named:
        check_name(name, ".".join(path), source.place((*path, name)))
    return {
        name: settings_from(kind, below, (*path, name), source)
        for name, below in named.items()
        if below is not None
    }


def group_of_keys(tree: Any, path: tuple[str, ...], source: Source) -> Mapping[str, Any]:
    """A group as a mapping; null is an empty one (C002 for anything else)."""
    if tree is None:
        return {}
    if isinstance(tree, Mapping):
        return tree
    group = ".".join(path)
    empty = "null" if ".".join(path[:-1]) in NAMED_GROUPS else "{}"
    raise ConfigError(
        "C002",
        f"{group} cannot be {shown(tree)}",
        where=source.place(path),
        why="it is a group of keys",
        fix=f"{group}={empty}   its keys:   {explain_command(group)}",
    )


def checked_knobs(
    tree: Any, schema: Mapping[str, Any], method: str, source: Source
) -> dict[str, Any]:
    """A method's block. Numbers stay as written: the fingerprint of a run depends on it."""
    schemas = schema["properties"]
    knobs = checked_keys(tree, schemas, (method,), source)
    return {
        key: whole(value) if takes_whole(schemas[key]) else value for key, value in knobs.items()
    }


def checked_keys(
    tree: Any,
    schemas: Mapping[str, Any],
    path: tuple[str, ...],
    source: Source,
    groups: Iterable[str] = (),
) -> dict[str, Any]:
    """The values of a group's keys, checked (C001, C002)."""
    values: dict[str, Any] = {}
    for key, value in group_of_keys(tree, path, source).items():
        full = (*path, key)
        if not is_text(key):
            raise no_text_key(source)
        if key not in schemas:
            raise unknown_key(full, value, [*schemas, *groups], source)
        if not fits(schemas[key], value):
            raise wrong_value(full, value, source)
        values[key] = value
    return values


def no_text_key(source: Source) -> ConfigError:
    """C003 for half a character in a key."""
    return ConfigError(
        "C003",
        "the recipe holds characters that are no text",
        where=source.name,
        why="half a surrogate pair, as an escape in a quoted key leaves it",
        fix="write the key anew in plain letters",
    )


def wrong_value(path: tuple[str, ...], value: Any, source: Source) -> ConfigError:
    """C002 for a value that does not fit its key."""
    name = ".".join(path)
    info = key_info(source.keys, name)
    error = misfit(name, value, info, info.get("default", dataclasses.MISSING))
    note = f"what it means: vistill explain {name}"
    return ConfigError(
        "C002", error.what, where=source.place(path), why=error.why, fix=error.fix, note=note
    )


def missing_key(path: tuple[str, ...], source: Source) -> ConfigError:
    """C002 for a key without a default."""
    name = ".".join(path)
    why = f"{name} has no default: {key_info(source.keys, name)['description']}"
    fix = f"{name}.model=FOLDER_OR_HUB_ID" if f"{name}.model" in source.keys else f"{name}=VALUE"
    return ConfigError("C002", f'"{name}" is missing', where=source.place(path), why=why, fix=fix)


def within(error: ConfigError, path: tuple[str, ...], source: Source) -> ConfigError:
    """An error of a settings class, with the group that it stands in."""
    if not path:
        return error
    group = ".".join(path)
    what = error.what if error.what.startswith(f"{group}.") else f"{group}.{error.what}"
    key = what.split(" ")[0].removeprefix(f"{group}.")
    return ConfigError(
        error.code,
        what,
        where=source.place((*path, *key.split("."))),
        why=error.why,
        fix=with_group(error.fix, group),
    )


def with_group(fix: str, group: str) -> str:
    """A setting within its group; the quote in front of it stays there."""
    quote = "'" if fix.startswith("'") else ""
    setting = fix.removeprefix("'")
    return fix if setting.startswith(f"{group}.") else f"{quote}{group}.{setting}"


def hint_in_group(
    group: str, tree: Mapping[str, Any], meant: str, keys: Mapping[str, Mapping[str, Any]]
) -> tuple[str, Any, Hint]:
    """The first key of an unknown group that means one of ours; the group itself if none does.

    Args:
        group: the dotted name of the group.
        tree: its keys.
        meant: the group that it probably is; may be empty.
        keys: every key of a recipe.

    Returns:
        The dotted name, the value, and what it was meant to be.
    """
    for name, value in flatten(tree, f"{group}.").items():
        own = f"{meant}{name.removeprefix(group)}"
        hint = Hint(own) if own in keys else hint_for(name, value, keys)
        if hint:
            return name, value, hint
    return group, tree, Hint()


def unknown_group(full: str, meant: str, where: str) -> ConfigError:
    """C001 for a group of keys in the recipe whose name is close to that of another group."""
    return ConfigError(
        "C001",
        f'unknown key "{full}"',
        where=where,
        why=f'it holds a group of keys   did you mean "{meant}"?',
        fix=f"write the keys of {full}: below {meant}: in the recipe",
    )


def hint_for_key(full: str, value: Any, keys: Mapping[str, Mapping[str, Any]]) -> Hint:
    """What an unknown key was meant to be; below a free name, a key of such a group."""
    for group in NAMED_GROUPS:
        name, _, rest = full.removeprefix(f"{group}.").partition(".")
        if full.startswith(f"{group}.") and rest:
            free, own = f"{group}.{ANY_NAME}.", f"{group}.{name}."
            below = keys_of_names(keys)
            near = {key.removeprefix(free): info for key, info in below.items() if free in key}
            hint = hint_for(rest, value, near)
            return replace(hint, key=f"{own}{hint.key}" if hint.key else "")
    return hint_for(full, value, keys)


def unknown_key(
    path: tuple[str, ...], value: Any, known: Sequence[str], source: Source
) -> ConfigError:
    """C001 with what was probably meant."""
    full, where = ".".join(path), source.place(path)
    hint = hint_for_key(full, value, source.keys)
    if isinstance(value, Mapping) and value and full not in source.overrides:
        is_in_file = not any(key.startswith(f"{full}.") for key in source.overrides)
        if is_in_file and hint.key:
            return unknown_group(full, hint.key, where)
        if hint.key or not hint.note:  # another trainer's group, or a key of a misspelt one
            full, value, hint = hint_in_group(full, value, hint.key, source.keys)
        if not hint and not is_in_file:
            full = next(key for key in source.overrides if key.startswith(f"{full}."))
    listed = f"known here: {', '.join(known)}"
    if not hint.key:
        why = hint.note or listed
        return ConfigError(
            "C001", f'unknown key "{full}"', where=where, why=why, fix=f"leave {full} out"
        )
    group, _, last = hint.key.rpartition(".")
    meant = last if group == full.rpartition(".")[0] else hint.key
    fix = f"{quote_setting(hint.key, typed(value))}   in place of {full}"
    if not hint.fits:
        fix = f"{explain_command(hint.key)}   says what it takes"
    if meant == hint.key and not hint.note:
        listed = f"{hint.key}: {key_info(source.keys, hint.key)['description']}"
    why = f'{hint.note or listed}   did you mean "{meant}"?'
    return ConfigError("C001", f'unknown key "{full}"', where=where, why=why, fix=fix)

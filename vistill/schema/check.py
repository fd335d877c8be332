"""Check a group of keys against its schema; mistakes have a place, a reason and a fix."""

import dataclasses
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vistill.data.set_settings import NAME, invalid_name_error, valid_name
from vistill.errors import ConfigError, quote_setting
from vistill.python_fixes import reading_recipe
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
from vistill.schema.file_repairs import delete_command, has_key, rename_command
from vistill.schema.hints import Hint, hint_for
from vistill.strict_yaml import find_entries, line_of, parse_text, parts_of, split_pair

#: Where settings come from that are passed to a function of `vistill` as a mapping.
PYTHON_OVERRIDES = "overrides"


@dataclass(frozen=True)
class Source:
    """The file that a tree of values was read from, and every key that there is."""

    text: str
    """Its content, for line numbers; empty where there is none."""
    file: str | Path
    """The file, or its name for messages where it is not on disk."""
    keys: Mapping[str, Mapping[str, Any]]
    """Schema of every group and key by its dotted name."""
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Keys that do not come from the file, with where they come from: `command line`."""
    stage: str = ""
    """The stage that the tree is of."""

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.file.name if isinstance(self.file, Path) else self.file

    def place(self, path: tuple[str, ...]) -> str:
        """`recipe.yaml:14`, or `command line` for a key that an override set."""
        origin = self.origin(path)
        if origin:
            return origin
        line = line_of(self.text, self.path_in_file(path)) if self.text else None
        return f"{self.name}:{line}" if line else self.name

    def origin(self, path: tuple[str, ...]) -> str:
        """Where a key comes from if not from the file."""
        name = ".".join(path)
        for key, origin in self.overrides.items():
            if key == name or f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}."):
                return origin
        return ""

    def path_in_file(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """Where a key stands in the file: in its stage, if the stage sets it."""
        in_stage = ("stages", self.stage, *path)
        return in_stage if self.stage and self.has_in_file(in_stage) else path

    def has_in_file(self, path: tuple[str, ...]) -> bool:
        """Whether a key stands in the file."""
        if isinstance(self.file, Path) and self.file.suffix == ".toml":
            return has_key(parse_text(self.text, self.file), path)
        return bool(find_entries(self.text, path))

    def setting(self, key: str, value: Any, wrong: tuple[str, ...]) -> str:
        """`key=value` for the command line, in the stage in which the wrong key stands."""
        is_in_stage = len(self.path_in_file(wrong)) > len(wrong)
        return quote_setting(f"stages.{self.stage}.{key}" if is_in_stage else key, typed(value))

    def rename(self, path: tuple[str, ...], new: str) -> str:
        """The command that gives a key of the file another name; empty for any other key."""
        if not isinstance(self.file, Path) or self.origin(path):
            return ""
        return rename_command(self.text, self.file, self.path_in_file(path), new)

    def delete(self, path: tuple[str, ...]) -> str:
        """The command that deletes a key of the file; empty for any other key."""
        if not isinstance(self.file, Path) or self.origin(path):
            return ""
        return delete_command(self.text, self.file, self.path_in_file(path))


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
        with reading_recipe():
            return kind(**values, **below, **given)
    except ConfigError as error:
        raise within(error, path, source) from error


def named_settings(kind: type, tree: Any, path: tuple[str, ...], source: Source) -> dict[str, Any]:
    """A group of free names, each with settings of a class. null takes a name out."""
    named = group_of_keys(tree, path, source)
    if not all(is_text(str(name)) for name in named):
        raise no_text_key(source)
    for name in named:
        if not NAME.fullmatch(name):
            full = (*path, name)
            rename = source.rename(full, valid_name(name, "other"))
            raise invalid_name_error(name, ".".join(path), source.place(full), rename)
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
    fix = with_group(error.fix, group)
    right, separator, wrong = fix.partition("   in place of ")
    if separator:  # a name in the place of a key
        name = tuple(parts_of(split_pair(right)[0]))[-1]
        fix = source.rename(tuple(parts_of(wrong)), name) or fix
    where = source.place((*path, *key.split(".")))
    return ConfigError(error.code, what, where=where, why=error.why, fix=fix)


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


def other_knobs_error(other: str, method: str, source: Source) -> ConfigError:
    """C101 for knobs of another method; the fix leaves out what was given next to the file."""
    given = [key for key in source.overrides if parts_of(key)[0] == other]
    where = source.place((other,))
    deleted = source.delete((other,))
    remove = f"  {deleted}" if deleted else f"remove the block {other}: from the recipe"
    if given:
        remove = f"the same {where.replace(' line', '')} without {' and '.join(given)}"
    return ConfigError(
        "C101",
        f'knobs of "{other}", but the method is "{method}"',
        where=where,
        why=f"{' and '.join(given) or 'a knob'} belongs to the method that uses it",
        fix=f"{remove}   or   method={other}" if given else f"method={other}   or {remove}",
    )


def unknown_group(full: str, value: Mapping[str, Any], meant: str, source: Source) -> ConfigError:
    """C001 for a group of keys in the recipe whose name is close to that of another group."""
    path = tuple(parts_of(full))
    fix = source.rename(path, meant.rpartition(".")[2])
    deleted = "" if fix else source.delete(path)
    if deleted:  # the file has the other group too
        pairs = flatten(value, f"{meant}.").items()
        fix = f"{deleted}   and then   {' '.join(source.setting(*pair, path) for pair in pairs)}"
    return ConfigError(
        "C001",
        f'unknown key "{full}"',
        where=source.place(path),
        why=f'it holds a group of keys   did you mean "{meant}"?',
        fix=fix or f"write the keys of {full}: below {meant}: in the recipe",
    )


def hint_for_key(full: str, value: Any, keys: Mapping[str, Mapping[str, Any]]) -> Hint:
    """What an unknown key was meant to be; below a free name, a key of such a group."""
    for group in NAMED_GROUPS:
        name, _, rest = full.removeprefix(f"{group}.").partition(".")
        if full.startswith(f"{group}.") and rest:
            free, own = f"{group}.{ANY_NAME}.", f"{group}.{name}."
            below = keys_of_names(keys)
            near = {
                key.removeprefix(free): info for key, info in below.items() if key.startswith(free)
            }
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
            return unknown_group(full, value, hint.key, source)
        if hint.key or not hint.note:  # another trainer's group, or a key of a misspelt one
            full, value, hint = hint_in_group(full, value, hint.key, source.keys)
        if not hint and not is_in_file:
            full = next(key for key in source.overrides if key.startswith(f"{full}."))
    listed = f"known here: {', '.join(known)}"
    if not hint.key:
        why, deleted = hint.note or listed, source.delete(tuple(parts_of(full)))
        fix = f"{deleted}   deletes it" if deleted else f"leave {full} out"
        return ConfigError("C001", f'unknown key "{full}"', where=where, why=why, fix=fix)
    group, _, last = hint.key.rpartition(".")
    is_dotted = any(len(parts_of(part)) > 1 for part in path)  # train.lr: 1 in a file
    is_neighbour = group == full.rpartition(".")[0] and not is_dotted
    meant = last if is_neighbour else hint.key
    if hint.fits:
        fix = other_key_fix(full, value, hint.key, source, is_neighbour)
    else:
        fix = f"{explain_command(hint.key)}   says what it takes"
    if meant == hint.key and not hint.note:
        listed = f"{hint.key}: {key_info(source.keys, hint.key)['description']}"
    why = f'{hint.note or listed}   did you mean "{meant}"?'
    return ConfigError("C001", f'unknown key "{full}"', where=where, why=why, fix=fix)


def other_key_fix(full: str, value: Any, meant: str, source: Source, is_neighbour: bool) -> str:
    """The fix that sets the meant key in place of an unknown one, where that one stands.

    A key of the file is renamed there. One that belongs into another group is deleted, and its
    value set on the command line.
    """
    path, last = tuple(parts_of(full)), meant.rpartition(".")[2]
    if not isinstance(source.file, Path) or source.origin(path):
        if f"stages.{source.stage}.{full}" in source.overrides:
            full, meant = f"stages.{source.stage}.{full}", f"stages.{source.stage}.{meant}"
        if source.origin(path) == PYTHON_OVERRIDES:
            return f"vistill.train(RECIPE, {{{meant!r}: {value!r}}})   in place of {full!r}"
        return f"{quote_setting(meant, typed(value))}   in place of {full}"
    deleted = source.delete(path)
    if is_neighbour:
        # the file has the meant key too where the unknown one cannot get its name
        fix = source.rename(path, last) or deleted
        return fix or f"in {source.place(path)}, write {last} in place of {full}"
    setting = source.setting(meant, value, path)
    if deleted:
        return f"{deleted}   and then   {setting}"
    return f"in {source.place(path)}, write {meant} in place of {full}"

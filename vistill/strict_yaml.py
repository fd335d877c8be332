"""Recipes as text. YAML without surprises.

Only true and false are booleans; there are no aliases, tags, merges or twin keys.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vistill.errors import ConfigError, file_next_to, quote_command, quote_setting

MAX_DEPTH = 20
MAX_LENGTH = 1_000_000


class StrictLoader(yaml.SafeLoader):
    """A SafeLoader with the hazards removed."""

    def __init__(self, stream: Any) -> None:
        text = stream if isinstance(stream, str) else stream.read()
        if len(text) > MAX_LENGTH:
            raise yaml.YAMLError("a recipe is at most one megabyte")
        super().__init__(text)
        self.depth_now = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases, tags and deep nesting while reading."""
        event: Any = self.peek_event()
        if self.check_event(yaml.AliasEvent) or getattr(event, "anchor", None):
            self._refuse("aliases and anchors are not allowed", event)
        if getattr(event, "tag", None):
            self._refuse(f"tags are not allowed: {event.tag}", event)
        self.depth_now += 1
        if self.depth_now > MAX_DEPTH:
            self._refuse("nested too deeply", event)
        node = super().compose_node(parent, index)
        self.depth_now -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse duplicate keys, merge keys and keys that are not words."""
        seen: set[str] = set()
        for key, _ in node.value:
            name = key.value
            if name == "<<":
                self._refuse("merge keys are not allowed", key)
            if name in seen:
                self._refuse(f'the key "{name}" stands twice', key)
            seen.add(name)
        return {str(k): v for k, v in super().construct_mapping(node, deep=True).items()}

    @staticmethod
    def _refuse(problem: str, at: Any) -> None:
        raise yaml.constructor.ConstructorError(None, None, problem, at.start_mark)


StrictLoader.yaml_implicit_resolvers = {}
for tag, pattern, first in (
    ("bool", r"^(?:true|false)$", "tf"),
    ("null", r"^(?:null|~|)$", ["n", "~", ""]),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
):
    StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


@dataclass(frozen=True)
class Entry:
    """A key of a YAML text with its value, in its group."""

    key: yaml.ScalarNode
    value: yaml.Node
    group: yaml.MappingNode


def find_entries(text: str, path: tuple[str, ...], is_whole: bool = True) -> list[Entry]:
    """The entries that lead to a key of a YAML text, the outermost first.

    An entry may name several parts at once: `train.lr: 1e-5`.

    Args:
        text: the file.
        path: the parts of the key.
        is_whole: whether nothing is found where only parents of the key exist.
    """
    path = tuple(parts_of(".".join(path)))
    try:
        entries = entries_below(yaml.compose(text, yaml.SafeLoader), path)
    except yaml.YAMLError:
        return []
    return entries if not is_whole or num_parts(entries) == len(path) else []


def entries_below(node: yaml.Node | None, path: tuple[str, ...]) -> list[Entry]:
    """The entries of a node that lead to a key, or furthest towards it."""
    furthest: list[Entry] = []
    if not isinstance(node, yaml.MappingNode):
        return furthest
    for key, value in node.value:
        parts = tuple(parts_of(str(key.value)))
        if path and parts == path[: len(parts)]:
            entries = [Entry(key, value, node), *entries_below(value, path[len(parts) :])]
            furthest = max(furthest, entries, key=num_parts)
    return furthest


def num_parts(entries: list[Entry]) -> int:
    """How many parts of a key some entries name."""
    return sum(len(parts_of(entry.key.value)) for entry in entries)


def line_of(text: str, path: tuple[str, ...]) -> int | None:
    """Line (from 1) of a key in a YAML text, or of the closest parent that exists."""
    entries = find_entries(text, path, is_whole=False)
    return entries[-1].key.start_mark.line + 1 if entries else None


PLAIN_YAML = "write each key once, values without &, *, << or !   (docs/configuration.md)"


#: What YAML says of a bracket and of a quote that nothing closes.
OPEN_BRACKET = re.compile(r"expected ',' or '([}\]])'")
NO_COLON = "a line has no colon with a space behind it"
OPEN_QUOTE = re.compile(r"found unexpected end of stream|found unexpected document")


def explain_mistake(  # noqa: PLR0911 - one return per mistake
    error: Exception, text: str
) -> tuple[str, int, str]:
    """What is wrong in a YAML text, its line, and how to correct it.

    YAML names the place where it stopped reading. The mistake may be in a line before it.
    """
    problem = str(getattr(error, "problem", None) or error)
    mark, begin = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    if mark is None:
        return problem, 1, PLAIN_YAML
    lines = [*text.splitlines(), ""]
    number = min(mark.line, len(lines) - 1)
    here = lines[number]
    is_quote = "quoted scalar" in str(getattr(error, "context", ""))
    if begin is not None and is_quote and OPEN_QUOTE.search(problem):
        return "a quote is not closed", begin.line + 1, "write the closing quote in this line"
    if (bracket := OPEN_BRACKET.search(problem)) and begin is not None:
        wrong = f"a bracket is not closed, or a comma is missing: {problem}"
        return wrong, begin.line + 1, f"write the closing {bracket.group(1)}, or the comma"
    if problem == "could not find expected ':'":
        line = begin.line + 1 if begin is not None else number
        return NO_COLON, line, "write it as   key: value"
    if problem == "mapping values are not allowed here" and ": " in here[: mark.column]:
        key, _, value = here.partition(":")
        quoted = f"{key.strip()}: {in_quotes(value.strip())}"
        return "a value has a colon and no quotes", number + 1, f"write   {quoted}"
    if "that cannot start any token" in problem and "\\t" not in problem:
        return problem, number + 1, "put the value into quotes"
    if "block mapping start" in problem or "mapping values" in problem:
        return indentation_mistake(lines, number)
    key, _, value = here.partition(":")
    if "<block end>" in problem and value.lstrip().startswith(("{", "[", '"', "'")):
        quoted = f"{key.strip()}: {in_quotes(value.strip())}"
        wrong = f"text follows behind the {value.strip()[:1]}...{here[mark.column - 1]}"
        return f"{wrong} of a value", number + 1, f"write   {quoted}"
    return problem, number + 1, PLAIN_YAML


def in_quotes(value: str) -> str:
    r"""A value in double quotes, in which `\n` is a line break."""
    return '"' + value.replace('"', '\\"') + '"'


def indentation_mistake(lines: list[str], number: int) -> tuple[str, int, str]:
    """What to write where a line begins in a column that no group of keys has."""

    def width(line: str) -> int:
        return len(line) - len(line.lstrip(" "))

    here = lines[number]
    before = [line for line in lines[:number] if line.strip() and not line.lstrip().startswith("#")]
    open_columns: list[int] = []
    for line in before:
        open_columns = [*(column for column in open_columns if column < width(line)), width(line)]
    if before and before[-1].rstrip().endswith(":"):
        open_columns = [*open_columns[:-1], open_columns[-1] + 2]
    columns = sorted({*open_columns} - {width(here)})
    allowed = " or ".join(map(str, columns or [0]))
    last = before[-1].strip() if before else ""
    if last and ": " not in f"{last} ":
        number = max(i for i, line in enumerate(lines[:number]) if line.strip() == last)
        return NO_COLON, number + 1, "write it as   key: value"
    problem = f"the indentation of a line fits no group: {width(here)} spaces"
    why = f", as the keys of its group have; the line before it is   {last:.40}" if last else ""
    return problem, number + 1, f"begin the line with {allowed} spaces{why}"


def parse_text(text: str, file: Path) -> dict[str, Any]:
    """Strict YAML, or TOML by suffix (C003)."""
    if file.suffix == ".toml":
        import tomllib

        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(
                "C003",
                f"not valid TOML: {error}",
                where=file.name,
                fix="correct the line, or write YAML: vistill init FILE.yaml",
            ) from error
    try:
        tree = yaml.load(text, StrictLoader)  # noqa: S506  a SafeLoader, stricter
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        problem, line, fix = explain_mistake(error, text)
        where = f"{file.name}:{line}" if mark else file.name
        if "\\t" in problem and "cannot start any token" in problem:
            problem = "a tab where YAML wants spaces"
            new = str(file_next_to(file, f"{file.stem}.spaces{file.suffix}"))
            convert = f"{quote_command('expand', '-t', '2', file)} > {shlex.quote(new)}"
            fix = f"use spaces:   {convert}   and then   {shlex.quote(new)}   in place of "
            fix += shlex.quote(str(file))
        raise ConfigError("C003", problem, where=where, fix=fix) from error
    if not isinstance(tree, dict):
        what = "a recipe is a mapping of keys to values"
        raise ConfigError(
            "C003", what, where=file.name, fix="vistill init FILE.yaml   writes a commented recipe"
        )
    return tree


def split_pair(text: str) -> tuple[str, str]:
    """`train.lr=2e-6` to key and value, both as text (C005)."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*(:[A-Za-z_][\w.]*)?", key):
        what = f'"{text}" is not of the form key=value'
        meant = re.fullmatch(r"-{0,2}([a-z_][\w.]*)\s*[:=]+\s*(.*)", text, re.DOTALL)
        right = quote_setting(*meant.groups()) if meant else "KEY=VALUE"
        note = "such as train.lr=2e-6" if not meant else ""
        raise ConfigError("C005", what, fix=f"{right}   in place of {shlex.quote(text)}", note=note)
    return key, value


def read_value(text: str, key: str, value: str, fix: str) -> Any:
    """The value of an override, read as YAML; nothing is an empty text (C005 with the fix)."""
    try:
        return yaml.load(value, StrictLoader) if value else ""  # noqa: S506
    except (yaml.YAMLError, ValueError) as error:
        why = str(getattr(error, "problem", error))
        raise ConfigError(
            "C005",
            f'the value of "{text}" is not valid YAML',
            why=why,
            fix=f"{fix}   in place of {shlex.quote(text)}",
        ) from error


def parts_of(key: str) -> list[str]:
    """`a.b.c` in parts; a method called `module:Class` is one part, dots and all."""
    module, colon, rest = key.partition(":")
    if not colon:
        return key.split(".")
    name, *knobs = rest.split(".")
    return [f"{module}:{name}", *knobs]


def set_dotted(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set `a.b.c` in a tree."""
    *path, last = parts_of(key)
    for depth, part in enumerate(path, 1):
        node = tree[part] = {} if tree.get(part) is None else tree[part]
        if not isinstance(node, dict):
            group = ".".join(path[:depth])
            fix = f"{group}=VALUE   in place of {key}"
            raise ConfigError("C005", f'"{key}": "{part}" is a value, not a group of keys', fix=fix)
        tree = node
    tree[last] = value


def fill_word(tree: Mapping[str, Any], key: str, word: str, value: str) -> None:
    """Replace a word in the texts of a key in every group of a tree."""
    for node in tree.values():
        if isinstance(node, dict):
            if isinstance(node.get(key), str):
                node[key] = node[key].replace(word, value)
            fill_word(node, key, word, value)

"""Commands that repair a recipe file: one key gets another name, or is deleted.

Each is a `sed` on the lines of that key, which leaves the old file as `FILE.bak`. A repair is
proposed only if the repaired text has the tree that it should have.
"""

import copy
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vistill.errors import ConfigError, file_next_to, quote_path
from vistill.strict_yaml import Entry, find_entries, parse_text

#: What has a meaning in a basic regular expression, or ends one.
SPECIAL = re.compile(r"[\\/.*\[\]^$]")
ESCAPED = r"\\\g<0>"
#: Line breaks of YAML that are none for `sed`.
OTHER_BREAKS = re.compile("[\r\x85\u2028\u2029]")


@dataclass(frozen=True)
class Edit:
    """A change of one line, or the deletion of lines."""

    first: int
    """The first line, from 1."""
    last: int
    old: str = ""
    """The text of the line that is replaced; empty where the lines are deleted."""
    new: str = ""
    occurrence: int = 1
    """Which of several equal texts of the line it is."""

    def script(self) -> str:
        """The edit as a command of `sed`."""
        if not self.old:
            return f"{self.first}d" if self.first == self.last else f"{self.first},{self.last}d"
        which = str(self.occurrence) if self.occurrence > 1 else ""
        old, new = SPECIAL.sub(ESCAPED, self.old), re.sub(r"[\\/&]", ESCAPED, self.new)
        return f"{self.first}s/{old}/{new}/{which}"

    def applied(self, text: str) -> str:
        """The text after the edit."""
        lines = text.split("\n")
        if not self.old:
            return "\n".join([*lines[: self.first - 1], *lines[self.last :]])
        parts = lines[self.first - 1].split(self.old)
        head, tail = parts[: self.occurrence], parts[self.occurrence :]
        lines[self.first - 1] = self.old.join(head) + self.new + self.old.join(tail)
        return "\n".join(lines)


def rename_command(text: str, file: Path, path: tuple[str, ...], new: str) -> str:
    """The command that gives a key of a file another name; empty where the file is too unusual."""
    entries = find_entries(text, path)
    if not entries:
        edit = toml_edit(text, file, path, new)
    else:
        group, dot, _ = entries[-1].key.value.rpartition(".")
        new = f"{group}{dot}{new}"
        mark = entries[-1].key.start_mark
        line = lines_of(text)[mark.line]
        old = line[mark.column : entries[-1].key.end_mark.column]
        colon = ":" if line[mark.column + len(old) :].startswith(":") else ""
        edit = replaced(line, mark.line, mark.column, (old + colon, new + colon))
    names = [entry.key.value for entry in entries] or list(path)
    if edit is None:
        return ""
    return command(edit, text, file, [changed_tree(text, file, names, new)])


def delete_command(text: str, file: Path, path: tuple[str, ...]) -> str:
    """The command that deletes a key of a file; empty where the file is too unusual.

    A group that holds no other key is deleted with it. A stage stays.
    """
    entries = find_entries(text, path)
    names = [entry.key.value for entry in entries] or list(path)
    least = 3 if names[0] == "stages" else 1
    while len(entries) > least and len(entries[-1].group.value) == 1:
        entries, names = entries[:-1], names[:-1]
    edit = deletion(text, entries[-1]) if entries else toml_edit(text, file, path, "")
    if edit is None:
        return ""
    tree = changed_tree(text, file, names, "")
    return command(edit, text, file, [tree, with_empty_group(tree, names)])


def deletion(text: str, entry: Entry) -> Edit | None:
    """The edit that deletes an entry."""
    lines, start = lines_of(text), entry.key.start_mark
    last, column = end_of(entry.value)
    if not entry.group.flow_style:
        return Edit(start.line + 1, last + 1)
    if last != start.line:
        return None
    line = lines[last]
    after = re.compile(r"\s*,\s*").match(line, column)
    before = re.search(r",\s*$", line[: start.column])
    begin, end = start.column, column
    if after:
        end = after.end()
    elif before:
        begin = before.start()
    return replaced(line, last, begin, (line[begin:end], ""))


def lines_of(text: str) -> list[str]:
    """The lines of a text as YAML numbers them."""
    return OTHER_BREAKS.sub("\n", text).split("\n")


def end_of(node: yaml.Node) -> tuple[int, int]:
    """Line (from 0) and column behind the last character of a value."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        item = node.value[-1]
        return end_of(item[1] if isinstance(item, tuple) else item)
    end = node.end_mark
    is_block = isinstance(node, yaml.ScalarNode) and node.style in ("|", ">")
    return (end.line - 1, 0) if is_block and end.column == 0 else (end.line, end.column)


def replaced(line: str, number: int, column: int, texts: tuple[str, str]) -> Edit:
    """The edit that replaces the text at a column of a line (from 0)."""
    occurrence = line[:column].count(texts[0]) + 1
    return Edit(number + 1, number + 1, *texts, occurrence)


def toml_edit(text: str, file: Path, path: tuple[str, ...], new: str) -> Edit | None:
    """The edit of a key that stands on exactly one line of a TOML file."""
    key = re.compile(rf"\s*[\"']?{re.escape(path[-1])}[\"']?(?=\s*=)")
    lines = [(n, line) for n, line in enumerate(text.split("\n")) if key.match(line)]
    if file.suffix != ".toml" or len(lines) != 1 or not has_key(parse_text(text, file), path):
        return None
    number, line = lines[0]
    if not new:
        return Edit(number + 1, number + 1)
    return replaced(line, number, line.index(path[-1]), (path[-1], new))


def has_key(tree: Any, path: tuple[str, ...]) -> bool:
    """Whether a tree has a key."""
    for name in path:
        if not isinstance(tree, Mapping) or name not in tree:
            return False
        tree = tree[name]
    return True


def changed_tree(text: str, file: Path, names: list[str], new: str) -> dict[str, Any]:
    """The tree of a file with one key renamed, or without it."""
    tree = copy.deepcopy(parse_text(text, file))
    group: Any = tree
    for name in names[:-1]:
        group = group[name]
    value = group.pop(names[-1])
    if new:
        group[new] = value
    return tree


def with_empty_group(tree: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The tree in which the group that held a key has become null, if nothing else is in it."""
    tree = copy.deepcopy(tree)
    group: Any = tree
    for name in names[:-2]:
        group = group[name]
    if len(names) > 1 and not group[names[-2]]:
        group[names[-2]] = None
    return tree


def command(edit: Edit, text: str, file: Path, trees: list[dict[str, Any]]) -> str:
    """The command of an edit that gives one of these trees."""
    if not file.is_file() or OTHER_BREAKS.search(text):
        return ""
    try:
        tree = parse_text(edit.applied(text), file)
    except ConfigError:
        return ""
    if tree not in trees:
        return ""
    script, name = shlex.quote(edit.script()), quote_path(file)
    if os.access(file.parent, os.W_OK):
        return f"sed -i.bak {script} {name}"
    new = quote_path(file_next_to(file, f"{file.stem}.repaired{file.suffix}"))
    return f"sed {script} {name} > {new}   and then   {new}   in place of {shlex.quote(str(file))}"

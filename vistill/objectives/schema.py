"""JSON schema of every method's knobs, made from the dataclasses.

Verbs without torch validate recipes against the packaged file, which
`python -m vistill.objectives.schema [DOCUMENT]` writes.
"""

import dataclasses
import inspect
import json
import re
import sys
import textwrap
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vistill.errors import ConfigError
from vistill.objectives import METHODS
from vistill.ranges import TYPES, field_schema, limited
from vistill.registry import explain_command, methods
from vistill.types import Reader

SCHEMA_FILE = Path(__file__).parent.parent / "schema" / "methods.json"
PAGES = Path(__file__).parent / "pages"
#: Facts about a method's rows, which knobs may change.
ROW_FACTS = ("x-needs", "x-answers", "x-writer")
#: The generated part of `docs/methods.md` stands between these two lines.
BEGIN, END = (
    "<!-- pages: python -m vistill.objectives.schema docs/methods.md -->",
    "<!-- end of pages -->",
)


def knob_docs(method: type) -> dict[str, str]:
    """The docstring under each field of a method."""
    pattern = re.compile(r'^    (\w+): [^\n]+\n    """(.+?)"""', re.M | re.S)
    kinds = [kind for kind in reversed(method.__mro__) if dataclasses.is_dataclass(kind)]
    docs = [pair for kind in kinds for pair in pattern.findall(source_of(kind))]
    return {name: re.sub(r"\s+", " ", text) for name, text in docs}


def source_of(kind: type) -> str:
    """The text of a class; empty where it was typed in at a prompt."""
    try:
        return textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):
        return ""


def knob_schema(annotation: Any) -> dict[str, Any]:
    """JSON schema of a knob: bool, int, float, str, Literal, or one of them or None.

    Raises:
        TypeError: the annotation is another one.
    """
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    for part in typing.get_args(annotation) if union else (annotation,):
        if part not in TYPES and typing.get_origin(part) is not typing.Literal:
            raise TypeError(
                f"{annotation} is no bool, int, float, str, Literal, or one of them or None"
            )
    return field_schema(annotation)


def method_schema(method: type) -> dict[str, Any]:
    """Knobs, defaults and documentation of one method."""
    docs, hints = knob_docs(method), typing.get_type_hints(method)
    properties = {
        field.name: limited(knob_schema(hints[field.name]), field)
        | {"default": field.default, "description": docs.get(field.name, "")}
        for field in dataclasses.fields(method)
    }
    return {
        "description": inspect.getdoc(method),
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        **facts_of(method()),
        "x-by-knob": facts_by_knob(method, properties),
    }


def facts_by_knob(method: type, knobs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What one knob changes of the facts about rows: `{knob: {value as JSON: {fact: ...}}}`."""
    plain, changes = facts_of(method()), dict[str, dict[str, Any]]()
    for knob, info in knobs.items():
        for value in other_values(info):
            try:
                facts = facts_of(method(**{knob: value}))
            except (ConfigError, TypeError, ValueError):  # refused with the other defaults
                continue
            changed = {name: facts[name] for name in ROW_FACTS if facts[name] != plain[name]}
            if changed:
                changes.setdefault(knob, {})[json.dumps(value)] = changed
    return changes


def other_values(knob: Mapping[str, Any]) -> list[Any]:
    """The values of a switch or of a choice, the default left out."""
    values = knob.get("enum", [True, False] if knob.get("type") == "boolean" else [])
    return [value for value in values if value != knob["default"]]


def facts_of(method: Any) -> dict[str, Any]:
    """What can be checked of a method, with its knobs as they are, before anything is loaded."""
    passes, wanted = method.passes(), method.requirements
    return {
        "x-needs-teacher": any(p.reader is Reader.TEACHER for p in passes),
        "x-needs": sorted(wanted.needs),
        "x-answers": wanted.answers,
        "x-writer": str(wanted.writer),
        "x-passes": [p.name for p in passes],
        "x-gradient": [p.name for p in passes if p.gradient],
    }


def methods_schema() -> dict[str, Any]:
    """The packaged file's content."""
    return {
        name: method_schema(method) | {"x-page": page(name)} for name, method in METHODS.items()
    }


def page(name: str) -> str:
    """The page of a method: `pages/NAME.md` or `NAME.md` next to its module, or its docstring."""
    method = methods.get(name)
    folder = Path(inspect.getfile(method)).parent
    files = [
        file for file in (folder / "pages" / f"{name}.md", folder / f"{name}.md") if file.is_file()
    ]
    return files[0].read_text(encoding="utf-8").strip() if files else str(inspect.getdoc(method))


# Methods of plug-ins: their knobs are read from the class, not from the packaged file.


class MethodSchemas(Mapping[str, Any]):
    """Every method that can be named, with its schema: packaged, or made from its class."""

    def __init__(self, packaged: Mapping[str, Any], reserved: Collection[str]) -> None:
        """Packaged methods, and later those of plug-ins.

        Args:
            packaged: the schemas of the methods that come with vistill.
            reserved: keys of a recipe, which no method may be called by.
        """
        self.packaged, self.reserved = packaged, reserved

    def __getitem__(self, name: str) -> Any:
        if name in self.packaged:
            return self.packaged[name]
        if name not in methods:
            raise KeyError(name)
        return plugin_schema(name, self.reserved)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self.packaged or name in methods)

    def __iter__(self) -> Iterator[str]:
        return iter(methods)

    def __len__(self) -> int:
        return len(methods.names())

    def usable(self) -> dict[str, Any]:
        """The schema of every method; plug-ins that cannot be used are left out."""
        schemas: dict[str, Any] = {}
        for name in self:
            try:
                schemas[name] = self[name]
            except ConfigError:  # `vistill list methods` says what is wrong
                continue
        return schemas

    def with_knobs(self, name: str, knobs: Mapping[str, Any]) -> dict[str, Any]:
        """The schema of a method under these knobs.

        Of a built-in one the facts about rows are those under these knobs, all others those of the
        class defaults.

        Raises:
            ConfigError: C002, the class refuses the knobs.
        """
        if name in self.packaged:
            schema = dict(self.packaged[name])
            for knob, changes in schema["x-by-knob"].items():
                schema |= changes.get(json.dumps(knobs.get(knob)), {})
            return schema
        return self[name] | facts_of(make_method(name, knobs))


def plugin_schema(name: str, reserved: Collection[str]) -> dict[str, Any]:
    """The schema of a method of a plug-in (C106 where its class cannot have one)."""
    method: Any = methods.get(name)
    fields = dataclasses.fields(method) if hasattr(method, "__dataclass_fields__") else None
    reason = ""
    if name in reserved:
        reason = f'a recipe has a key "{name}" of its own'
    elif fields is None or not method.__dataclass_params__.frozen:
        reason = "it is no frozen dataclass"
    elif lacking := [f.name for f in fields if f.default is dataclasses.MISSING]:
        reason = f"the knob {lacking[0]} has no default"
    else:
        try:
            return method_schema(method) | {
                "x-page": page(name),
                "x-origin": str(methods.entry(name).origin),
            }
        except (TypeError, ValueError, AttributeError, NameError) as error:
            reason = f"{type(error).__name__}: {error}"[:300]
    raise ConfigError(
        "C106",
        f'"{name}" cannot be a method',
        where=f"{methods.entry(name).origin}, {method.__qualname__}",
        why=reason,
        fix=f"correct {method.__qualname__}; docs/extending.md shows a method",
    )


def make_method(name: str, knobs: Mapping[str, Any]) -> Any:
    """A method with its knobs.

    Raises:
        ConfigError: C002, its class refuses them.
    """
    try:
        return methods.get(name)(**knobs)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        what = f"{name}: {error}"
        raise ConfigError(
            "C002", what, why="the method refuses these knobs", fix=explain_command(name)
        ) from error


def page_markdown(name: str, schema: dict[str, Any]) -> str:
    """A method's section of `docs/methods.md`: the page, what it sees, its knobs."""
    title, _, body = schema["x-page"].partition("\n")
    sees = [f"{p} (gradient)" if p in schema["x-gradient"] else p for p in schema["x-passes"]]
    lines = [
        f"### `{name}`: {title}",
        body,
        "",
        f"Sees: {', '.join(sees)}. Responses from: {schema['x-writer']}.",
    ]
    if schema["properties"]:
        lines += ["", "| knob | default | meaning |", "| --- | --- | --- |"]
    for knob, info in schema["properties"].items():
        meaning = str(info["description"]).replace("|", "\\|")
        lines.append(f"| `{knob}` | {json.dumps(info['default'])} | {meaning} |")
    return "\n".join(lines)


def with_pages(text: str) -> str:
    """`docs/methods.md` with its generated part renewed."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"no line {END}"
    pages = "\n\n".join(page_markdown(name, schema) for name, schema in methods_schema().items())
    return f"{before}{BEGIN}\n\n{pages}\n\n{END}{after}"


def main(arguments: Sequence[str]) -> None:
    """Write the packaged file, and the pages into a document if one is named."""
    SCHEMA_FILE.write_text(json.dumps(methods_schema(), indent=2) + "\n")
    for name in arguments:
        Path(name).write_text(with_pages(Path(name).read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

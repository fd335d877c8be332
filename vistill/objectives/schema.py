"""JSON schema of every method's knobs, made from the dataclasses, so that torch-free verbs can validate recipes."""

import dataclasses
import inspect
import json
import re
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vistill.objectives import METHODS
from vistill.ranges import field_schema, limited

SCHEMA_FILE = Path(__file__).parent.parent / "schema" / "methods.json"
PAGES = Path(__file__).parent / "pages"
#: The generated part of `docs/methods.md` stands between these two lines.
BEGIN, END = (
    "<!-- pages: python -m vistill.objectives.schema docs/methods.md -->",
    "<!-- end of pages -->",
)


def knob_docs(method: type) -> dict[str, str]:
    """The docstring under each field of a method."""
    pattern = re.compile(r'^    (\w+): [^\n]+\n    """(.+?)"""', re.M | re.S)
    kinds = [kind for kind in reversed(method.__mro__) if dataclasses.is_dataclass(kind)]
    found = [pair for kind in kinds for pair in pattern.findall(inspect.getsource(kind))]
    return {name: re.sub(r"\s+", " ", text) for name, text in found}


def method_schema(method: type) -> dict[str, Any]:
    """Knobs, defaults and documentation of one method."""
    docs, hints = knob_docs(method), typing.get_type_hints(method)
    properties = {
        field.name: limited(field_schema(hints[field.name]), field)
        | {"default": field.default, "description": docs[field.name]}
        for field in dataclasses.fields(method)
    }
    made = method()
    passes = [p.name for p in made.passes()]
    return {
        "description": inspect.getdoc(method),
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "x-needs-teacher": any(name.startswith("teacher") for name in passes),
        "x-needs": sorted(made.needs()),
        "x-writer": str(made.writer),
        "x-passes": passes,
        "x-gradient": [p.name for p in made.passes() if p.gradient],
    }


def methods_schema() -> dict[str, Any]:
    """The packaged file's content."""
    return {
        name: method_schema(method) | {"x-page": page(name)} for name, method in METHODS.items()
    }


def page(name: str) -> str:
    """The half page about a method; its docstring where there is none yet."""
    file = PAGES / f"{name}.md"
    return (
        file.read_text(encoding="utf-8").strip()
        if file.is_file()
        else str(inspect.getdoc(METHODS[name]))
    )


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
    _, found, after = rest.partition(END)
    assert found, f"no line {END}"
    pages = "\n\n".join(page_markdown(name, schema) for name, schema in methods_schema().items())
    return f"{before}{BEGIN}\n\n{pages}\n\n{END}{after}"


def main(arguments: Sequence[str]) -> None:
    """Write the packaged file, and the pages into a document: `python -m vistill.objectives.schema [DOCUMENT]`."""
    SCHEMA_FILE.write_text(json.dumps(methods_schema(), indent=2) + "\n")
    for name in arguments:
        Path(name).write_text(with_pages(Path(name).read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

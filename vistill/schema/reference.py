"""The tables of `docs/configuration.md`: type, default, meaning and papers' values of each key."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from vistill.ranges import describe, values_of
from vistill.schema import ANY_NAME, METHODS_FILE, NAMED_GROUPS, settings_schema, walk

BEGIN = "<!-- keys: python -m vistill.schema.generate docs/configuration.md -->"
END = "<!-- end of keys -->"
HEAD = "| key | takes | default | meaning | papers |\n|---|---|---|---|---|"


def with_reference(text: str) -> str:
    """A document with its generated part renewed."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"no line {END}"
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def tables() -> str:
    """One table for the top level, and one for each group."""
    properties = settings_schema()["properties"]
    top = {name: info for name, info in properties.items() if "properties" not in info}
    parts = [f"### Top level\n\n{table(walk('', top))}"]
    for name, group in properties.items():
        if "properties" in group:
            heading = f"### `{name}`\n\n{group['description']}"
            parts.append(f"{heading}\n\n{table(walk(f'{name}.', group['properties']))}")
    return "\n\n".join(
        [*parts, f"### Knobs with other values in a paper\n\n{table(knobs_of_papers())}"]
    )


def knobs_of_papers() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Knobs for which a paper has another value than the default. All: docs/methods.md."""
    methods = json.loads(METHODS_FILE.read_text(encoding="utf-8"))
    for key, papers in settings_schema()["x-papers"].items():
        method, _, knob = key.partition(".")
        if method in methods:
            yield key, {**methods[method]["properties"][knob], "x-papers": papers}


def table(keys: Iterator[tuple[str, Mapping[str, Any]]]) -> str:
    """A row per key; groups have their rows, not one of their own."""
    rows = [row(key, info) for key, info in with_named(keys) if "properties" not in info]
    return "\n".join([HEAD, *rows])


def with_named(
    keys: Iterator[tuple[str, Mapping[str, Any]]],
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The keys, and behind a group of free names the keys below each name."""
    for key, info in keys:
        yield key, info
        if key in NAMED_GROUPS:
            yield from walk(f"{key}.{ANY_NAME}.", values_of(info)["properties"])


def row(key: str, info: Mapping[str, Any]) -> str:
    """A key's row."""
    default = (
        f"`{json.dumps(info['default'], ensure_ascii=False)}`" if "default" in info else "needed"
    )
    papers = "; ".join(
        f"{paper} {json.dumps(value)}" for paper, value in info.get("x-papers", {}).items()
    )
    cells = (f"`{key}`", describe(info), default, info["description"], papers)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

"""Write `settings.json` from the settings classes, and the tables of `docs/configuration.md`.

Run `python -m vistill.schema.generate docs/configuration.md` after a change of a settings class.
"""

import ast
import dataclasses
import inspect
import itertools
import json
import re
import sys
import textwrap
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vistill.ranges import group_of_names, schemas_of
from vistill.runs.recipe_changes import key_class
from vistill.schema import ANY_NAME, SETTINGS_FILE
from vistill.schema.papers import PAPERS
from vistill.schema.reference import with_reference
from vistill.training.recipe import Recipe


def field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a settings class and of its bases, on one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    for base in kind.__bases__:
        docs |= {} if base is object else field_docs(base)
    for field, doc in itertools.pairwise(definition.body):
        match field, doc:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                value=ast.Constant(value=str(text))
            ):
                docs[name] = re.sub(r"\s+", " ", text)
            case _:
                pass
    return docs


def group_schema(kind: type, prefix: str = "") -> dict[str, Any]:
    """Schema of a settings class and of the groups below it, with defaults and meanings."""
    hints, docs, own = typing.get_type_hints(kind), field_docs(kind), schemas_of(kind)
    properties = {}
    for field in dataclasses.fields(kind):
        key = f"{prefix}{field.name}"
        if key == "knobs":
            continue
        named = group_of_names(hints[field.name])
        if named is not None:
            below = group_schema(named, f"{key}.{ANY_NAME}.")
            free = {"type": ["object", "null"], "additionalProperties": below}
            properties[field.name] = key_schema(field, key, free, docs[field.name])
        elif field.name in own:
            properties[field.name] = key_schema(field, key, own[field.name], docs[field.name])
        else:
            properties[field.name] = group_schema(hints[field.name], f"{key}.")
    nullable = ["object", "null"] if prefix else "object"
    description = re.sub(r"\s+", " ", str(inspect.getdoc(kind)))
    return {
        "description": description,
        "type": nullable,
        "additionalProperties": False,
        "properties": properties,
    }


def key_schema(
    field: "dataclasses.Field[Any]", key: str, schema: dict[str, Any], doc: str
) -> dict[str, Any]:
    """One key: what it takes, default, meaning, the papers' values, its class on resume."""
    facts = dict(schema)
    if field.default is not dataclasses.MISSING:
        facts["default"] = field.default
    elif field.default_factory is not dataclasses.MISSING:
        facts["default"] = field.default_factory()
    facts["description"] = doc
    if key in PAPERS:
        facts["x-papers"] = PAPERS[key]
    return facts | {"x-resume": key_class(key)}


def generated() -> dict[str, Any]:
    """The packaged file's content."""
    schema = group_schema(Recipe)
    roles = {
        "student": "The model that learns.",
        "teacher": "The model that the student learns from.",
    }
    for name, text in roles.items():
        schema["properties"][name]["description"] = text
    return json.loads(json.dumps(schema | {"x-papers": PAPERS}))


def main(arguments: Sequence[str]) -> None:
    """Write the packaged file, and the tables into a document."""
    SETTINGS_FILE.write_text(json.dumps(generated(), indent=1) + "\n", encoding="utf-8")
    for name in arguments:
        page = Path(name)
        page.write_text(with_reference(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

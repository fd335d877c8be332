"""JSON schema of every method's knobs, made from the dataclasses, so that torch-free verbs can validate recipes."""

import dataclasses
import inspect
import json
import re
import types
import typing
from pathlib import Path
from typing import Any

from vistill.objectives import METHODS

SCHEMA_FILE = Path(__file__).parent.parent / "schema" / "methods.json"


def knob_docs(method: type) -> dict[str, str]:
    """The docstring under each field of a method."""
    source = inspect.getsource(method)
    pattern = re.compile(r'^    (\w+): [^\n]+\n    """(.+?)"""', re.M | re.S)
    return {name: re.sub(r"\s+", " ", text) for name, text in pattern.findall(source)}


def knob_schema(annotation: Any) -> dict[str, Any]:
    """JSON schema of one annotation: bool, int, float, str or a Literal of strings."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return {"anyOf": [knob_schema(part) for part in typing.get_args(annotation)]}
    if typing.get_origin(annotation) is typing.Literal:
        return {"enum": list(typing.get_args(annotation))}
    return {"type": {bool: "boolean", int: "integer", float: "number", str: "string"}[annotation]}


def limits(field: "dataclasses.Field[Any]") -> dict[str, Any]:
    """The field's range as JSON schema."""
    if "low" not in field.metadata:
        return {}
    lower = "exclusiveMinimum" if field.metadata["above"] else "minimum"
    upper = {} if field.metadata["high"] is None else {"maximum": field.metadata["high"]}
    return {lower: field.metadata["low"], **upper}


def method_schema(method: type) -> dict[str, Any]:
    """Knobs, defaults and documentation of one method."""
    docs, hints = knob_docs(method), typing.get_type_hints(method)
    properties = {
        field.name: knob_schema(hints[field.name])
        | limits(field)
        | {"default": field.default, "description": docs[field.name]}
        for field in dataclasses.fields(method)
    }
    passes = [p.name for p in method().passes()]
    return {
        "description": inspect.getdoc(method),
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "x-needs-teacher": any(name.startswith("teacher") for name in passes),
        "x-needs-siblings": "rollout_weights" if "rollout_weights" in properties else None,
        "x-needs-image": any("pixelated" in name for name in passes),
        "x-writer": str(method.writer),
        "x-passes": passes,
    }


def methods_schema() -> dict[str, Any]:
    """The packaged file's content."""
    return {name: method_schema(method) for name, method in METHODS.items()}


def main() -> None:
    """Write the packaged file: `python -m vistill.objectives.schema`."""
    SCHEMA_FILE.write_text(json.dumps(methods_schema(), indent=2) + "\n")


if __name__ == "__main__":
    main()

"""What a settings field may hold: its type and limits as JSON schema, and the check of a value.

One schema serves the recipe, Python, `vistill schema` and `vistill explain`. Numbers are finite and
never booleans.
"""

import dataclasses
import json
import math
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from numbers import Integral, Real
from typing import Any

from vistill.errors import ConfigError, closest, quote_setting

#: JSON schema's name of each type that a field may have.
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
#: Pattern of a text that has more than spaces.
NOT_BLANK = r"\S"
#: The same in words, for messages.
WORDS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "null": "null",
    "object": "a group of keys",
}


def ranged(
    default: Any, low: float, high: float | None = None, *, above: bool = False, below: bool = False
) -> Any:
    """A dataclass field that must lie in [low, high]; None passes. Of a tuple, each item must.

    Args:
        default: the field's default.
        low: lower end.
        high: upper end; None for no upper end.
        above: exclude the lower end.
        below: exclude the upper end.
    """
    metadata = {"low": low, "high": high, "above": above, "below": below}
    return dataclasses.field(default=default, metadata=metadata)


def field_schema(annotation: Any) -> dict[str, Any]:
    """JSON schema of one annotation: a plain type, a Literal, a tuple, a dict, or a union."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [field_schema(part) for part in arguments]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        items = {"type": "array", "items": field_schema(arguments[0])}
        size = len(arguments)
        return items if arguments[-1] is ... else {**items, "minItems": size, "maxItems": size}
    if origin is dict:
        values = {} if arguments[1] is Any else field_schema(arguments[1])
        return {"type": "object", "additionalProperties": values}
    return {"type": TYPES[annotation]}


def limits(field: "dataclasses.Field[Any]") -> dict[str, Any]:
    """The field's range as JSON schema."""
    facts = field.metadata
    if "low" not in facts:
        return {}
    lower = "exclusiveMinimum" if facts["above"] else "minimum"
    upper = "exclusiveMaximum" if facts.get("below") else "maximum"
    return {lower: facts["low"]} | ({} if facts["high"] is None else {upper: facts["high"]})


def limited(schema: dict[str, Any], field: "dataclasses.Field[Any]") -> dict[str, Any]:
    """A field's schema with its range; of an array, the range of its items."""
    if schema.get("type") == "array":
        least = {"minItems": field.metadata["items"]} if "items" in field.metadata else {}
        return schema | {"items": schema["items"] | limits(field)} | least
    pattern = {"pattern": field.metadata["pattern"]} if "pattern" in field.metadata else {}
    return schema | limits(field) | pattern


def group_of_names(annotation: Any) -> type | None:
    """The settings class of `dict[str, Settings]`: a group with free names; None for the rest."""
    if typing.get_origin(annotation) is not dict:
        return None
    kind = typing.get_args(annotation)[1]
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


@cache
def schemas_of(kind: type) -> dict[str, dict[str, Any]]:
    """Schema of every field of a settings class, except groups, which check themselves."""
    hints = typing.get_type_hints(kind)
    fields = {
        f.name: f
        for f in dataclasses.fields(kind)
        if not dataclasses.is_dataclass(hints[f.name]) and group_of_names(hints[f.name]) is None
    }
    return {name: limited(field_schema(hints[name]), field) for name, field in fields.items()}


def check_ranges(settings: Any) -> None:
    """C002 for the first field that does not fit its type or range. Call it in `__post_init__`."""
    for name, schema in schemas_of(type(settings)).items():
        value = getattr(settings, name)
        if not fits(schema, value):
            default = next(f.default for f in dataclasses.fields(settings) if f.name == name)
            raise misfit(name, value, schema, default)


def misfit(key: str, value: Any, schema: Mapping[str, Any], default: Any) -> ConfigError:
    """C002 for a value that does not fit its key."""
    if isinstance(value, str) and not is_text(value):
        why = "half a surrogate pair, as an escape in quotes leaves it"
        return ConfigError(
            "C002", f"{key} holds characters that are no text", why=why, fix=f"{key}=TEXT"
        )
    hint = ""
    text = "VALUE" if default is dataclasses.MISSING else typed(default)
    if isinstance(value, list | tuple) and (items := meant_items(value, schema)):
        text = items
    elif isinstance(value, str) and not accepts_text(schema):
        hint = "; a value in quotes is text" if fits(schema, number_in(value)) else ""
        text = typed(number_in(value)) if hint else meant(value, schema) or text
    what, why = f"{key} cannot be {shown(value)}", f"it must be {describe(schema)}{hint}"
    return ConfigError("C002", what, why=why, fix=quote_setting(key, text))


def meant(value: str, schema: Mapping[str, Any]) -> str:
    """The value that a text probably stands for, as it is typed; empty if none is close.

    `1e-5x` is 1e-5, `5 %` 0.05, `True` true, and `cosin` the choice `cosine`.
    """
    kinds = schema.get("anyOf", [schema])
    choices = [typed(one) for kind in kinds for one in kind.get("enum", ())]
    near = closest(value, choices)
    if near:
        return near[0]
    if items := meant_items([value], schema):
        return items
    words = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false",
             "off": "false", "none": "null"}  # fmt: skip
    word = words.get(value.strip().lower(), "")
    if word and fits(schema, json.loads(word)):
        return word
    number = re.match(r"\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)\s*(%?)", value)
    if number is None:
        return ""
    text = f"{float(number[1]) / 100:g}" if number[2] else number[1]
    return text if fits(schema, number_in(text)) else ""


def meant_items(values: Sequence[Any], schema: Mapping[str, Any]) -> str:
    """A list of choices that are probably meant, as it is typed; empty if one is like none."""
    choices = [typed(one) for one in schema.get("items", {}).get("enum", ())]
    near = [next(iter(closest(str(value), choices)), "") for value in values]
    return f"[{','.join(near)}]" if near and all(near) else ""


def number_in(text: Any) -> Any:
    """What a text would be without its quotes."""
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        try:
            return float(text)
        except (TypeError, ValueError):
            return text


def typed(value: Any) -> str:
    """A value as it is typed behind `key=`, without blanks that a shell would split at."""
    return (
        value if isinstance(value, str) else json.dumps(value, default=str, separators=(",", ":"))
    )


def shown(value: Any) -> str:
    """A value as a message shows it; text in quotes."""
    return f"{json.dumps(value, default=str, ensure_ascii=False):.80}"


def fits(schema: Mapping[str, Any], value: Any) -> bool:
    """Whether a value fits a schema, as JSON schema says; infinities and NaN never fit."""
    if "anyOf" in schema and not any(fits(part, value) for part in schema["anyOf"]):
        return False
    if "enum" in schema and not any(
        value == one and same_kind(value, one) for one in schema["enum"]
    ):
        return False
    if "type" in schema and not has_type(value, schema["type"]):
        return False
    if isinstance(value, (list, tuple)):
        within = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", sys.maxsize)
        return within and all(fits(schema.get("items", {}), item) for item in value)
    if isinstance(value, Mapping):
        values = values_of(schema)
        return all(is_text(str(key)) and fits(values, item) for key, item in value.items())
    is_finite_number = not is_number(value) or (is_finite(value) and in_range(schema, value))
    return is_finite_number and matches(schema, value)


def matches(schema: Mapping[str, Any], value: Any) -> bool:
    """Whether a text matches the schema's pattern; anything else does."""
    return not isinstance(value, str) or re.search(schema.get("pattern", ""), value) is not None


def has_type(value: Any, name: str | list[str]) -> bool:
    """Whether a value has a JSON type. `5.0` is an integer, `true` is no number."""
    if isinstance(name, list):
        return any(has_type(value, one) for one in name)
    if name == "integer":
        return (
            is_number(value)
            and is_finite(value)
            and (isinstance(value, Integral) or float(value).is_integer())
        )
    if name == "number":
        return is_number(value)
    if name == "string":
        return isinstance(value, str) and is_text(value)
    kinds = {"boolean": bool, "null": type(None), "object": Mapping, "array": (list, tuple)}
    return isinstance(value, kinds[name])


def values_of(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of the values of a group with free names."""
    values = schema.get("additionalProperties")
    return values if isinstance(values, Mapping) else {}


def is_text(value: str) -> bool:
    """Whether a text holds whole characters: half a surrogate pair cannot be stored."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def is_number(value: Any) -> bool:
    """A number that is no boolean."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether a number can be stored as JSON: no infinity, no NaN, nothing above a float."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def same_kind(value: Any, other: Any) -> bool:
    """`true` is not 1."""
    return isinstance(value, bool) == isinstance(other, bool)


def in_range(schema: Mapping[str, Any], value: Any) -> bool:
    """Whether a number lies within the limits."""
    return (
        value >= schema.get("minimum", value)
        and value <= schema.get("maximum", value)
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
    )


def accepts_text(schema: Mapping[str, Any]) -> bool:
    """Whether any text fits."""
    return schema.get("type") == "string" or any(
        accepts_text(part) for part in schema.get("anyOf", ())
    )


def converted(schema: Mapping[str, Any], value: Any) -> Any:
    """A value that fits, as its type: a float, an int, a tuple."""
    if "anyOf" in schema:
        return converted(next(part for part in schema["anyOf"] if fits(part, value)), value)
    if isinstance(value, (list, tuple)):
        return tuple(converted(schema.get("items", {}), item) for item in value)
    if isinstance(value, Mapping):
        return {key: converted(values_of(schema), item) for key, item in value.items()}
    if takes_whole(schema):
        return whole(value)
    return float(value) if schema.get("type") == "number" else value


def takes_whole(schema: Mapping[str, Any]) -> bool:
    """Whether a key's numbers are integers."""
    kinds = [part.get("type") for part in schema.get("anyOf", [schema])]
    return ("integer" in kinds and "number" not in kinds) or schema.get("enum") == [1]


def whole(value: Any) -> Any:
    """`5.0` as 5; anything but a float as it is."""
    return int(value) if isinstance(value, float) else value


def describe(schema: Mapping[str, Any]) -> str:
    """What a key takes, in words: `a number, above 0 and at most 1`."""
    if "anyOf" in schema:
        kinds = " or ".join(describe(part) for part in schema["anyOf"])
    elif "enum" in schema:
        kinds = " | ".join(typed(one) for one in schema["enum"])
    elif schema.get("type") == "array":
        least = schema.get("minItems", 0)
        exactly = "" if least == schema.get("maxItems") else "at least "
        count = f" of {exactly}{least}" if least else ""
        kinds = f"a list{count}: {describe(schema['items'])}"
    elif "properties" in values_of(schema):
        kinds = "names, each with a group of keys"
    elif values_of(schema):
        kinds = f"a group of names, each with {describe(values_of(schema))}"
    else:
        kinds = WORDS.get(schema.get("type", ""), "anything")
        pattern = schema.get("pattern", "")
        if pattern == NOT_BLANK:
            kinds += " that is not blank"
        elif pattern:
            kinds += " that contains " + pattern.replace("\\", "")
    bounds = bounds_of(schema)
    return f"{kinds}, {bounds}" if bounds else kinds


def bounds_of(schema: Mapping[str, Any]) -> str:
    """Limits in words."""
    words = (
        ("exclusiveMinimum", "above"),
        ("minimum", "at least"),
        ("exclusiveMaximum", "below"),
        ("maximum", "at most"),
    )
    return " and ".join(f"{word} {schema[name]}" for name, word in words if name in schema)

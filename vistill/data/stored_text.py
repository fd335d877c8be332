"""Lists and mappings that a file stores as text: in JSON, in Python's form or in numpy's."""

import ast
import contextlib
import json
import math
import re
import warnings
from collections.abc import Mapping
from numbers import Real
from typing import Any

#: How the text of a list or a mapping begins, and how it ends.
ENDS = {"[": "]", "(": ")", "{": "}"}
#: Names in the text of a list that stand for a value.
NAMES = {"nan": math.nan, "NaN": math.nan, "None": None, "null": None}
NAMES |= {"True": True, "False": False, "true": True, "false": False}
MAX_DEPTH = 20
ARRAY = "array("
#: A text that begins like this is a list or a mapping of texts, whole or damaged.
STARTS = ("['", '["', "{'", '{"', "array([")
TOKEN = re.compile(
    r"""\s*(?:('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
    r"""|([-+.\d][-+.\deE]*)|([A-Za-z]+)|([][(){},:]))""",
    re.DOTALL,
)


def collection_in_text(text: str) -> Any:
    """The list or mapping that a text spells; the text itself if it spells none."""
    plain = text.strip()
    if plain.startswith(ARRAY) and plain.endswith(")"):
        plain = plain.removeprefix(ARRAY)[:-1]
        values, comma, _ = plain.rpartition(", dtype=")
        plain = values if comma else plain
    if len(plain) < 2 or ENDS.get(plain[0]) != plain[-1]:
        return text
    try:
        value = parsed_collection(plain)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, list | dict) else text


def parsed_collection(text: str) -> Any:
    """The value of the text of a list or mapping; tuples and sets become lists.

    Commas may be missing: numpy writes `['30' '40']`. Python's own parser would join these strings,
    and it takes exponential time on some texts.

    Raises:
        ValueError: the text is no literal.
    """
    stack: list[tuple[str, list[Any]]] = [("", [])]
    at = 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None or (len(stack) == 1 and at > 0) or len(stack) > MAX_DEPTH:
            raise ValueError("no literal")
        at = match.end()
        mark = match.group(4)
        if mark in ENDS:
            stack.append((mark, []))
        elif mark in ENDS.values():
            opened, items = stack.pop()
            if ENDS.get(opened) != mark:
                raise ValueError("no literal")
            stack[-1][1].append(collected(opened, items))
        elif mark != ",":
            stack[-1][1].append(COLON if mark else scalar(match))
    if len(stack) != 1 or len(stack[0][1]) != 1:
        raise ValueError("no literal")
    return stack[0][1][0]


COLON = object()


def scalar(match: "re.Match[str]") -> Any:
    """The value of a token that is a string, a number or a name."""
    string, number, name, _ = match.groups()
    if string:
        return text_of(string)
    if number:
        return int(number) if number.lstrip("+-").isdecimal() else float(number)
    if name not in NAMES:
        raise ValueError("no literal")
    return NAMES[name]


def text_of(string: str) -> str:
    """The text of a string in JSON or in Python."""
    if string[0] == '"':
        with contextlib.suppress(ValueError):
            return json.loads(string)
    with warnings.catch_warnings():  # an unknown escape such as \\s stays as it is
        warnings.simplefilter("ignore")
        return ast.literal_eval(string)


def collected(opened: str, items: list[Any]) -> Any:
    """A list of items, or the mapping of `key : value` pairs."""
    if COLON not in items:
        return items
    if opened != "{" or len(items) % 3 or any(item is not COLON for item in items[1::3]):
        raise ValueError("no literal")
    if any(isinstance(key, list | dict) for key in items[::3]):
        raise ValueError("no literal")
    pairs = zip(items[::3], items[2::3], strict=True)
    return {str(key): value for key, value in pairs}


def holds_numbers_alone(value: Any) -> bool:
    """Whether a list holds numbers and nothing else, at any depth: a vector, set or interval."""
    if isinstance(value, list):
        return bool(value) and all(map(holds_numbers_alone, value))
    if isinstance(value, Mapping):
        return all(map(holds_numbers_alone, value.values()))
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return is_number and not math.isnan(value)

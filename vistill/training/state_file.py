"""`state.json` of a checkpoint as plain values: what it holds, checked when it is read, older formats read as well."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vistill.runs.storage import read_json

#: What lay in a dictionary called `method` in format 1, and the fields they are since.
IN_METHOD = {
    "memory": "memory",
    "non_finite_in_a_row": "non_finite_in_a_row",
    "warned": "warned",
    "all_truncated": "all_truncated_in_a_row",
    "reference_sha256": "reference_sha256",
}


def is_count(value: Any) -> bool:
    """A whole number from 0."""
    return type(value) is int and value >= 0


def is_number(value: Any) -> bool:
    """A finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def maps_to(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A dictionary of names to such values."""
    return lambda value: (
        isinstance(value, Mapping)
        and all(isinstance(k, str) and check(v) for k, v in value.items())
    )


def is_text(value: Any) -> bool:
    """A text."""
    return isinstance(value, str)


def is_best(value: Any) -> bool:
    """Step and value of the best evaluation, and on how many rows; or none."""
    if value is None:
        return True
    if not isinstance(value, Mapping) or not {"step", "value"} <= set(value) <= {
        "step",
        "value",
        "rows",
    }:
        return False
    return (
        is_count(value["step"]) and is_number(value["value"]) and is_number(value.get("rows") or 0)
    )


#: Every field, what it must be, and what it is where a file does not have it.
FIELDS: dict[str, tuple[Callable[[Any], bool], Callable[[], Any]]] = {
    "step": (is_count, int),
    "best": (is_best, lambda: None),
    "skipped": (is_count, int),
    "gone": (maps_to(is_text), dict),
    "ladder": (maps_to(is_count), dict),
    "memory": (maps_to(is_number), dict),
    "non_finite_in_a_row": (is_count, int),
    "warned": (lambda value: isinstance(value, list) and all(map(is_text, value)), list),
    "all_truncated_in_a_row": (is_count, int),
    "reference_sha256": (lambda value: value is None or is_text(value), lambda: None),
    "chain": (is_text, str),
}


def checked_state(raw: Mapping[str, Any]) -> dict[str, Any]:
    """All fields, missing ones as they are at the start (ValueError where one is unknown or has no such value)."""
    unknown = sorted(set(raw) - set(FIELDS))
    if unknown:
        raise ValueError(f"state.json has a field that this version does not know: {unknown[0]}")
    state = {name: raw[name] if name in raw else start() for name, (_, start) in FIELDS.items()}
    for name, (holds, _) in FIELDS.items():
        if not holds(state[name]):
            raise ValueError(f"state.json has no such {name}: {state[name]!r:.60}")
    return state


def state_of_format_1(raw: Mapping[str, Any], manifest_hash: str) -> dict[str, Any]:
    """The fields of a state that was written with a dictionary `method` and without a chain.

    Its past is known by what the checkpoint holds: the journal continues from the hash of its manifest.
    """
    method = raw.get("method", {})
    if not isinstance(method, Mapping) or not set(method) <= set(IN_METHOD):
        raise ValueError(f"state.json has no such method: {method!r:.60}")
    rest = {name: value for name, value in raw.items() if name != "method"}
    return {
        **rest,
        **{IN_METHOD[name]: value for name, value in method.items()},
        "chain": manifest_hash,
    }


def read_state(file: Path, format_: int, manifest_hash: str) -> dict[str, Any]:
    """The fields of a state file of format 1 or 2 (ValueError or S606 where it is none)."""
    raw = read_json(file)
    return checked_state(state_of_format_1(raw, manifest_hash) if format_ == 1 else raw)

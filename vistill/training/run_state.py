"""What a run carries from step to step besides weights and optimizer, and its file `state.json`.

The file holds plain values. They are checked when they are read, and the formats of older versions
are read as well.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vistill.runs.storage import read_json
from vistill.training.rollout_health import RolloutHealth


@dataclass
class RunState:
    """Counters, replaced rows and the method's memory. The data order needs only the step."""

    step: int = 0
    """Updates taken or skipped so far."""
    best: dict[str, float] | None = None
    """Step, value and rows of the best evaluation; derived from the log at every start."""
    skipped: int = 0
    """Updates skipped because they were not finite."""
    non_finite_in_a_row: int = 0
    """Skipped updates since the last one that was finite."""
    rollout_health: RolloutHealth = field(default_factory=RolloutHealth)
    """Warnings about rollouts that were given, and steps without a response that ends."""
    replaced_rows: dict[str, str] = field(default_factory=dict)
    """Rows that are replaced from now on: id and code of the reason."""
    halvings: dict[str, int] = field(default_factory=dict)
    """How often each phase was halved because it ran out of memory."""
    memory: dict[str, float] = field(default_factory=dict)
    """What the method remembers of earlier steps."""
    reference_sha256: str | None = None
    """Hash of the weights the run began with, where the method compares with them."""
    chain: str = ""
    """Identifies the steps so far (`training/journal.py`)."""

    def to_dict(self) -> dict[str, Any]:
        """For `state.json`."""
        return dataclasses.asdict(self)


def is_count(value: Any) -> bool:
    """A whole number from 0."""
    return type(value) is int and value >= 0


def is_number(value: Any) -> bool:
    """A finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def is_text(value: Any) -> bool:
    """A text."""
    return isinstance(value, str)


def is_mapping_to(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A dictionary from names to values that pass a check."""

    def is_mapping(value: Any) -> bool:
        return isinstance(value, Mapping) and all(
            isinstance(name, str) and check(item) for name, item in value.items()
        )

    return is_mapping


def is_list_of_texts(value: Any) -> bool:
    """A list of texts."""
    return isinstance(value, list) and all(map(is_text, value))


def is_best(value: Any) -> bool:
    """Step and value of the best evaluation, and on how many rows; or None."""
    if value is None:
        return True
    if not isinstance(value, Mapping):
        return False
    names = set(value)
    return (
        {"step", "value"} <= names <= {"step", "value", "rows"}
        and is_count(value["step"])
        and is_number(value["value"])
        and is_number(value.get("rows") or 0)
    )


def is_text_or_none(value: Any) -> bool:
    """A text, or None."""
    return value is None or is_text(value)


#: Every field of the file: what its value must be, and its value at the start of a run.
FIELDS: dict[str, tuple[Callable[[Any], bool], Callable[[], Any]]] = {
    "step": (is_count, int),
    "best": (is_best, lambda: None),
    "skipped": (is_count, int),
    "replaced_rows": (is_mapping_to(is_text), dict),
    "halvings": (is_mapping_to(is_count), dict),
    "memory": (is_mapping_to(is_number), dict),
    "non_finite_in_a_row": (is_count, int),
    "rollout_health": (lambda value: isinstance(value, Mapping), dict),
    "reference_sha256": (is_text_or_none, lambda: None),
    "chain": (is_text, str),
}
#: The same for the fields of `rollout_health`.
HEALTH_FIELDS: dict[str, tuple[Callable[[Any], bool], Callable[[], Any]]] = {
    "all_truncated_in_a_row": (is_count, int),
    "warned": (is_list_of_texts, list),
}
#: Names in format 2 of fields that have another name, and those in format 1, in its dictionary
#: `method`.
RENAMED_SINCE_2 = {"gone": "replaced_rows", "ladder": "halvings"}
METHOD_OF_1 = {
    "memory": "memory",
    "non_finite_in_a_row": "non_finite_in_a_row",
    "warned": "warned",
    "all_truncated": "all_truncated_in_a_row",
    "reference_sha256": "reference_sha256",
}


def check_fields(
    raw: Mapping[str, Any],
    fields: Mapping[str, tuple[Callable[[Any], bool], Callable[[], Any]]],
) -> dict[str, Any]:
    """All fields, missing ones with their first value (ValueError for an unknown or bad one)."""
    unknown = sorted(set(raw) - set(fields))
    if unknown:
        raise ValueError(f"state.json has a field that this version does not know: {unknown[0]}")
    values = {name: raw[name] if name in raw else start() for name, (_, start) in fields.items()}
    for name, (is_valid, _) in fields.items():
        if not is_valid(values[name]):
            raise ValueError(f"state.json has a bad value for {name}: {values[name]!r:.60}")
    return values


def check_state(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The checked fields of a state in the format of today."""
    values = check_fields(raw, FIELDS)
    return {**values, "rollout_health": check_fields(values["rollout_health"], HEALTH_FIELDS)}


def upgrade_format_1(raw: Mapping[str, Any], manifest_hash: str) -> dict[str, Any]:
    """A state of format 1 in format 2: typed fields in place of a dictionary `method`, and a chain.

    The checkpoint identifies the steps so far: the journal continues from the hash of its manifest.
    """
    method = raw.get("method", {})
    if not isinstance(method, Mapping) or not set(method) <= set(METHOD_OF_1):
        raise ValueError(f"state.json has a bad value for method: {method!r:.60}")
    fields = {METHOD_OF_1[name]: value for name, value in method.items()}
    rest = {name: value for name, value in raw.items() if name != "method"}
    return {**rest, **fields, "chain": manifest_hash}


def upgrade_format_2(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A state of format 2 in format 3: new names, and rollout counters in `rollout_health`."""
    later = sorted({*RENAMED_SINCE_2.values(), "rollout_health"} & set(raw))
    if later:
        raise ValueError(f"state.json has a field that format 2 does not know: {later[0]}")
    health = {name: raw[name] for name in HEALTH_FIELDS if name in raw}
    rest = {
        RENAMED_SINCE_2.get(name, name): value
        for name, value in raw.items()
        if name not in HEALTH_FIELDS
    }
    return {**rest, "rollout_health": health}


def read_state(file: Path, format_: int, manifest_hash: str) -> RunState:
    """The state of a checkpoint of format 1, 2 or 3.

    Raises:
        ValueError: a field is unknown, or its value is not possible.
        StorageError: S606, the file cannot be read.
    """
    raw: Mapping[str, Any] = read_json(file)
    if format_ == 1:
        raw = upgrade_format_1(raw, manifest_hash)
    if format_ <= 2:
        raw = upgrade_format_2(raw)
    values = check_state(raw)
    return RunState(**{**values, "rollout_health": RolloutHealth(**values["rollout_health"])})

"""Ranges of settings, stated where the field is and checked wherever the object is made."""

import dataclasses
import json
import math
from typing import Any

from vistill.errors import ConfigError


def ranged(default: Any, low: float, high: float | None = None, *, above: bool = False) -> Any:
    """A dataclass field that must lie in [low, high]; `above` makes the lower end exclusive. None passes."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "above": above})


def check_ranges(settings: Any) -> None:
    """C002 for the first field outside its range. Call it in `__post_init__`."""
    for field in dataclasses.fields(settings):
        value, low = getattr(settings, field.name), field.metadata.get("low")
        if low is None or isinstance(value, (str, bool)) or value is None:
            continue
        high, above = field.metadata["high"], field.metadata["above"]
        inside = (value > low if above else value >= low) and (high is None or value <= high)
        inside &= math.isfinite(
            value
        )  # JSON holds no infinity, so the run's own recipe could not be read again
        if not inside:
            lower = f"above {low}" if above else f"at least {low}"
            upper = (
                f" and at most {high}"
                if high is not None
                else ""
                if math.isfinite(value)
                else " and finite"
            )
            raise ConfigError(
                "C002",
                f"{field.name} = {value} is out of range",
                why=f"{field.name} must be {lower}{upper}",
                fix=f"{field.name}={json.dumps(field.default)}",
            )

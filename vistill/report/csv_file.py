"""CSV files that a spreadsheet opens without computing anything: the one place that writes them."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vistill.redaction import mask_secrets

#: How a text begins that a spreadsheet takes for a formula, or that it strips before it looks.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def cell(value: Any) -> Any:
    """A text that begins like a formula gets a quote before it; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    return f"'{mask_secrets(value)}" if value.startswith(FORMULA) else mask_secrets(value)


def write_sheet(out: Path, names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows under a line of names."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8", errors="backslashreplace") as handle:
        writer = csv.writer(handle)
        writer.writerow([cell(name) for name in names])
        writer.writerows([cell(row.get(name)) for name in names] for row in rows)

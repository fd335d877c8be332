"""Write CSV files without formulas, for spreadsheets."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vistill.redaction import mask_secrets

#: First characters of a text that a spreadsheet reads as a formula or strips before it decides.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def safe_cell(value: Any) -> Any:
    """Mask secrets, and put a quote before a text that looks like a formula; keep numbers."""
    if not isinstance(value, str):
        return value
    return f"'{mask_secrets(value)}" if value.startswith(FORMULA) else mask_secrets(value)


def write_csv(out: Path, names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a header of names and the rows."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8", errors="backslashreplace") as handle:
        writer = csv.writer(handle)
        writer.writerow([safe_cell(name) for name in names])
        writer.writerows([safe_cell(row.get(name)) for name in names] for row in rows)

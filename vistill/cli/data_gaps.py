"""What rows lack that `vistill init` looked at: columns, questions, pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

from vistill.cli.data_answers import AskedRow
from vistill.data.column_groups import value_at
from vistill.data.layouts import Layout
from vistill.data.sources import USUAL_COLUMNS
from vistill.errors import DataError, quote_setting

Row = Mapping[str, Any]


def lacking(
    columns: Mapping[str, str], names: Sequence[str], rows: Sequence[Row], asked: Sequence[AskedRow]
) -> list[str]:
    """Notes on columns, pictures and questions that are missing."""
    notes = []
    absent = next((key for key in ("prompt", "images", "answer") if key not in columns), "")
    empty = [name for name in USUAL_COLUMNS.get(absent, ()) if name in names]
    if absent:
        reason = f"{' and '.join(empty)} hold none" if empty else f"none among {', '.join(names)}"
        notes.append(f"no column for {absent}: {reason}; set data.columns.{absent}")
    silent = sum(not row.question.strip() for row in asked)
    if silent and "prompt" in columns:
        share = quote_setting("data.max_bad_share", f"{silent / len(asked) + 0.02:.2f}")
        notes.append(f"{silent} of {len(asked)} rows have no question: {share} sets them aside")
    return notes


def pictures_lacking(columns: Mapping[str, str], rows: Sequence[Row], layout: Layout) -> list[str]:
    """A note on rows without a picture, neither in their columns nor in a turn."""
    if not columns.get("images"):
        return []
    without = sum(not has_picture(row, columns["images"], layout) for row in rows)
    if not without:
        return []
    goes_on = "text_only=error stops there; drop or plain goes on"
    return [f"{without} of {len(rows)} rows have no picture: {goes_on}"]


def has_picture(row: Row, images: str, layout: Layout) -> bool:
    """Whether a row names a picture; one that cannot be read counts as one with a picture."""
    if any(value_at(row, name) for name in images.split(",")):
        return True
    try:
        return bool(layout.name and layout.plain_row(row, "").get(layout.columns.images))
    except DataError:
        return True

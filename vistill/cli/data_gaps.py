"""What rows lack that `vistill init` looked at: columns, questions, pictures; refused rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from vistill.answers.values import has_decimal_comma
from vistill.cli.data_answers import AskedRow
from vistill.data.column_groups import value_at
from vistill.data.images import FileImage, image_missing_error, may_be_file
from vistill.data.layouts import Layout
from vistill.data.loading import make_reader
from vistill.data.rows import RowReader
from vistill.data.settings import DataSettings
from vistill.data.sources import USUAL_COLUMNS
from vistill.errors import DataError, quote_setting

Row = Mapping[str, Any]
#: The number of a row, and the row or why it cannot be read.
SampledRow = tuple[int, dict[str, Any] | DataError]
#: Kinds of refused rows that are shown.
MOST_KINDS = 3


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
    answered = [row for row in asked if row.texts and not row.choices]
    commas = [text for row in answered for text in row.texts[:1] if has_decimal_comma(text)]
    if len(commas) * 5 > len(answered):
        notes.append(
            f"{len(commas)} of {len(answered)} gold answers have a decimal comma, such as "
            f"{commas[0]}: they are read as two numbers. Write decimals with a point"
        )
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


def rows_refused(
    sample: Sequence[SampledRow], settings: DataSettings, notes: Sequence[str]
) -> tuple[list[str], str]:
    """Notes on rows that `vistill check` refuses, a line per code; and the fix of a whole source.

    Pictures are not decoded.

    Args:
        sample: rows with their numbers.
        settings: of the recipe.
        notes: what has been said before. Unreadable cells and empty questions are not repeated.
    """
    try:
        reader = make_reader(settings.train, settings)
    except DataError as error:
        note = f"vistill check refuses these data: {error.code} {error.what}; {error.why}"
        return [note], error.fix
    refused: dict[str, list[DataError]] = {}
    for line, row in sample:
        error = refusal(reader, row, line)
        if error is not None:
            refused.setdefault(error.code, []).append(error)
    if any("(D104)" in note or "have no question" in note for note in notes):
        refused.pop("D104", None)
    lines = [
        f"{len(errors)} of {len(sample)} rows are refused ({code}), first {errors[0].where}: "
        f"{errors[0].what}; {errors[0].why}   (vistill check says the fix)"
        for code, errors in [*refused.items()][:MOST_KINDS]
    ]
    return lines, ""


def refusal(reader: RowReader, row: dict[str, Any] | DataError, line: int) -> DataError | None:
    """Why a row cannot be used; None if it can, as far as that shows without decoding."""
    if isinstance(row, DataError):
        return row
    try:
        prompt = reader.undecoded_prompt(row, line)
        for image in (*prompt.images, *prompt.thoughts):
            if isinstance(image, FileImage) and not may_be_file(image.path):
                raise image_missing_error(image.path, image.where, image.root)
    except DataError as error:
        return error
    return None

"""Rows without an image: how many there are, and the column that may hold their pictures (D204)."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from vistill.data.column_groups import picture_columns
from vistill.data.rows import RowReader
from vistill.data.sources import read_source
from vistill.errors import DataError, quote_setting
from vistill.types import Prompt

#: Rows in which a column of pictures is looked for.
FIRST_ROWS = 20
#: What to do about some rows without an image.
GO_ON = "data.text_only=drop   or   data.text_only=plain"
#: Most rows that are searched for images after one without an image.
ROWS_TO_SEARCH = 10_000


def no_image_error(prompt: Prompt, reader: RowReader) -> DataError:
    """D204 with the number of rows without an image, and the first few of them."""
    lines, total, columns = rows_without_image(reader)
    shown = ", ".join(str(line) for line in lines[:5])
    more = f" and {len(lines) - 5:,} more" if len(lines) > 5 else ""
    first = "the first " if total == ROWS_TO_SEARCH else ""
    count = f"{len(lines):,} of {first}{total:,} rows"
    return DataError(
        "D204",
        f"{count} of {reader.source} {'has' if len(lines) == 1 else 'have'} no image",
        where=prompt.labels.get("row", prompt.id),
        why=f"{'row' if len(lines) == 1 else 'rows'} {shown}{more}; "
        "visual advantage is undefined without an image",
        fix=no_image_fix(columns) if len(lines) == total else GO_ON,
    )


def no_image_fix(columns: Sequence[str]) -> str:
    """Name the column of pictures where no row has an image; without one, go on without images."""
    named = [quote_setting("data.columns.images", name) for name in columns[:1]]
    return "   or   ".join([*named, "data.text_only=plain"])


def rows_without_image(reader: RowReader) -> tuple[list[int], int, list[str]]:
    """Numbers of the rows without an image, how many rows were searched, columns of pictures."""
    lines, total, first = list[int](), 0, list[Mapping[str, Any]]()
    for line, row in itertools.islice(read_source(reader.source), ROWS_TO_SEARCH):
        total += 1
        if isinstance(row, Mapping) and has_no_image(reader, row, line):
            first += [row] if len(first) < FIRST_ROWS else []
            lines.append(line)
    return lines, total, picture_columns(first)


def has_no_image(reader: RowReader, row: Mapping[str, Any], line: int) -> bool:
    """Whether a row names no image. A row that cannot be read counts as one with an image."""
    where = f"{reader.source}:{line}"
    columns = reader.settings.columns if reader.layout is None else reader.layout.columns
    try:
        plain = row if reader.layout is None else reader.layout.plain_row(row, where)
        return not any(reader.images(plain, columns.images, where))
    except DataError:
        return False

"""Columns that belong together: one image each (`image_1`, ...), or one option each (`A`, ...).

MMMU has numbered columns of images, the tables of VLMEvalKit one column per option. A recipe names
such columns with commas: `data.columns.choices=A,B,C,D`.
"""

import string
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from vistill.data.gold import is_missing
from vistill.data.layout_checks import as_list, numbered_images
from vistill.data.settings import Columns

Row = Mapping[str, Any]

#: How the names of picture files end.
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
#: Columns that usually hold the images of a row.
IMAGE_COLUMNS = ("images", "image")
#: The columns of a mapped row that stand for a group. No data set has such names.
IMAGES, OPTIONS = "@images", "@options"


def looks_like_picture(value: Any) -> bool:
    """Whether a cell holds the name of a picture file, a stored picture, or a list of such."""
    if isinstance(value, list | tuple):
        return bool(value) and all(map(looks_like_picture, value))
    if isinstance(value, Mapping):
        return bool({"bytes", "path", "url"} & set(value))
    return isinstance(value, bytes) or str(value).lower().endswith(PICTURE_SUFFIXES)


def picture_columns(rows: Sequence[Row]) -> list[str]:
    """Columns whose cells, where they hold something, look like pictures."""
    cells: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            cells.setdefault(str(name), []).extend([] if is_missing(value) else [value])
    return [
        name for name, values in cells.items() if values and all(map(looks_like_picture, values))
    ]


def named_columns(rows: Sequence[Row], setting: str) -> tuple[str, ...]:
    """The columns that a setting names with commas; none if it is the name of one column."""
    if "," not in setting or any(setting in row for row in rows):
        return ()
    return tuple(name.strip() for name in setting.split(",") if name.strip())


def image_columns(rows: Sequence[Row], setting: str) -> tuple[str, ...]:
    """The columns of one image each: those that the recipe names, or `image_1`, `image_2`, ...

    The latter only if the recipe keeps the default and no row has an image in a usual column.
    """
    if setting != Columns().images:
        return named_columns(rows, setting)
    is_usual = any(as_list(row.get(name)) for row in rows for name in IMAGE_COLUMNS)
    return () if is_usual else numbered_images(rows)


def option_columns(rows: Sequence[Row], answer: str) -> tuple[str, ...]:
    """The columns `A`, `B`, ... of a source; none unless most gold answers are their letters.

    Args:
        rows: the first rows.
        answer: the column of the gold answers.
    """
    present = {name for row in rows for name in row}
    letters = []
    for letter in string.ascii_uppercase:
        if letter not in present:
            break
        letters.append(letter)
    asked = [row for row in rows if all(is_option(row.get(name)) for name in "AB")]
    golds = [str(row.get(answer)).strip() for row in asked if not is_missing(row.get(answer))]
    named = sum(gold in letters for gold in golds)
    return tuple(letters) if len(letters) >= 2 and 2 * named > len(golds) else ()


def is_option(value: Any) -> bool:
    """Whether a cell holds one option: a text or a number."""
    return isinstance(value, str | Real) and not is_missing(value)


def joined_cells(row: Row, columns: Sequence[str]) -> list[Any]:
    """The cells of several columns in order; a list in a cell is continued, an empty cell stays."""
    cells = []
    for name in columns:
        value = value_at(row, name)
        cells += value if isinstance(value, list) else [value]
    return cells


def value_at(row: Row, name: str) -> Any:
    """The value of a column; `extra_info.answer` leads into a mapping."""
    if name in row or "." not in name:
        return row.get(name)
    outer, _, inner = name.partition(".")
    value = row.get(outer)
    return value_at(value, inner) if isinstance(value, Mapping) else None

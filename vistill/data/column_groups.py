"""Columns that belong together: one image each (`image_1`, ...), or one option each (`A`, ...).

MMMU has numbered columns of images, the tables of VLMEvalKit one column per option. A recipe names
such columns with commas: `data.columns.choices=A,B,C,D`.
"""

import itertools
import re
import string
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from vistill.data.gold import is_missing, is_quantity
from vistill.data.layout_checks import as_list, numbered_images
from vistill.data.settings import Columns
from vistill.errors import quote_setting

Row = Mapping[str, Any]

#: How the names of picture files end.
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
#: Columns that usually hold the images of a row.
IMAGE_COLUMNS = ("images", "image")
#: The columns of a mapped row that stand for a group. No data set has such names.
IMAGES, OPTIONS = "@images", "@options"
#: Names of columns of one option each: `A`, `option_a`, `optionB`, `choice_1`, `opa`.
OPTION_NAME = re.compile(r"((?i:options?|choices?|opt?)[_ -]?)?([A-Z]|(?<=.)[a-z]|(?<=.)\d{1,2})")


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


def matching_columns(row: Row, name: str) -> list[str]:
    """The columns that a name with one `*` matches, by the number in its place.

    `reasoning_image_*` reads `reasoning_image_0`, `reasoning_image_1`, ... A name without `*`
    matches none.
    """
    before, star, after = name.partition("*")
    pattern = re.compile(rf"{re.escape(before)}(\d+){re.escape(after)}")
    numbers = {column: match for column in row if (match := pattern.fullmatch(str(column)))}
    return sorted(numbers, key=lambda column: int(numbers[column][1])) if star else []


def image_columns(rows: Sequence[Row], setting: str) -> tuple[str, ...]:
    """The columns of one image each: those that the recipe names, or `image_1`, `image_2`, ...

    The latter only if the recipe keeps the default and no row has an image in a usual column.
    """
    if setting != Columns().images:
        return named_columns(rows, setting)
    is_usual = any(as_list(row.get(name)) for row in rows for name in IMAGE_COLUMNS)
    return () if is_usual else numbered_images(rows)


def option_columns(rows: Sequence[Row], answer: str) -> tuple[str, ...]:
    """The columns of one option each; none unless most gold answers name such an option.

    A letter or an index names one; so does the text of an option in a column like `option_a`. An
    index names no option of bare letters where these columns hold numbers: those may be a table.

    Args:
        rows: the first rows.
        answer: the column of the gold answers.
    """
    columns = columns_like_options(rows)
    if not columns:
        return ()
    is_bare = len(columns[0]) == 1
    letters = string.ascii_uppercase[: len(columns)]
    named, count = 0, 0
    for row in rows:
        cells = [row.get(name) for name in columns]
        gold = value_at(row, answer) if answer else None
        if is_missing(gold) or not all(map(is_option, cells[:2])):
            continue
        texts = [str(cell).strip() for cell in cells if is_option(cell)]
        text, count = str(gold).strip(), count + 1
        is_letter = len(text) == 1 and text.upper() in letters
        is_index = re.fullmatch(r"\d{1,2}", text) is not None and int(text) <= len(columns)
        is_index = is_index and not (is_bare and all(map(is_quantity, texts)))
        named += is_letter or is_index or (not is_bare and text in texts)
    return columns if 2 * named > count else ()


def columns_like_options(rows: Sequence[Row]) -> tuple[str, ...]:
    """Columns with cells whose names count options: `A`, `B`, or `option_a`, `choice_1` and on."""
    groups: dict[str, dict[str, str]] = {}
    for name in dict.fromkeys(str(name) for row in rows for name in row):
        match = OPTION_NAME.fullmatch(name)
        if match:
            kind = "number" if match.group(2).isdigit() else "letter"
            group = groups.setdefault(f"{match.group(1) or ''}{kind}".lower(), {})
            group[match.group(2).upper()] = name
    for group in groups.values():
        for names in (string.ascii_uppercase, range(10), range(1, 11)):
            present = itertools.takewhile(group.__contains__, map(str, names))
            columns = tuple(group[name] for name in present)
            filled = (all(is_option(row.get(name)) for name in columns[:2]) for row in rows)
            if len(columns) >= 2 and any(filled):
                return columns
    return ()


def unread_options(rows: Sequence[Row]) -> str:
    """A note on columns that look like options, with the setting that reads them."""
    columns = columns_like_options(rows)
    if not columns:
        return ""
    setting = quote_setting("data.columns.choices", ",".join(columns))
    return f"columns {', '.join(columns)} look like options and are not read: {setting}"


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

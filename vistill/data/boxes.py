"""Boxes of a row: left, top, right, bottom in pixels of its first image."""

import math
from collections.abc import Sequence
from typing import Any

from vistill.data.gold import is_missing
from vistill.errors import DataError


def parse_boxes(value: Any, where: str) -> tuple[tuple[float, float, float, float], ...]:
    """Parse one box or a list: left, top, right, bottom in pixels of the first image (D207)."""
    if is_missing(value) or value in ([], [None]):
        return ()
    is_list = (
        isinstance(value, (list, tuple)) and len(value) > 0 and isinstance(value[0], (list, tuple))
    )
    return tuple(parse_box(box, where) for box in (value if is_list else [value]))


def parse_box(box: Any, where: str) -> tuple[float, float, float, float]:
    """Parse one box (D207)."""
    has_four = isinstance(box, (list, tuple)) and len(box) == 4
    numbers = (
        [float(x) for x in box if isinstance(x, (int, float)) and not isinstance(x, bool)]
        if has_four
        else []
    )
    is_finite = len(numbers) == 4 and all(map(math.isfinite, numbers))
    if not is_finite or not (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
        raise bad_box_error(box, "finite numbers with left < right, top < bottom", where)
    return (numbers[0], numbers[1], numbers[2], numbers[3])


def check_boxes_inside(
    boxes: Sequence[tuple[float, float, float, float]], sizes: Sequence[tuple[int, int]], where: str
) -> None:
    """D207 for a box outside its image."""
    for box in boxes:
        width, height = sizes[0] if sizes else (0, 0)
        if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
            raise bad_box_error(box, f"inside the image of {width} x {height} pixels", where)


def bad_box_error(box: Any, rule: str, where: str) -> DataError:
    """D207."""
    return DataError(
        "D207",
        f"{box!r:.60} is not a box",
        where=where,
        why=f"a box is left, top, right, bottom in pixels of the first image, {rule}",
        fix="correct the row, or leave data.columns.boxes empty",
    )

"""Rows that hold more than their format reads: refused with D105, never dropped in silence."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vistill.data.gold import is_missing
from vistill.data.stored_text import collection_in_text
from vistill.errors import DataError

Row = Mapping[str, Any]

#: Columns of conversations with parts that are not read.
UNREAD_COLUMNS = ("videos", "video", "audios", "audio", "objects", "tools")
NUMBERED_IMAGE = re.compile(r"image_?(\d{1,2})", re.IGNORECASE)


def as_list(value: Any) -> list[Any]:
    """A cell as a list."""
    if is_missing(value) or value == {}:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def present_images(value: Any) -> list[Any]:
    """The images of a cell without empty places."""

    def is_empty(item: Any) -> bool:
        return is_missing(item) or (isinstance(item, Mapping) and not any(item.values()))

    return [item for item in as_list(value) if not is_empty(item)]


def numbered_images(rows: Sequence[Row]) -> tuple[str, ...]:
    """The columns `image_1`, `image_2`, ... of a source in order; none without the first one."""
    numbers = {
        name: int(match.group(1))
        for row in rows
        for name in row
        if (match := NUMBERED_IMAGE.fullmatch(name))
    }
    names = sorted(numbers, key=lambda name: numbers[name])
    is_complete = [numbers[name] for name in names] == list(range(1, len(names) + 1))
    holds_images = any(present_images(row.get(names[0])) for row in rows) if names else False
    return tuple(names) if is_complete and holds_images else ()


def check_image_columns(
    row: Row, columns: Sequence[str], numbered: Sequence[str], where: str
) -> None:
    """D105 for different images in several columns: those of one would not be shown."""
    names = [*columns, *(name for name in row if NUMBERED_IMAGE.fullmatch(name))]
    filled = [name for name in names if present_images(row.get(name))]
    others = [name for name in filled if name not in numbered]
    if len(filled) < 2 or not others:
        return
    first = present_images(row[filled[0]])
    if all(present_images(row[name]) == first for name in filled[1:]):
        return
    raise ambiguous_row_error(
        f"images in each of the columns {' and '.join(filled)}",
        "the images of one column would not be shown",
        "write all images as a list into one column",
        where,
    )


def check_answers_agree(row: Row, where: str) -> None:
    """D105 for a row whose columns `answer` and `reward_model` hold different gold answers."""
    reward = row.get("reward_model")
    reward = collection_in_text(reward) if isinstance(reward, str) else reward
    truth = reward.get("ground_truth") if isinstance(reward, Mapping) else None
    answer = row.get("answer")
    if is_missing(truth) or is_missing(answer) or same_golds(truth, answer):
        return
    raise ambiguous_row_error(
        f"the column answer holds {answer!r:.30}, reward_model.ground_truth {truth!r:.30}",
        "vistill does not guess which one is the gold answer",
        "data.columns.answer=reward_model.ground_truth   or remove one of the columns",
        where,
    )


def same_golds(first: Any, second: Any) -> bool:
    """Whether two cells hold the same texts."""
    texts = [[str(item).strip() for item in as_list(value)] for value in (first, second)]
    return texts[0] == texts[1]


def check_parts_are_read(row: Row, is_conversation: bool, where: str) -> None:
    """D105 for earlier turns, and for videos, sounds and tools of a conversation."""
    turns = row.get("history")
    turns = collection_in_text(turns) if isinstance(turns, str) else turns
    is_history = bool(as_list(turns)) and all(
        isinstance(turn, list | tuple | Mapping) for turn in as_list(turns)
    )
    names = [name for name in UNREAD_COLUMNS if is_conversation and as_list(row.get(name))]
    names += ["history"] if is_history else []
    if names:
        raise ambiguous_row_error(
            f"the column {names[0]} holds what belongs to the conversation",
            "vistill reads texts and images alone, so the question would lose a part",
            f"remove the column {names[0]}, or the row",
            where,
        )


def check_texts_alone(row: Row, columns: Sequence[str], where: str) -> None:
    """D104 for a part of a question that is no text."""
    wrong = next((name for name in columns if not isinstance(row[name], str)), None)
    if wrong is not None:
        raise DataError(
            "D104",
            f"the question is not text: {row[wrong]!r:.40}",
            where=where,
            why=f"the column {wrong} belongs to the question",
            fix="correct the row, or name the right column: data.columns.prompt=COLUMN",
        )


def ambiguous_row_error(what: str, why: str, fix: str, where: str) -> DataError:
    """D105 for one row."""
    return DataError("D105", what, where=where, why=why, fix=fix)


def ambiguous_error(what: str, fix: str) -> DataError:
    """D105 for a source."""
    return DataError("D105", what, why="vistill does not guess which one is meant", fix=fix)

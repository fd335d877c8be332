"""Rows in the formats of other trainers: detected, announced, and mapped to plain columns.

OpenAI and Hugging Face `messages`, LLaMA-Factory and LLaVA `conversations`, verl (`prompt`,
`reward_model`), ms-swift (`messages`, `solution`), Alpaca (`instruction`, `input`, `output`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vistill.data.column_groups import (
    IMAGE_COLUMNS,
    IMAGES,
    OPTIONS,
    image_columns,
    joined_cells,
    named_columns,
    option_columns,
    unread_options,
    value_at,
)
from vistill.data.gold import is_missing
from vistill.data.layout_checks import (
    ambiguous_error,
    ambiguous_row_error,
    as_list,
    check_answers_agree,
    check_image_columns,
    check_parts_are_read,
    check_texts_alone,
)
from vistill.data.placeholders import PLACEHOLDER
from vistill.data.settings import Columns, DataSettings
from vistill.errors import DataError, quote_setting

Row = Mapping[str, Any]

#: Columns that may hold the turns of a conversation, each a mapping of role and content.
TURN_COLUMNS = ("messages", "conversations", "prompt", "conversation")
#: What a row with a conversation has as response, next to the conversation.
COMPLETION = "completion"
#: Columns that may hold the gold answer of a conversation.
ANSWER_COLUMNS = ("solution", "reward_model", "ground_truth", "gold", "label", "target", "answers")
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",
}
#: Columns of a mapped row. No data set has such names.
QUESTION, SYSTEM = "@question", "@system"
RESPONSE = "response"


@dataclass(frozen=True)
class Layout:
    """How the rows of a source become plain rows."""

    name: str
    """Name of the format; empty for plain columns."""
    columns: Columns
    """The columns of a plain row."""
    turns: str = ""
    """Column of the conversation."""
    note: str = ""
    """What was detected and how it is read, for the user."""
    numbered: tuple[str, ...] = ()
    """Columns that hold one image each, in order: `image_1`, `image_2`."""
    lettered: tuple[str, ...] = ()
    """Columns that hold one option each, in order: `A`, `B`."""
    is_default: bool = False
    """Whether the recipe leaves the columns of images and answers to the defaults."""

    def plain_row(self, row: Row, where: str) -> Row:
        """The row with plain columns.

        Raises:
            DataError: D105, the row can be read in more than one way.
        """
        if self.is_default:
            if self.name:
                check_image_columns(row, IMAGE_COLUMNS, self.numbered, where)
            check_answers_agree(row, where)
        check_parts_are_read(row, bool(self.name), where)
        row = self.with_groups(row)
        if self.name == "Alpaca":
            keys = [key for key in ("instruction", "input") if not is_missing(row.get(key))]
            check_texts_alone(row, keys, where)
            return {**row, QUESTION: "\n".join(row[key] for key in keys)}
        return row if not self.turns else plain_conversation(row, self.turns, self.columns, where)

    def with_groups(self, row: Row) -> Row:
        """The row with one column for all its images, and one for all its options."""
        groups = {IMAGES: self.numbered, OPTIONS: self.lettered}
        joined = {name: joined_cells(row, columns) for name, columns in groups.items() if columns}
        return {**row, **joined} if joined else row

    def source_columns(self, name: str) -> tuple[str, ...]:
        """The columns of the source that a column of a plain row stands for."""
        return {IMAGES: self.numbered, OPTIONS: self.lettered}.get(name) or (name,)


def detect_layout(rows: Sequence[Row], settings: DataSettings, source: str) -> Layout:
    """The format of the first rows of a source, with its columns of images (D105)."""
    plain = Columns()
    columns = settings.columns
    numbered = image_columns(rows, columns.images)
    lettered = named_columns(rows, columns.choices)
    kept = replace(
        columns,
        images=IMAGES if numbered else columns.images,
        choices=OPTIONS if lettered else columns.choices,
    )
    layout = detect_format(rows, replace(settings, columns=kept), source)
    if not layout.name and not columns.choices:
        lettered = option_columns(rows, layout.columns.answer)
        choices = OPTIONS if lettered else ""
        layout = replace(layout, columns=replace(layout.columns, choices=choices))
    notes = [layout.note]
    notes += [f"images: {', '.join(numbered)}, in this order"] if numbered else []
    notes += [f"options: one column each, {', '.join(lettered)}"] if lettered else []
    notes += [] if lettered or columns.choices or layout.name else [unread_options(rows)]
    is_doubled = any(as_list(row.get("images")) and as_list(row.get("image")) for row in rows)
    if is_doubled and not layout.name and not numbered:
        read = layout.columns.images
        notes.append(f"images: column {read}; the other one of images and image is unread")
    return replace(
        layout,
        numbered=numbered,
        lettered=lettered,
        is_default=columns.images == plain.images and columns.answer == plain.answer,
        note="; ".join(filter(None, notes)),
    )


def detect_format(rows: Sequence[Row], settings: DataSettings, source: str) -> Layout:
    """The format of the first rows of a source.

    A question column with text is always read as it is.

    Raises:
        DataError: D105, two columns hold conversations, or several columns may hold the answer.
    """
    columns = settings.columns
    asked = [value_at(row, columns.prompt) for row in rows]
    if not rows or any(isinstance(value, str) and not turns_of(value) for value in asked):
        return plain_layout(rows, columns, source)
    if any(turns_of(value) for value in asked):
        return conversation_layout(rows, columns.prompt, columns, source)
    holding = [name for name in TURN_COLUMNS if any(turns_of(row.get(name)) for row in rows)]
    if len(holding) > 1:
        raise ambiguous_error(
            f"{source} has a conversation in each of the columns {' and '.join(holding)}",
            "   or   ".join(quote_setting("data.columns.prompt", name) for name in holding),
        )
    if holding:
        return conversation_layout(rows, holding[0], columns, source)
    if all({"instruction", "output"} <= set(row) for row in rows):
        answer = answer_column(rows, columns, source)
        kept = replace(
            columns, prompt=QUESTION, answer=answer, response=columns.response or "output"
        )
        kept = replace(kept, images=images_column(rows, columns))
        return Layout("Alpaca", kept, note=noted("Alpaca", "instruction and input", kept))
    return plain_layout(rows, columns, source)


def plain_layout(rows: Sequence[Row], columns: Columns, source: str) -> Layout:
    """Plain columns; the answer of `reward_model` where the default column is missing."""
    is_default = columns.answer == Columns().answer
    if any(columns.answer in row for row in rows) or not is_default:
        return Layout("", columns)
    if not any(isinstance(row.get("reward_model"), Mapping) for row in rows):
        return Layout("", columns)
    note = "gold answers: reward_model.ground_truth, because there is no column answer"
    return Layout("", replace(columns, answer="reward_model"), note=note)


def conversation_layout(rows: Sequence[Row], turns: str, columns: Columns, source: str) -> Layout:
    """The layout of rows with a conversation."""
    name = format_name(rows, turns)
    answer = answer_column(rows, columns, source)
    has_completion = any(not is_missing(row.get(COMPLETION)) for row in rows)
    response = COMPLETION if has_completion else RESPONSE
    kept = replace(
        columns,
        prompt=QUESTION,
        images=images_column(rows, columns),
        answer=answer,
        response=columns.response or response,
    )
    first = next((row for row in rows if turns_of(row.get(turns))), {})
    parts = "the user's turn is the question"
    if any(role_of(turn) == "assistant" for turn in turns_of(first.get(turns)) or ()):
        parts += ", the assistant's turn the response"
    elif has_completion:
        parts += f", the column {COMPLETION} the response"
    return Layout(name, kept, turns, noted(name, f"column {turns}: {parts}", kept))


def noted(name: str, reading: str, columns: Columns) -> str:
    """What was detected, for the user."""
    answer = columns.answer or "none (data.columns.answer=response takes the response)"
    return f"format {name}: {reading}; gold answers: {answer}"


def format_name(rows: Sequence[Row], turns: str) -> str:
    """The usual name of a conversation format."""
    keys = {key for row in rows for key in row}
    first = next((talk for row in rows if (talk := turns_of(row.get(turns)))), [{}])
    if "from" in first[0]:
        return "sharegpt (LLaMA-Factory, LLaVA)"
    if "reward_model" in keys:
        return "verl"
    if "solution" in keys:
        return "ms-swift"
    return "messages (OpenAI, Hugging Face)"


def images_column(rows: Sequence[Row], columns: Columns) -> str:
    """The column of the images next to a conversation; `columns.images` where none has one."""
    if columns.images == IMAGES:
        return IMAGES
    present = [
        name for name in (columns.images, *IMAGE_COLUMNS) if any(name in row for row in rows)
    ]
    return present[0] if present else columns.images


def answer_column(rows: Sequence[Row], columns: Columns, source: str) -> str:
    """The column of the gold answers; empty where there is none.

    Raises:
        DataError: D105, several columns may hold it and the recipe names none of them.
    """

    def has_values(name: str) -> bool:
        return any(not is_missing(value_at(row, name)) for row in rows)

    if columns.answer != Columns().answer or has_values(columns.answer):
        return columns.answer
    candidates = [name for name in ANSWER_COLUMNS if has_values(name)]
    if len(candidates) > 1:
        raise ambiguous_error(
            f"{source} has gold answers in each of the columns {' and '.join(candidates)}",
            "   or   ".join(quote_setting("data.columns.answer", name) for name in candidates),
        )
    return candidates[0] if candidates else ""


def turns_of(value: Any) -> list[Row] | None:
    """The turns of a conversation, also as JSON text; None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list | tuple) or not value:
        return None
    is_turn = all(
        isinstance(turn, Mapping)
        and ({"role", "content"} <= set(turn) or {"from", "value"} <= set(turn))
        for turn in value
    )
    return list(value) if is_turn else None


def role_of(turn: Row) -> str:
    """Who speaks: user, assistant, system; the name as it is for anybody else."""
    role = str(turn.get("role", turn.get("from")))
    return ROLES.get(role.lower(), role)


def plain_conversation(row: Row, column: str, columns: Columns, where: str) -> Row:
    """Question, images, response and system message of a row with a conversation."""
    turns = turns_of(row.get(column))
    if turns is None:
        raise DataError(
            "D104",
            f"the question is not text: {row.get(column)!r:.40}",
            where=where,
            why=f"a row has a list of turns in the column {column}, each with role and content",
            fix="correct the row, or name the right column: data.columns.prompt=COLUMN",
        )
    texts = [row["system"]] if isinstance(row.get("system"), str) and row["system"].strip() else []
    spoken = list(turns)
    while spoken and role_of(spoken[0]) == "system":
        texts.append(text_and_images(spoken.pop(0), where)[0])
    roles = [role_of(turn) for turn in spoken]
    if roles not in (["user"], ["user", "assistant"]):
        raise ambiguous_row_error(
            f"a conversation of {len(roles)} turns: {', '.join(roles)[:80]}",
            "a row has one question, and at most one response to it",
            "write one row per question",
            where,
        )
    question, inside = text_and_images(spoken[0], where)
    images = as_list(row.get(columns.images))
    if inside and any(not is_missing(image) for image in images):
        raise ambiguous_row_error(
            f"images both in the turns ({len(inside)}) and in the column {columns.images}",
            "each image would be shown twice, or in an unknown order",
            f"remove the column {columns.images}, or the images of the turns",
            where,
        )
    plain = {**row, QUESTION: question, columns.images: inside or row.get(columns.images)}
    if texts:
        plain[SYSTEM] = "\n".join(map(str, texts))
    if len(spoken) == 2:
        reply, shown = text_and_images(spoken[1], where)
        if shown:
            raise ambiguous_row_error(
                "the assistant's turn holds images", "a response is text", "remove them", where
            )
        if columns.response == COMPLETION and not is_missing(row.get(COMPLETION)):
            raise ambiguous_row_error(
                f"a response both in the turns and in the column {COMPLETION}",
                "a row has one response",
                "remove one of them",
                where,
            )
        plain[RESPONSE if columns.response != COMPLETION else COMPLETION] = reply
    return plain


def text_and_images(turn: Row, where: str) -> tuple[str, list[Any]]:
    """The text of a turn with a placeholder for each image, and the images that it holds itself."""
    content = turn.get("content", turn.get("value"))
    if isinstance(content, str):
        return content, []
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list | tuple):
        raise ambiguous_row_error(
            f"the content of a turn is a {type(content).__name__}",
            "content is a text, or a list of parts of the types text and image",
            "correct the row",
            where,
        )
    texts, images = list[str](), list[Any]()
    has_images = any(part_kind(part) == "image" for part in content)
    for part in content:
        kind = part_kind(part)
        if kind == "image":
            image = image_in(part)
            images += [] if image is None else [image]
            index = part.get("index") if isinstance(part, Mapping) and image is None else None
            number = "" if index is None or is_missing(index) else f" {int(index) + 1}"
            texts.append(f"<image{number}>")
        elif kind == "text":
            words = part if isinstance(part, str) else str(part.get("text") or "")
            texts.append(words)
            check_literal(words, has_images, where)
        else:
            raise ambiguous_row_error(
                f"a part of the type {kind!r}",
                "vistill reads parts of the types text and image",
                "remove the part, or the row",
                where,
            )
    return "".join(texts), images


def part_kind(part: Any) -> str:
    """`text`, `image`, or the type of a content part that is neither."""
    if isinstance(part, str):
        return "text"
    if not isinstance(part, Mapping):
        return type(part).__name__
    kind = str(part.get("type") or next((key for key in ("image", "text") if key in part), ""))
    return next((known for known in ("image", "text") if known in kind), kind or "unknown")


def check_literal(words: str, has_images: bool, where: str) -> None:
    """D105 for a placeholder in words next to image parts: an image could belong to either."""
    match = PLACEHOLDER.search(words)
    if match and has_images:
        raise ambiguous_row_error(
            f"both an image part and the placeholder {match.group(0)} in the text",
            "an image could belong to either",
            f"remove {match.group(0)} from the text, or the image parts",
            where,
        )


def image_in(part: Row) -> Any:
    """The image of a content part; None if the part only marks a place."""
    for key in ("image_url", "image", "url", "path", "bytes", "base64", "input_image"):
        value = part.get(key)
        if not is_missing(value):
            return {"bytes": value} if key == "bytes" else value
    return None

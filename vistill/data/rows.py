"""Rows to prompts: columns, templates, placeholders, pictures in place."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from vistill.data.images import (
    BytesImage,
    FileImage,
    check_image_size,
    file_digest,
    flatten_on_white,
    image_refused_error,
    pixel_digest,
    resolve_image_path,
)
from vistill.data.settings import DataSettings
from vistill.errors import DataError
from vistill.types import ImageRef, LoadedImage, Part, Prompt

#: `<image>`, `<image1>`, `<image 1>`, `<img_1>`: a number names a picture, without one they come in order.
PLACEHOLDER = re.compile(r"<\s*(?:image|img)\s*[-_ ]?(\d*)\s*>", re.IGNORECASE)
#: Words that a tokenizer takes for a token of its own.
SPECIAL_TOKEN = re.compile(r"<\|[a-z0-9_]+\|>")


@dataclass(frozen=True)
class RowReader:
    """Turns the rows of one source into prompts."""

    settings: DataSettings
    source: str
    """Name of the source, for messages and prompt ids."""
    root: Path
    """Image folder."""

    def prompt(self, row: Mapping[str, Any], line: int) -> Prompt:
        """The prompt of a row (`line` counts from 1)."""
        columns, where = self.settings.columns, f"{self.source}:{line}"
        question = self.question(row, where)
        choices = parse_choices(column_value(row, columns.choices), where)
        answer = column_value(row, columns.answer)
        text = fill_template(
            self.settings.template, prompt=question, choices=render_choices(choices)
        ).rstrip()
        check_special_tokens(text, where)
        images = self.images(row, columns.images, where)
        response = column_value(row, columns.response)
        if response is None and self.settings.response_template and answer is not None:
            response = fill_template(self.settings.response_template, answer=str(answer))
        identity = column_value(row, columns.id)
        check_characters([text, *choices, str(identity), str(answer), str(response)], where)
        prompt = Prompt(
            id="" if identity is None else str(identity),
            parts=tuple(place_images(text, images, where)),
            answer=None if answer is None else str(answer),
            choices=choices,
            response=None if response is None else str(response),
            thoughts=tuple(self.images(row, columns.thoughts, where)),
            boxes=parse_boxes(column_value(row, columns.boxes), where),
            system=self.settings.system or None,
            labels={"row": where},
        )
        return with_hashes(prompt)

    def question(self, row: Mapping[str, Any], where: str) -> str:
        """The question, which must be text (D104)."""
        question = column_value(row, self.settings.columns.prompt)
        if not isinstance(question, str) or not question.strip():
            shown = "empty" if isinstance(question, str) else f"{question!r:.40}"
            raise DataError(
                "D104",
                f"the question is no text: {shown}",
                where=where,
                why="there is nothing to answer",
                fix="correct the row, or name the right column: data.columns.prompt=COLUMN",
            )
        return question

    def images(self, row: Mapping[str, Any], name: str, where: str) -> list[ImageRef]:
        """The pictures of a column: a path, a list of paths, or decoded pictures from a data set library."""
        value = column_value(row, name)
        values = [] if value is None else value if isinstance(value, (list, tuple)) else [value]
        return [self.image(v, f"{where}  {name}[{i}]") for i, v in enumerate(values)]

    def image(self, value: Any, where: str) -> ImageRef:
        """One picture."""
        if isinstance(value, str):
            return FileImage(resolve_image_path(value, self.root, where), where, self.root)
        if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
            return BytesImage(value["bytes"], where)
        if (
            isinstance(value, Mapping)
            and isinstance(value.get("path"), str)
            and value.get("bytes") is None
        ):
            return self.image(value["path"], where)
        if not isinstance(value, Image.Image):
            raise image_refused_error(f"{value!r:.40} is neither a file name nor a picture", where)
        return LoadedImage(value, where)


def check_characters(texts: Sequence[str], where: str) -> None:
    """D104 for half a character, which no tokenizer can read and no log can hold."""
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        raise DataError(
            "D104",
            "the row holds half a character (a lone surrogate)",
            where=where,
            why="no tokenizer can read it; the row was damaged when it was written",
            fix="correct the row",
        )


def check_special_tokens(text: str, where: str) -> None:
    """D103 for words that would act on the model."""
    found = SPECIAL_TOKEN.search(text)
    if found:
        raise DataError(
            "D103",
            f"the question holds the special token {found.group(0)!r}",
            where=where,
            why="it would act on the model, not be read as a word",
            fix="remove it from the question and its choices",
        )


def parse_choices(value: Any, where: str) -> tuple[str, ...]:
    """The options of a question; anything but a list of texts and numbers is D104."""
    if value is None or value == "":
        return ()
    if not isinstance(value, (list, tuple)) or any(
        isinstance(c, (list, tuple, Mapping)) for c in value
    ):
        raise DataError(
            "D104",
            f"the choices are no list of texts: {value!r:.40}",
            where=where,
            why="each option gets a letter of its own",
            fix="correct the row, or name the right column: data.columns.choices=COLUMN",
        )
    return tuple(str(c) for c in value)


def column_value(row: Mapping[str, Any], name: str) -> Any:
    """A column's value; None where the recipe names none or this row has none."""
    return row.get(name) if name else None


def with_hashes(prompt: Prompt) -> Prompt:
    """The prompt with every picture decoded once, their contents remembered, and an id that follows from the content.

    Ids key the noise, so a row keeps its own wherever it stands in the file.
    """
    digests: list[str] = []
    sizes: list[tuple[int, int]] = []

    def seen(image: ImageRef) -> ImageRef:
        if isinstance(image, FileImage | BytesImage):
            digests.append(file_digest(image.data()))
            image = replace(image, digest=digests[-1]) if isinstance(image, FileImage) else image
            picture = image.load()
        else:
            picture = image.load()
            if (opaque := flatten_on_white(picture)) is not picture:
                image, picture = LoadedImage(opaque, image.name), opaque
            check_image_size(picture.width, picture.height, prompt.labels.get("row", prompt.id))
            digests.append(pixel_digest(picture))
        sizes.append(picture.size)
        return image

    parts = tuple(part if isinstance(part, str) else seen(part) for part in prompt.parts)
    check_boxes_inside(prompt.boxes, sizes, prompt.labels.get("row", prompt.id))
    thoughts = tuple(seen(image) for image in prompt.thoughts)
    content = content_hash(prompt, digests)
    whole = content.partition("-")[2]
    return replace(prompt, id=prompt.id or whole, parts=parts, thoughts=thoughts, content=content)


def content_hash(prompt: Prompt, digests: Sequence[str]) -> str:
    """Hash of question and pictures, and of everything; digests of the pictures come before those of the thoughts."""
    words = [part if isinstance(part, str) else None for part in prompt.parts]
    short = lambda facts: hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()
    asked = short([words, digests[: len(prompt.images)]])
    whole = short(
        [
            words,
            digests,
            prompt.answer,
            prompt.choices,
            prompt.response,
            prompt.boxes,
            prompt.system,
        ]
    )
    return f"{asked}-{whole}"


def parse_boxes(value: Any, where: str) -> tuple[tuple[float, float, float, float], ...]:
    """One box or a list of them: left, top, right, bottom in pixels of the first picture (D207)."""
    if value is None or value == []:
        return ()
    several = (
        isinstance(value, (list, tuple)) and len(value) > 0 and isinstance(value[0], (list, tuple))
    )
    return tuple(parse_box(box, where) for box in (value if several else [value]))


def parse_box(box: Any, where: str) -> tuple[float, float, float, float]:
    """One box (D207)."""
    whole = isinstance(box, (list, tuple)) and len(box) == 4
    numbers = (
        [float(x) for x in box if isinstance(x, (int, float)) and not isinstance(x, bool)]
        if whole
        else []
    )
    if len(numbers) != 4 or not (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
        raise bad_box_error(box, "left < right, top < bottom", where)
    return (numbers[0], numbers[1], numbers[2], numbers[3])


def check_boxes_inside(
    boxes: Sequence[tuple[float, float, float, float]], sizes: Sequence[tuple[int, int]], where: str
) -> None:
    """D207 for a box that lies outside its picture."""
    for box in boxes:
        width, height = sizes[0] if sizes else (0, 0)
        if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
            raise bad_box_error(
                box, f"inside the picture, which has {width} x {height} pixels", where
            )


def bad_box_error(box: Any, asked: str, where: str) -> DataError:
    """D207."""
    return DataError(
        "D207",
        f"{box!r:.60} is not a box",
        where=where,
        why=f"a box is left, top, right, bottom in pixels of the first picture, {asked}",
        fix="correct the row, or leave data.columns.boxes empty",
    )


def fill_template(template: str, **values: str) -> str:
    """Fill `{name}` in a template; anything else stays as it is, so LaTeX braces are safe.

    `{{` and `}}` stand for single braces.
    """
    pattern = re.compile(r"\{\{|\}\}|\{(" + "|".join(values) + r")\}")
    doubled = {"{{": "{", "}}": "}"}
    return pattern.sub(lambda m: doubled.get(m.group(0)) or values[m.group(1)], template)


def render_choices(choices: Sequence[str]) -> str:
    """`(A) 3` a line; options that are only their letters are named once."""
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    if choices and [c.strip() for c in choices] == letters:
        return "Choose from " + " ".join(f"({letter})" for letter in letters)
    return "\n".join(
        f"({letter}) {choice}" for letter, choice in zip(letters, choices, strict=True)
    )


def place_images(text: str, images: Sequence[ImageRef], where: str) -> list[Part]:
    """Put pictures where their placeholders stand; pictures without a placeholder come first."""
    used: set[int] = set()
    pieces: list[Part] = []
    at, following = 0, 0
    for match in PLACEHOLDER.finditer(text):
        index = int(match.group(1)) - 1 if match.group(1) else following
        following = index + 1
        if not 0 <= index < len(images):
            raise DataError(
                "D103",
                f"placeholder {match.group(0)} has no image",
                where=where,
                why=f"the row has {len(images)} image(s); the word would be read as text",
                fix="data.columns.images=COLUMN, or correct the row",
            )
        pieces += [text[at : match.start()], images[index]]
        used.add(index)
        at = match.end()
    pieces.append(text[at:])
    free: list[Part] = [image for i, image in enumerate(images) if i not in used]
    return [part for part in [*free, *pieces] if part != ""]

"""Turn rows into prompts: columns, templates, placeholders, images in their places."""

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
from vistill.registry import checkers
from vistill.types import ImageRef, LoadedImage, Part, Prompt

#: `<image>`, `<image1>`, `<image 1>`, `<img_1>`: a number selects an image; without one, in order.
PLACEHOLDER = re.compile(r"<\s*(?:image|img)\s*[-_ ]?(\d*)\s*>", re.IGNORECASE)
#: Text that a tokenizer may encode as a special token.
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
        """Make the prompt of a row (`line` counts from 1)."""
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
            labels={"row": where, **self.checker(row, where)},
        )
        return with_hashes(prompt)

    def checker(self, row: Mapping[str, Any], where: str) -> dict[str, str]:
        """Read the checker that judges the row, as a label (D104 for an unknown one)."""
        name = column_value(row, self.settings.columns.checker)
        if name is None or name == "":
            return {}
        if str(name) not in checkers:
            raise DataError(
                "D104",
                f"there is no checker {str(name)!r:.40}",
                where=where,
                why=f"checkers: {', '.join(checkers.names())}",
                fix="correct the row, or leave data.columns.checker empty",
            )
        return {"checker": str(name)}

    def question(self, row: Mapping[str, Any], where: str) -> str:
        """Read the question, which must be text (D104)."""
        question = column_value(row, self.settings.columns.prompt)
        if not isinstance(question, str) or not question.strip():
            shown = "empty" if isinstance(question, str) else f"{question!r:.40}"
            raise DataError(
                "D104",
                f"the question is not text: {shown}",
                where=where,
                why="there is nothing to answer",
                fix="correct the row, or name the right column: data.columns.prompt=COLUMN",
            )
        return question

    def images(self, row: Mapping[str, Any], name: str, where: str) -> list[ImageRef]:
        """Read the images of a column: a path, a list of paths, or images of a data set library."""
        value = column_value(row, name)
        values = [] if value is None else value if isinstance(value, (list, tuple)) else [value]
        return [self.image(v, f"{where}  {name}[{i}]") for i, v in enumerate(values)]

    def image(self, value: Any, where: str) -> ImageRef:
        """Read one image."""
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
            raise image_refused_error(f"{value!r:.40} is neither a file name nor an image", where)
        return LoadedImage(value, where)


def check_characters(texts: Sequence[str], where: str) -> None:
    """D104 for a lone surrogate (half a character), which no tokenizer and no log accepts."""
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        raise DataError(
            "D104",
            "the row contains half a character (a lone surrogate)",
            where=where,
            why="no tokenizer can encode it; the program that wrote the row cut a character",
            fix="correct the row",
        )


def check_special_tokens(text: str, where: str) -> None:
    """D103 for special tokens inside a question."""
    match = SPECIAL_TOKEN.search(text)
    if match:
        raise DataError(
            "D103",
            f"the question contains the special token {match.group(0)!r}",
            where=where,
            why="the model would take it for a control token, not for text",
            fix="remove it from the question and its choices",
        )


def parse_choices(value: Any, where: str) -> tuple[str, ...]:
    """Parse the options of a question (D104 for anything but a list of texts and numbers)."""
    if value is None or value == "":
        return ()
    if not isinstance(value, (list, tuple)) or any(
        isinstance(c, (list, tuple, Mapping)) for c in value
    ):
        raise DataError(
            "D104",
            f"the choices are not a list of texts: {value!r:.40}",
            where=where,
            why="each option gets its own letter",
            fix="correct the row, or name the right column: data.columns.choices=COLUMN",
        )
    return tuple(str(c) for c in value)


def column_value(row: Mapping[str, Any], name: str) -> Any:
    """A column's value; None if the recipe names no column or the row has no value."""
    return row.get(name) if name else None


def with_hashes(prompt: Prompt) -> Prompt:
    """Decode every image once; add the content hashes and an id that follows from the content.

    Ids key the noise, so a row keeps its id when its place in the file changes.
    """
    digests: list[str] = []
    sizes: list[tuple[int, int]] = []

    def inspect(image: ImageRef) -> ImageRef:
        if isinstance(image, FileImage | BytesImage):
            digests.append(file_digest(image.data()))
            image = replace(image, digest=digests[-1]) if isinstance(image, FileImage) else image
            pixels = image.load()
        else:
            pixels = image.load()
            if (opaque := flatten_on_white(pixels)) is not pixels:
                image, pixels = LoadedImage(opaque, image.name), opaque
            check_image_size(pixels.width, pixels.height, prompt.labels.get("row", prompt.id))
            digests.append(pixel_digest(pixels))
        sizes.append(pixels.size)
        return image

    parts = tuple(part if isinstance(part, str) else inspect(part) for part in prompt.parts)
    check_boxes_inside(prompt.boxes, sizes, prompt.labels.get("row", prompt.id))
    thoughts = tuple(inspect(image) for image in prompt.thoughts)
    content = content_hash(prompt, digests)
    row_hash = content.partition("-")[2]
    prompt_id = prompt.id or row_hash
    return replace(prompt, id=prompt_id, parts=parts, thoughts=thoughts, content=content)


def content_hash(prompt: Prompt, digests: Sequence[str]) -> str:
    """Two hashes: of question and images, and of the whole row.

    `digests` lists those of the images before those of the thoughts.
    """
    text = [part if isinstance(part, str) else None for part in prompt.parts]

    def short_hash(values: list[Any]) -> str:
        return hashlib.blake2b(json.dumps(values).encode(), digest_size=8).hexdigest()

    question_hash = short_hash([text, digests[: len(prompt.images)]])
    row_hash = short_hash(
        [
            text,
            digests,
            prompt.answer,
            prompt.choices,
            prompt.response,
            prompt.boxes,
            prompt.system,
            *([prompt.labels["checker"]] if "checker" in prompt.labels else []),
        ]
    )
    return f"{question_hash}-{row_hash}"


def parse_boxes(value: Any, where: str) -> tuple[tuple[float, float, float, float], ...]:
    """Parse one box or a list: left, top, right, bottom in pixels of the first image (D207)."""
    if value is None or value == []:
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
    if len(numbers) != 4 or not (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
        raise bad_box_error(box, "left < right, top < bottom", where)
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


def fill_template(template: str, **values: str) -> str:
    """Fill `{name}` in a template; everything else stays, so LaTeX braces are safe.

    `{{` and `}}` stand for single braces.
    """
    pattern = re.compile(r"\{\{|\}\}|\{(" + "|".join(values) + r")\}")
    doubled = {"{{": "{", "}}": "}"}
    return pattern.sub(lambda m: doubled.get(m.group(0)) or values[m.group(1)], template)


def render_choices(choices: Sequence[str]) -> str:
    """Render `(A) 3` per line; options that only repeat their letters take one line."""
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    if choices and [c.strip() for c in choices] == letters:
        return "Choose from " + " ".join(f"({letter})" for letter in letters)
    return "\n".join(
        f"({letter}) {choice}" for letter, choice in zip(letters, choices, strict=True)
    )


def place_images(text: str, images: Sequence[ImageRef], where: str) -> list[Part]:
    """Put images at their placeholders; images without a placeholder come first."""
    used: set[int] = set()
    pieces: list[Part] = []
    at, next_index = 0, 0
    for match in PLACEHOLDER.finditer(text):
        index = int(match.group(1)) - 1 if match.group(1) else next_index
        next_index = index + 1
        if not 0 <= index < len(images):
            raise DataError(
                "D103",
                f"placeholder {match.group(0)} has no image",
                where=where,
                why=f"the row has {len(images)} image(s); the placeholder would be read as text",
                fix="data.columns.images=COLUMN, or correct the row",
            )
        pieces += [text[at : match.start()], images[index]]
        used.add(index)
        at = match.end()
    pieces.append(text[at:])
    free: list[Part] = [image for i, image in enumerate(images) if i not in used]
    return [part for part in [*free, *pieces] if part != ""]

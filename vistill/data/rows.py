"""Rows to prompts: columns, templates, placeholders, pictures in place."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from vistill.data.images import BytesImage, FileImage, digest_of, refused, resolve
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
        choices = tuple(str(c) for c in value_of(row, columns.choices) or ())
        answer = value_of(row, columns.answer)
        text = fill(self.settings.template, prompt=question, choices=render_choices(choices)).rstrip()
        images = self.images(row, columns.images, where)
        response = value_of(row, columns.response)
        if response is None and self.settings.response_template and answer is not None:
            response = fill(self.settings.response_template, answer=str(answer))
        identity = value_of(row, columns.id)
        prompt = Prompt(
            id="" if identity is None else str(identity),
            parts=tuple(place(text, images, where)),
            answer=None if answer is None else str(answer),
            choices=choices,
            response=None if response is None else str(response),
            thoughts=tuple(self.images(row, columns.thoughts, where)),
            boxes=boxes_of(value_of(row, columns.boxes), where),
            system=self.settings.system or None,
            labels={"row": where},
        )
        return known(prompt)

    def question(self, row: Mapping[str, Any], where: str) -> str:
        """The question: text that a tokenizer can read (D104), without words that would act as tokens (D103)."""
        question = value_of(row, self.settings.columns.prompt)
        if not isinstance(question, str) or not question.strip():
            shown = "empty" if isinstance(question, str) else f"{question!r:.40}"
            raise DataError(
                "D104",
                f"the question is no text: {shown}",
                where=where,
                why="there is nothing to answer",
                fix="correct the row, or name the right column: data.columns.prompt=COLUMN",
            )
        if any("\ud800" <= character <= "\udfff" for character in question):
            raise DataError(
                "D104",
                "the question holds half a character (a lone surrogate)",
                where=where,
                why="no tokenizer can read it; the row was damaged when it was written",
                fix="correct the row",
            )
        found = SPECIAL_TOKEN.search(question)
        if found:
            raise DataError(
                "D103",
                f"the question holds the special token {found.group(0)!r}",
                where=where,
                why="it would act on the model, not be read as a word",
                fix="remove it from the question",
            )
        return question

    def images(self, row: Mapping[str, Any], name: str, where: str) -> list[ImageRef]:
        """The pictures of a column: a path, a list of paths, or decoded pictures from a data set library."""
        value = value_of(row, name)
        values = [] if value is None else value if isinstance(value, (list, tuple)) else [value]
        return [self.image(v, f"{where}  {name}[{i}]") for i, v in enumerate(values)]

    def image(self, value: Any, where: str) -> ImageRef:
        """One picture."""
        if isinstance(value, str):
            return FileImage(resolve(value, self.root, where), where, self.root)
        if isinstance(value, Mapping) and value.get("bytes"):
            return BytesImage(bytes(value["bytes"]), where)
        if not isinstance(value, Image.Image):
            raise refused(f"{value!r:.40} is neither a file name nor a picture", where)
        return LoadedImage(value, where)


def value_of(row: Mapping[str, Any], name: str) -> Any:
    """A column's value; None where the recipe names none or this row has none."""
    return row.get(name) if name else None


def known(prompt: Prompt) -> Prompt:
    """The prompt with every picture decoded once, their contents remembered, and an id that follows from the content.

    Ids key the noise, so a row keeps its own wherever it stands in the file.
    """
    digests: list[str] = []

    def seen(image: ImageRef) -> ImageRef:
        if isinstance(image, FileImage | BytesImage):
            digests.append(digest_of(image.data()))
            image = replace(image, digest=digests[-1]) if isinstance(image, FileImage) else image
            image.load()
        else:
            picture = image.load()
            digests.append(digest_of(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()))
        return image

    parts = tuple(part if isinstance(part, str) else seen(part) for part in prompt.parts)
    thoughts = tuple(seen(image) for image in prompt.thoughts)
    words = [part if isinstance(part, str) else None for part in parts]
    short = lambda facts: hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()
    asked = short([words, digests[: len(prompt.images)]])
    whole = short([words, digests, prompt.answer, prompt.choices, prompt.response, prompt.boxes, prompt.system])
    return replace(prompt, id=prompt.id or whole, parts=parts, thoughts=thoughts, content=f"{asked}-{whole}")


def boxes_of(value: Any, where: str) -> tuple[tuple[float, float, float, float], ...]:
    """One box or a list of them: left, top, right, bottom in pixels of the first picture (D207)."""
    if not value:
        return ()
    single = isinstance(value, (list, tuple)) and not isinstance(value[0], (list, tuple))
    boxes = []
    for box in [value] if single else value:
        numbers = [x for x in box if isinstance(x, (int, float)) and not isinstance(x, bool)]
        if len(numbers) != 4 or len(box) != 4 or not (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
            raise DataError(
                "D207",
                f"{box!r} is not a box",
                where=where,
                why="a box is left, top, right, bottom in pixels of the first picture, left < right, top < bottom",
                fix="correct the row, or leave data.columns.boxes empty",
            )
        boxes.append((float(numbers[0]), float(numbers[1]), float(numbers[2]), float(numbers[3])))
    return tuple(boxes)


def fill(template: str, **values: str) -> str:
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
    return "\n".join(f"({letter}) {choice}" for letter, choice in zip(letters, choices, strict=True))


def place(text: str, images: Sequence[ImageRef], where: str) -> list[Part]:
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

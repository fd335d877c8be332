"""Rows to prompts: columns, templates, placeholders, pictures in place."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistill.data.images import FileImage, resolve
from vistill.data.settings import DataSettings
from vistill.errors import DataError, suggest
from vistill.types import ImageRef, LoadedImage, Part, Prompt

#: `<image>`, `<image1>`, `<image 1>`, `<img_1>`: a number names a picture, without one they come in order.
PLACEHOLDER = re.compile(r"<\s*(?:image|img)\s*[-_ ]?(\d*)\s*>", re.IGNORECASE)


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
        question = str(self.column(row, columns.prompt, where))
        choices = tuple(str(c) for c in self.optional(row, columns.choices, where) or ())
        answer = self.optional(row, columns.answer, where)
        text = fill(self.settings.template, prompt=question, choices=render_choices(choices)).rstrip()
        images = self.images(row, columns.images, where)
        response = self.optional(row, columns.response, where)
        if response is None and self.settings.response_template and answer is not None:
            response = fill(self.settings.response_template, answer=str(answer))
        identity = self.optional(row, columns.id, where)
        return Prompt(
            id=str(identity) if identity is not None else f"{Path(self.source).name}:{line}",
            parts=tuple(place(text, images, where)),
            answer=None if answer is None else str(answer),
            choices=choices,
            response=None if response is None else str(response),
            thoughts=tuple(self.images(row, columns.thoughts, where)),
            boxes=boxes_of(self.optional(row, columns.boxes, where), where),
            system=self.settings.system or None,
            labels={"row": where},
        )

    def column(self, row: Mapping[str, Any], name: str, where: str) -> Any:
        """A column that must exist (D101)."""
        if name not in row:
            raise DataError(
                "D101",
                f'column "{name}" not in {self.source}',
                where=where,
                why=f"columns found: {', '.join(row)}   {suggest(name, list(row), cutoff=0.8)}".rstrip(),
                fix=f"data.columns.prompt={suggest_name(name, list(row))}"
                if name == self.settings.columns.prompt
                else f"name the right column under data.columns, or leave it empty instead of {name!r}",
            )
        return row[name]

    def optional(self, row: Mapping[str, Any], name: str, where: str) -> Any:
        """A column that may be left unnamed; once named it must exist."""
        return self.column(row, name, where) if name else None

    def images(self, row: Mapping[str, Any], name: str, where: str) -> list[ImageRef]:
        """The pictures of a column: a path, a list of paths, or decoded pictures from a data set library."""
        value = self.optional(row, name, where)
        values = [] if value is None else value if isinstance(value, (list, tuple)) else [value]
        return [self.image(v, f"{where}  {name}[{i}]") for i, v in enumerate(values)]

    def image(self, value: Any, where: str) -> ImageRef:
        """One picture."""
        if isinstance(value, str):
            return FileImage(resolve(value, self.root, where), where)
        if isinstance(value, Mapping) and value.get("bytes"):
            return BytesImage(bytes(value["bytes"]), where)
        return LoadedImage(value, where)


@dataclass(frozen=True)
class BytesImage:
    """A picture stored in the data file itself."""

    data: bytes
    name: str

    def load(self) -> Any:
        """Decode it."""
        import io

        from PIL import Image

        from vistill.data.images import FORMATS, MAX_PIXELS

        try:
            image = Image.open(io.BytesIO(self.data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels")
            image.load()
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError("D202", "image cannot be decoded", where=self.name, why=str(error)) from error
        return image


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


def suggest_name(name: str, known: Sequence[str]) -> str:
    """The closest column, or a word to replace."""
    hint = suggest(name, list(known), cutoff=0.8)
    return hint.split('"')[1] if hint else "COLUMN"


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

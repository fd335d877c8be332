"""Turn rows into prompts: columns, templates, placeholders, images in their places."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from vistill.answers.values import has_decimal_comma
from vistill.data.boxes import check_boxes_inside, parse_boxes
from vistill.data.column_groups import matching_columns
from vistill.data.decoding import PixelLimits, check_image_size, image_refused_error, normalise
from vistill.data.gold import Gold, is_missing, read_gold, read_options
from vistill.data.images import (
    BytesImage,
    FileImage,
    has_surrogate,
    image_bytes,
    joined_bytes,
    pixel_digest,
    resolve_image_path,
)
from vistill.data.known_pictures import KnownPictures, is_plain
from vistill.data.layouts import SYSTEM, Layout, role_of, text_and_images, turns_of, value_at
from vistill.data.option_indices import IndexCounts
from vistill.data.placeholders import place_images
from vistill.data.settings import DataSettings
from vistill.data.stored_text import collection_in_text
from vistill.errors import DataError
from vistill.registry import checkers
from vistill.types import ImageRef, LoadedImage, Prompt

#: Text that a tokenizer may encode as a special token.
SPECIAL_TOKEN = re.compile(r"<[|\uff5c][A-Za-z0-9_\u2581-]+[|\uff5c]>")
#: Gold answers per row of VQA v2, TextVQA, VizWiz and OK-VQA: one of each person.
PEOPLE = 10


@dataclass(frozen=True)
class RowReader:
    """Turns the rows of one source into prompts."""

    settings: DataSettings
    source: str
    """Name of the source, for messages and prompt ids."""
    root: Path
    """Image folder."""
    base: Path | None = None
    """Folder of the data file."""
    layout: Layout | None = None
    """The format of the rows; plain columns if None."""
    numbers_are_values: bool = False
    """Whether a whole number as gold answer is never the index of an option."""
    counts: dict[str, int] = field(default_factory=dict, compare=False)
    """How many rows were read by which convention, for the user."""
    indices: IndexCounts = field(default_factory=IndexCounts, compare=False)
    """The gold answers that are whole numbers next to options."""
    pictures: KnownPictures = field(default_factory=KnownPictures, compare=False)
    """What is known of the pictures of the source."""

    def prompt(self, row: Mapping[str, Any], line: int) -> Prompt:
        """Make the prompt of a row (`line` counts from 1); decode its images."""
        prompt = self.undecoded_prompt(row, line)
        prompt = with_hashes(self.with_scaled_boxes(prompt), self.add, self.pictures)
        columns = self.settings.columns if self.layout is None else self.layout.columns
        plain = row if self.layout is None else self.layout.plain_row(row, prompt.labels["row"])
        self.count(plain, columns.answer, prompt.answer, prompt.choices)
        return prompt

    def undecoded_prompt(self, row: Mapping[str, Any], line: int) -> Prompt:
        """The prompt of a row whose images are neither opened nor decoded."""
        where = f"{self.source}:{line}"
        columns = self.settings.columns if self.layout is None else self.layout.columns
        labels = {"row": where, **self.checker(row, where), **self.teacher(row)}
        row = row if self.layout is None else self.layout.plain_row(row, where)
        question = self.question(row, columns.prompt, where)
        choices = read_options(column_value(row, columns.choices), where)
        text = fill_template(
            self.settings.template, prompt=question, choices=render_choices(choices)
        ).rstrip()
        check_texts({"question": (text, *choices)}, where)
        answer = column_value(row, columns.answer)
        self.indices.add(answer, choices, where)
        base = self.settings.index_base
        gold = read_gold(answer, choices, where, self.numbers_are_values, base)
        response = self.response(row, columns.response, gold, where)
        system = self.settings.system or column_value(row, SYSTEM) or None
        identity = column_value(row, columns.id)
        identity = None if is_missing(identity) else identity
        golds = (gold,) if isinstance(gold, str) else gold or ()
        texts = {"answer": golds, "response": (response,), "system message": (system,)}
        check_texts(texts, where)
        check_characters([str(identity)], where)
        images = self.images(row, columns.images, where)
        return Prompt(
            id="" if identity is None else str(identity),
            parts=tuple(place_images(text, images, where)),
            answer=gold,
            choices=choices,
            response=response,
            thoughts=self.thoughts(row, columns.thoughts, where),
            boxes=parse_boxes(column_value(row, columns.boxes), where),
            system=system,
            labels=labels,
        )

    def checker(self, row: Mapping[str, Any], where: str) -> dict[str, str]:
        """Read the checker that judges the row, as a label (D104 for an unknown one)."""
        name = column_value(row, self.settings.columns.checker)
        if is_missing(name) or name == "":
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

    def teacher(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Read which teacher the row has, as a label."""
        name = column_value(row, self.settings.columns.teacher)
        return {} if is_missing(name) or name == "" else {"teacher": str(name)}

    def response(self, row: Mapping[str, Any], name: str, gold: Gold, where: str) -> str | None:
        """The response of a row, or one made from its gold answer."""
        response = column_value(row, name)
        turns = turns_of(response) or ()
        if len(turns) == 1 and role_of(turns[0]) == "assistant":
            response = text_and_images(turns[0], where)[0]
        if isinstance(response, str):
            return response
        if not is_missing(response):
            raise DataError(
                "D104",
                f"the response is not text: {response!r:.60}",
                where=where,
                why="a model would learn to write its Python form",
                fix="correct the row, or name the right column: data.columns.response=COLUMN",
            )
        if not self.settings.response_template or gold is None:
            return None
        first = gold if isinstance(gold, str) else gold[0]
        return fill_template(self.settings.response_template, answer=first)

    def count(self, row: Mapping[str, Any], name: str, gold: Gold, choices: Sequence[str]) -> None:
        """Count the gold answers that a convention changed."""
        value = column_value(row, name)
        golds = (gold,) if isinstance(gold, str) else gold or ()
        indices = f"gold answers are indices of options, counted from {self.settings.index_base}"
        kinds = {
            "rows have several gold answers: any of them is right": 1 < len(golds) < PEOPLE,
            f"rows have {PEOPLE} or more gold answers: the checker vqa gives the full score for 3"
            " equal ones, the others for any of them": len(golds) >= PEOPLE,
            "gold answers look like decimals with a comma and are read as two numbers: if 3,5 means"
            " 3.5, write 3.5": not choices and any(map(has_decimal_comma, golds)),
            indices: isinstance(gold, str)
            and bool(choices)
            and re.fullmatch(r"\d{1,2}", str(value).strip()) is not None
            and not re.fullmatch(r"\d{1,2}", gold),
            "rows have no gold answer": bool(name) and gold is None,
        }
        for kind, is_counted in kinds.items():
            if is_counted:
                self.add(kind)

    def add(self, kind: str) -> None:
        """Count one more of a kind."""
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def question(self, row: Mapping[str, Any], name: str, where: str) -> str:
        """Read the question, which must be text (D104)."""
        question = column_value(row, name)
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

    def images(self, row: Mapping[str, Any], name: str, where: str) -> list[ImageRef | None]:
        """Read the images of a column: a path, a list of paths, or encoded images.

        None is an empty place of a list; an empty cell, or a list of empty places, is no image.
        """
        value = column_value(row, name)
        if isinstance(value, str):
            value = collection_in_text(value)
        value = joined_bytes(value)
        values = [] if value is None else value if isinstance(value, (list, tuple)) else [value]
        return [self.image(v, f"{where}  {name}[{i}]") for i, v in enumerate(values)]

    def thoughts(self, row: Mapping[str, Any], name: str, where: str) -> tuple[ImageRef, ...]:
        """The visual thoughts of all rounds in order: of one column, or of `image_*`."""
        names = matching_columns(row, name) or [name]
        images = [image for column in names for image in self.images(row, column, where)]
        return tuple(image for image in images if image is not None)

    def image(self, value: Any, where: str) -> ImageRef | None:
        """Read one image; None for an empty place."""
        if isinstance(value, Mapping):
            value = image_in_mapping(value)
        if is_missing(value):
            return None
        limits = self.limits
        if isinstance(value, str):
            content = image_bytes(value, where)
            if content is not None:
                return BytesImage(content, where, limits)
            path = resolve_image_path(value, self.root, where, self.base)
            return FileImage(path, where, self.root, limits=limits)
        if isinstance(value, bytes | bytearray | memoryview):
            return BytesImage(bytes(value), where, limits)
        if not isinstance(value, Image.Image):
            raise image_refused_error(f"{value!r:.40} is neither a file name nor an image", where)
        return LoadedImage(normalise(value, where, limits), where)

    @property
    def limits(self) -> PixelLimits:
        """The pixel limits of the recipe."""
        return PixelLimits(self.settings.min_pixels, self.settings.max_pixels)

    def with_scaled_boxes(self, prompt: Prompt) -> Prompt:
        """The prompt with its boxes in pixels of the normalised first image."""
        if not prompt.boxes or not prompt.images or self.limits == PixelLimits():
            return prompt
        first = prompt.images[0]
        if not isinstance(first, FileImage | BytesImage):
            return prompt
        width, height = self.pictures.facts_of(replace(first, limits=PixelLimits())).size
        new_width, new_height = self.limits.size(width, height)
        x, y = new_width / width, new_height / height
        boxes = tuple((x * b[0], y * b[1], x * b[2], y * b[3]) for b in prompt.boxes)
        return replace(prompt, boxes=boxes)


def image_in_mapping(value: Mapping[str, Any]) -> Any:
    """The image of a mapping: its bytes, else its path or URL; None for an empty one."""
    keys = ("bytes", "path", "url", "image_url", "image", "image_path", "file_name")
    present = [value[key] for key in keys if not is_missing(value.get(key))]
    if not present:
        return None if not value or set(value) & set(keys) else dict(value)
    first = joined_bytes(present[0])
    if isinstance(first, Mapping):
        return image_in_mapping(first)
    if isinstance(first, str) and not is_missing(value.get("bytes")):
        return first if image_bytes(first, "") is not None else dict(value)
    is_image = isinstance(first, str | bytes | bytearray | memoryview | Image.Image)
    return first if is_image else dict(value)  # a mapping is refused with its value


def check_texts(texts: Mapping[str, Sequence[str | None]], where: str) -> None:
    """D104 for half a character, D103 for a special token, in any text of a row."""
    for name, values in texts.items():
        present = [value for value in values if value is not None]
        check_characters(present, where)
        for value in present:
            check_special_tokens(value, where, name)


def check_characters(texts: Sequence[str], where: str) -> None:
    """D104 for a lone surrogate (half a character), which no tokenizer and no log accepts."""
    if any(map(has_surrogate, texts)):
        raise DataError(
            "D104",
            "the row contains half a character (a lone surrogate)",
            where=where,
            why="no tokenizer can encode it; the program that wrote the row cut a character",
            fix="correct the row",
        )


def check_special_tokens(text: str, where: str, name: str = "question") -> None:
    """D103 for special tokens inside a text that a model reads, writes, or is compared with."""
    match = SPECIAL_TOKEN.search(text)
    if match:
        raise special_token_error(match.group(0), where, name)


def special_token_error(token: str, where: str, name: str) -> DataError:
    """D103."""
    settings = {
        "question": "remove it from the question and its choices",
        "system message": "remove it, also from data.system if the recipe sets one",
    }
    return DataError(
        "D103",
        f"the {name} contains the special token {token!r}",
        where=where,
        why="the model would take it for a control token, not for text",
        fix=settings.get(name, f"remove it from the {name} of the row"),
    )


def column_value(row: Mapping[str, Any], name: str) -> Any:
    """A column's value; None if the recipe names no column or the row has no value.

    `reward_model.ground_truth` leads into a mapping.
    """
    return value_at(row, name) if name else None


def with_hashes(
    prompt: Prompt,
    count: Callable[[str], None] = lambda kind: None,
    pictures: KnownPictures | None = None,
) -> Prompt:
    """Decode every unknown image; add the content hashes and an id that follows from the content.

    Ids key the noise, so a row keeps its id when its place in the file changes. `count` is called
    with each kind of picture that is rarely meant.
    """
    digests: list[str] = []
    sizes: list[tuple[int, int]] = []
    pictures = pictures or KnownPictures()

    def inspect(image: ImageRef) -> ImageRef:
        if isinstance(image, FileImage | BytesImage):
            image, facts = pictures.with_facts(image)
            digests.append(facts.digest)
            sizes.append(facts.size)
            plain = facts.is_plain
        else:
            loaded = image.load()
            pixels = normalise(loaded, prompt.labels.get("row", prompt.id))
            if pixels is not loaded:
                image = LoadedImage(pixels, image.name)
            check_image_size(pixels.width, pixels.height, prompt.labels.get("row", prompt.id))
            digests.append(pixel_digest(pixels))
            sizes.append(pixels.size)
            plain = is_plain(pixels)
        if plain:
            count("pictures have one colour only")
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
            *([{"teacher": prompt.labels["teacher"]}] if "teacher" in prompt.labels else []),
        ]
    )
    return f"{question_hash}-{row_hash}"


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

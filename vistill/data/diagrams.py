"""Procedural diagrams: unlimited questions whose numbers can only be read from the image.

A diagram is a coloured shape with a few fine glyphs. Colour and shape survive pixelation, the
glyphs do not. All glyphs have the same amount of ink, so that no grey level reveals the digit.
Properties D1-D9 of the method specification, section 5.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
from PIL import Image

from vistill.data.drawing import (
    GLYPH_SHARE,
    ShapePosition,
    draw_diagram,
    draw_thought,
    label_centres,
)
from vistill.data.keys import keyed_generator, keyed_seed
from vistill.data.settings import DiagramSettings, Version
from vistill.data.wording import Wording, question_text, solution_text
from vistill.errors import ConfigError
from vistill.types import DrawnImage, Prompt

Kind = Literal["triangle", "segment", "bars", "rectangle"]
Split = Literal["train", "val", "test"]

KINDS: tuple[Kind, ...] = ("triangle", "segment", "bars", "rectangle")
COLOURS = ("red", "green", "blue", "orange", "purple", "teal")
NUM_VALUES: dict[Kind, int] = {"triangle": 3, "segment": 3, "bars": 3, "rectangle": 2}

#: Percent of the number combinations of each kind that belong to the test and validation splits.
TEST_PERCENT, VAL_PERCENT = 15, 10
#: Probability that a value is the biased one of its kind and colour: the shortcut of property D4.
SHORTCUT_PROBABILITY = 0.35


@dataclass(frozen=True)
class Diagram:
    """One item: it determines the image, the question, the solution and the answer."""

    kind: Kind
    colour: str
    values: tuple[int, ...]
    version: Version
    given_index: int | None
    """Index of the value that the question gives and the image omits (text_lite)."""
    key: int
    """Seed of the layout and of the wording."""
    settings: DiagramSettings = field(default_factory=DiagramSettings)

    @property
    def answer(self) -> int:
        """The exact answer."""
        if self.kind == "bars":
            return max(self.values) - min(self.values)
        return 2 * sum(self.values) if self.kind == "rectangle" else sum(self.values)

    @property
    def visible(self) -> tuple[bool, ...]:
        """Whether each value is drawn."""
        return tuple(i != self.given_index for i in range(len(self.values)))

    def draw_image(self) -> Image.Image:
        """Draw the diagram."""
        shown = tuple(
            value if is_drawn else None
            for value, is_drawn in zip(self.values, self.visible, strict=True)
        )
        return draw_diagram(
            ShapePosition(self.kind, self.colour, self.key, self.settings.side), shown
        )

    def label_cells(self, cells: int = 4) -> list[tuple[int, int]]:
        """(cell of a `cells` x `cells` grid, value) of each drawn label, for vision training."""
        centres = label_centres(ShapePosition(self.kind, self.colour, self.key, self.settings.side))
        size = self.settings.side / cells
        return [
            (int(y // size) * cells + int(x // size), value)
            for (x, y), value, is_drawn in zip(centres, self.values, self.visible, strict=True)
            if is_drawn
        ]

    def label_boxes(self) -> tuple[tuple[float, float, float, float], ...]:
        """Pixel regions of the drawn labels, in reading order."""
        side = self.settings.side
        half = 0.6 * GLYPH_SHARE * side * (1.4 if self.settings.two_digits else 1.0)
        centres = label_centres(ShapePosition(self.kind, self.colour, self.key, side))
        return tuple(
            (
                max(0.0, x - half),
                max(0.0, y - half),
                min(float(side), x + half),
                min(float(side), y + half),
            )
            for (x, y), is_drawn in zip(centres, self.visible, strict=True)
            if is_drawn
        )

    def shown_values(self) -> list[int]:
        """The drawn values in reading order."""
        pairs = zip(self.values, self.visible, strict=True)
        return [value for value, is_drawn in pairs if is_drawn]

    def draw_thought(self) -> Image.Image:
        """Draw the visual thought: the enlarged labels, left to right in reading order."""
        return draw_thought(self.shown_values(), self.settings.side)

    def thought_cells(self, cells: int = 4) -> list[tuple[int, int]]:
        """(cell, value) of each label of the visual thought."""
        shown = self.shown_values()
        return [
            (cells // 2 * cells + int((i + 0.5) / len(shown) * cells), value)
            for i, value in enumerate(shown)
        ]

    def wording(self) -> Wording:
        """The facts that the question and the solution mention."""
        in_text = tuple(
            self.version == "text_dominant" or i == self.given_index
            for i in range(len(self.values))
        )
        return Wording(self.kind, self.colour, self.values, in_text, self.version, self.answer)

    def question(self) -> str:
        """The question, without the image."""
        return question_text(self.wording(), keyed_generator("question", self.key))

    def solution(self, variant: int = 0) -> str:
        """A chain of thought that ends in the boxed answer. `variant` selects the wording."""
        return solution_text(self.wording(), keyed_generator("solution", self.key, variant))

    def with_value(self, index: int, value: int) -> "Diagram":
        """The counterfactual diagram: the same layout and question with one label changed."""
        values = (*self.values[:index], value, *self.values[index + 1 :])
        return replace(self, values=values)

    def prompt(self, prompt_id: str) -> Prompt:
        """The item as a prompt, with its solution as the written response."""
        thoughts = (
            (DrawnImage(self.draw_thought, f"{prompt_id}-thought"),)
            if self.settings.thoughts
            else ()
        )
        labels = {
            "kind": self.kind,
            "version": self.version,
            "values": " ".join(map(str, self.values)),
        }
        return Prompt(
            id=prompt_id,
            parts=(DrawnImage(self.draw_image, prompt_id), self.question()),
            answer=str(self.answer),
            response=self.solution(),
            thoughts=thoughts,
            boxes=self.label_boxes(),
            labels=labels
            | {"drawn": " ".join(str(i) for i, drawn in enumerate(self.visible) if drawn)},
        )


def diagram_split(kind: Kind, values: tuple[int, ...]) -> Split:
    """The split of a combination of numbers. Splits share no combination, in any drawing."""
    bucket = keyed_seed("split", kind, *values) % 100
    if bucket < TEST_PERCENT:
        return "test"
    return "val" if bucket < TEST_PERCENT + VAL_PERCENT else "train"


def biased_value(kind: Kind, colour: str, two_digits: bool) -> int:
    """The value that this kind and colour show more often than chance: a text-only shortcut."""
    digit = 1 + keyed_seed("favourite", kind, colour) % 9
    return 11 * digit if two_digits else digit


def sample_diagram(rng: np.random.Generator, split: Split, settings: DiagramSettings) -> Diagram:
    """Sample one diagram of the split."""
    kind = KINDS[rng.integers(len(KINDS))]
    colour = COLOURS[rng.integers(len(COLOURS))]
    version = settings.versions[rng.integers(len(settings.versions))]
    low, high = (10, 99) if settings.two_digits else (1, 9)
    while True:
        values = tuple(
            biased_value(kind, colour, settings.two_digits)
            if rng.random() < SHORTCUT_PROBABILITY
            else int(rng.integers(low, high + 1))
            for _ in range(NUM_VALUES[kind])
        )
        if diagram_split(kind, values) == split:
            break
    given_index = int(rng.integers(len(values))) if version == "text_lite" else None
    key = int(rng.integers(2**62))
    return Diagram(kind, colour, values, version, given_index, key, settings)


def iterate_diagrams(
    split: Split, seed: int, settings: DiagramSettings | None = None
) -> Iterator[Diagram]:
    """Endless diagrams of a split; item i depends on (seed, split, i) alone."""
    index = 0
    while True:
        yield sample_diagram(
            keyed_generator("diagram", seed, split, index), split, settings or DiagramSettings()
        )
        index += 1


def diagrams(
    split: Split, count: int, seed: int, settings: DiagramSettings | None = None
) -> list[Diagram]:
    """The first `count` diagrams of a split (C002 for an unknown split)."""
    if split not in get_args(Split):
        known = ", ".join(get_args(Split))
        raise ConfigError(
            "C002",
            f'no split "{split}"',
            why=f"splits: {known}",
            fix='diagram_prompts("val", 8, 0)',
        )
    stream = iterate_diagrams(split, seed, settings)
    return [next(stream) for _ in range(count)]


def diagram_prompts(
    split: Split, count: int, seed: int, settings: DiagramSettings | None = None
) -> list[Prompt]:
    """The same diagrams as prompts."""
    items = diagrams(split, count, seed, settings)
    return [item.prompt(f"{split}-{seed}-{i}") for i, item in enumerate(items)]

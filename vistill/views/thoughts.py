"""Where visual thoughts come from: a column of the data, or the row's boxes (`views.thought`)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from PIL import Image, ImageDraw

from vistill.plugin_calls import plugin_call
from vistill.registry import thoughts
from vistill.types import ImageRef, LoadedImage, Prompt

#: A crop shows this much more than its box on every side, as a share of the box.
CROP_MARGIN = 0.15


class ThoughtSource(ABC):
    """Says whether a row has visual thoughts, and makes them."""

    column: ClassVar[str] = ""
    """The column of the data (`data.columns`) that it needs, for messages."""

    @abstractmethod
    def has_thoughts(self, prompt: Prompt) -> bool:
        """Whether the row has what thoughts are made from. It decodes no picture."""

    @abstractmethod
    def make_thoughts(self, prompt: Prompt) -> list[ImageRef]:
        """The visual thoughts of a row that has them. They follow from the row alone."""


class DataThoughts(ThoughtSource):
    """The images of a column of the data (`data.columns.thoughts`)."""

    column = "thoughts"

    def has_thoughts(self, prompt: Prompt) -> bool:
        """Whether the column has any."""
        return bool(prompt.thoughts)

    def make_thoughts(self, prompt: Prompt) -> list[ImageRef]:
        """The images of the column."""
        return list(prompt.thoughts)


class BoxThoughts(ThoughtSource):
    """What sources that draw from the row's boxes share."""

    column = "boxes"

    def has_thoughts(self, prompt: Prompt) -> bool:
        """Whether there are boxes and a picture."""
        return bool(prompt.boxes and prompt.images)


class Crops(BoxThoughts):
    """Each box of the row (`data.columns.boxes`), enlarged to the picture's size."""

    def make_thoughts(self, prompt: Prompt) -> list[ImageRef]:
        """One image per box."""
        picture = prompt.images[0].load().convert("RGB")
        boxes = enumerate(prompt.boxes)
        return [LoadedImage(crop(picture, box), f"{prompt.id}-crop{i}") for i, box in boxes]


class Boxes(BoxThoughts):
    """The picture with every box of the row outlined in red."""

    def make_thoughts(self, prompt: Prompt) -> list[ImageRef]:
        """One image."""
        picture = prompt.images[0].load().convert("RGB")
        return [LoadedImage(outline(picture, prompt.boxes), f"{prompt.id}-boxes")]


def has_thoughts(prompt: Prompt, source: str) -> bool:
    """Whether a source has visual thoughts for the prompt."""
    with plugin_call(thoughts, source):
        return bool(thoughts.get(source)().has_thoughts(prompt))


def thoughts_of(prompt: Prompt, source: str) -> list[ImageRef]:
    """The visual thoughts of a prompt; empty where it has none."""
    with plugin_call(thoughts, source):
        maker: ThoughtSource = thoughts.get(source)()
        return list(maker.make_thoughts(prompt)) if maker.has_thoughts(prompt) else []


def crop(picture: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """A region with a margin, enlarged to fit the picture's own size without distortion."""
    left, top, right, bottom = box
    wide, high = CROP_MARGIN * (right - left), CROP_MARGIN * (bottom - top)
    edges: tuple[float, float, float, float] = (
        max(0, left - wide),
        max(0, top - high),
        min(picture.width, right + wide),
        min(picture.height, bottom + high),
    )
    part = picture.crop((round(edges[0]), round(edges[1]), round(edges[2]), round(edges[3])))
    scale = min(picture.width / part.width, picture.height / part.height)
    size = (max(1, round(part.width * scale)), max(1, round(part.height * scale)))
    return part.resize(size, Image.Resampling.BICUBIC)


def outline(
    picture: Image.Image, boxes: Sequence[tuple[float, float, float, float]]
) -> Image.Image:
    """The picture with a red frame around each box."""
    drawn = picture.copy()
    canvas = ImageDraw.Draw(drawn)
    for box in boxes:
        canvas.rectangle(box, outline=(255, 0, 0), width=max(1, min(picture.size) // 64))
    return drawn

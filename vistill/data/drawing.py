"""Draw diagrams: large coloured shapes, fine glyphs of equal ink."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vistill.data.keys import keyed_generator

FILL = {
    "red": (232, 110, 100),
    "green": (120, 200, 120),
    "blue": (110, 150, 235),
    "orange": (245, 180, 90),
    "purple": (180, 130, 220),
    "teal": (100, 195, 195),
}
#: Glyph height as a share of the image's side. D2 asks for about a tenth. 14 px of 64 is a size
#: that a tiny vision tower can read, and 10 % pixelation still removes its strokes of 1-2 px
#: (docs/lab-notes.md).
GLYPH_SHARE = 14 / 64


@dataclass(frozen=True)
class ShapePosition:
    """Kind, colour and layout seed of a shape, and the image's side in pixels."""

    kind: str
    colour: str
    key: int
    side: int


@lru_cache(maxsize=512)
def render_glyph(text: str, size: int) -> np.ndarray:
    """Coverage of a label in [0, 1], cropped; all labels of one size have the same ink."""
    font = ImageFont.load_default(size=size)
    left, top, right, bottom = font.getbbox(text)
    canvas = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2), 0)
    ImageDraw.Draw(canvas).text((1 - left, 1 - top), text, fill=255, font=font)
    coverage = np.asarray(canvas, dtype=np.float32) / 255
    return coverage * (least_ink(len(text), size) / coverage.sum())


@lru_cache(maxsize=16)
def least_ink(num_digits: int, size: int) -> float:
    """Ink of the lightest label with `num_digits` digits; all others are scaled down to it."""
    font = ImageFont.load_default(size=size)
    inks = []
    for digit in "123456789":
        text = digit * num_digits
        left, top, right, bottom = font.getbbox(text)
        canvas = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2), 0)
        ImageDraw.Draw(canvas).text((1 - left, 1 - top), text, fill=255, font=font)
        inks.append(float(np.asarray(canvas, dtype=np.float32).sum() / 255))
    return min(inks)


def label_centres(place: ShapePosition) -> list[tuple[float, float]]:
    """Centres of the labels in pixels, one per value in reading order, with jitter."""
    rng = keyed_generator("labels", place.key)

    def middle() -> float:
        return float(rng.choice([0.375, 0.625]))

    grid = {
        "triangle": [(0.125, 0.375), (0.875, 0.375), (middle(), 0.875)],
        "segment": [(0.125, 0.375), (middle(), 0.375), (0.875, 0.375)],
        "bars": [(0.125, 0.125), (middle(), 0.125), (0.875, 0.125)],
        "rectangle": [(middle(), 0.875), (0.125, middle())],
    }[place.kind]
    side = place.side

    def jitter() -> float:
        return float(rng.uniform(-2, 2)) * side / 64

    return [(x * side + jitter(), y * side + jitter()) for x, y in grid]


def draw_shape(canvas: ImageDraw.ImageDraw, place: ShapePosition, rng: np.random.Generator) -> None:
    """Draw the coloured shape: it survives pixelation and does not depend on the values."""
    side, fill, edge = place.side, FILL[place.colour], (60, 60, 60)

    def jitter(share: float) -> float:
        return share * side + float(rng.uniform(-2, 2)) * side / 64

    if place.kind == "triangle":
        corners = [
            (jitter(0.5), jitter(0.1)),
            (jitter(0.22), jitter(0.72)),
            (jitter(0.78), jitter(0.72)),
        ]
        canvas.polygon(corners, fill=fill, outline=edge)
    elif place.kind == "segment":
        y = jitter(0.64)
        canvas.rectangle(
            [0.05 * side, y - 0.06 * side, 0.95 * side, y + 0.06 * side], fill=fill, outline=edge
        )
        for x in (0.05, jitter(0.3) / side, jitter(0.7) / side, 0.95):
            canvas.line(
                [x * side, y - 0.11 * side, x * side, y + 0.11 * side],
                fill=edge,
                width=max(1, side // 48),
            )
    elif place.kind == "bars":
        for x in (0.03, 0.38, 0.73):
            top = float(rng.uniform(0.32, 0.6)) * side
            canvas.rectangle(
                [x * side, top, (x + 0.24) * side, 0.95 * side], fill=fill, outline=edge
            )
    else:
        box = [jitter(0.28), jitter(0.14), jitter(0.9), jitter(0.7)]
        canvas.rectangle(box, fill=fill, outline=edge)


def paste_glyph(
    pixels: np.ndarray, text: str, centre: tuple[float, float], darkness: float
) -> None:
    """Darken the pixels under a label, in place."""
    side = pixels.shape[0]
    size = round(GLYPH_SHARE * side * (1.0 if len(text) == 1 else 0.8))
    ink = render_glyph(text, size) * darkness
    height, width = ink.shape
    x = int(np.clip(round(centre[0] - width / 2), 0, side - width))
    y = int(np.clip(round(centre[1] - height / 2), 0, side - height))
    area = pixels[y : y + height, x : x + width]
    area -= area * ink[:, :, None]


def draw_diagram(place: ShapePosition, shown: tuple[int | None, ...]) -> Image.Image:
    """Draw the shape, then the shown labels, with jitter in place and contrast."""
    rng = keyed_generator("layout", place.key)
    background = int(rng.integers(236, 256))
    image = Image.new("RGB", (place.side, place.side), (background, background, background))
    draw_shape(ImageDraw.Draw(image), place, rng)
    pixels = np.asarray(image, dtype=np.float32).copy()
    for value, centre in zip(shown, label_centres(place), strict=True):
        darkness = float(rng.uniform(0.85, 1.0))
        if value is not None:
            paste_glyph(pixels, str(value), centre, darkness)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_thought(values: list[int], side: int) -> Image.Image:
    """Draw only the labels, enlarged, in reading order."""
    image = Image.new("RGB", (side, side), (250, 250, 250))
    canvas = ImageDraw.Draw(image)
    digits = sum(len(str(value)) for value in values)
    font = ImageFont.load_default(size=side * min(0.4, 1.5 / digits))
    for i, value in enumerate(values):
        centre = (side * (i + 0.5) / len(values), side / 2)
        canvas.text(centre, str(value), fill=(20, 20, 20), font=font, anchor="mm")
    return image

"""Privileged contexts: the prompt, and visual thoughts that only the teacher sees (Visual-OPSD 3.1)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from vistill.types import ImageRef, LoadedImage, Part, Prompt
from vistill.views.pictures import noise_like

#: Verbatim from the paper; parity needs every character.
REF_INTRO = (
    "The following images are privileged visual references that depict the intermediate visual thoughts on the path to"
    " the correct answer. Use them silently as grounding context; do not describe or echo them."
)
#: Verbatim from the paper (appendix E).
TRANSITION = (
    "Now, using your own independent reasoning, answer the problem above. Think step by step."
)
#: A crop shows this much more than its box on every side, as a share of the box.
CROP_MARGIN = 0.15


def with_thoughts(prompt: Prompt, thoughts: Sequence[ImageRef]) -> Prompt:
    """`[picture, question, REF_INTRO, thoughts..., TRANSITION]`: what the teacher reads before the same response."""
    extra: tuple[Part, ...] = (f"\n{REF_INTRO}\n", *thoughts, f"\n{TRANSITION}")
    return replace(prompt, parts=(*prompt.parts, *extra))


def has_thoughts(prompt: Prompt, source: str) -> bool:
    """Whether the prompt brings thoughts (`data`), or boxes to draw them from (`crop`, `box`)."""
    return bool(prompt.thoughts) if source == "data" else bool(prompt.boxes and prompt.images)


def thoughts_of(prompt: Prompt, source: str) -> list[ImageRef]:
    """The visual thoughts: as the data has them, or drawn from the row's boxes.

    Args:
        prompt: the row.
        source: `data`, `crop` (each box enlarged to the picture's size) or `box` (the boxes outlined in red).
    """
    if source == "data":
        return list(prompt.thoughts)
    if not has_thoughts(prompt, source):
        return []
    picture = prompt.images[0].load().convert("RGB")
    if source == "box":
        return [LoadedImage(outline(picture, prompt.boxes), f"{prompt.id}-boxes")]
    return [
        LoadedImage(crop(picture, box), f"{prompt.id}-crop{i}")
        for i, box in enumerate(prompt.boxes)
    ]


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


def noisy(
    thoughts: Sequence[ImageRef], rng: np.random.Generator, kind: str = "gaussian"
) -> list[ImageRef]:
    """Noise of each thought's size: every token stays, the content is gone."""
    return [LoadedImage(noise_like(ref.load(), rng, kind), ref.name) for ref in thoughts]


def blank(thoughts: Sequence[ImageRef]) -> list[ImageRef]:
    """White pictures of each thought's size."""
    return [
        LoadedImage(Image.new("RGB", ref.load().size, (255, 255, 255)), ref.name)
        for ref in thoughts
    ]


def mismatched(thoughts: Sequence[ImageRef], others: Sequence[ImageRef]) -> list[ImageRef]:
    """Another row's thoughts, resized to the places of this row's own, so that only their content differs."""
    places = enumerate(thoughts)
    return [
        LoadedImage(others[i % len(others)].load().convert("RGB").resize(ref.load().size), ref.name)
        for i, ref in places
    ]

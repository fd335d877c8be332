"""Privileged context: prompt and visual thoughts that only the teacher sees (Visual-OPSD 3.1)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from vistill.types import ImageRef, LoadedImage, Part, Prompt
from vistill.views.pictures import noise_like

#: Verbatim from the paper; parity needs every character.
REF_INTRO = (
    "The following images are privileged visual references that depict the intermediate visual "
    "thoughts on the path to the correct answer. Use them silently as grounding context; do not "
    "describe or echo them."
)
#: Verbatim from the paper (appendix E).
TRANSITION = (
    "Now, using your own independent reasoning, answer the problem above. Think step by step."
)


def with_thoughts(prompt: Prompt, thoughts: Sequence[ImageRef]) -> Prompt:
    """`[image, question, REF_INTRO, thoughts..., TRANSITION]`: the prompt of the teacher.

    The response that follows is the same.
    """
    extra: tuple[Part, ...] = (f"\n{REF_INTRO}\n", *thoughts, f"\n{TRANSITION}")
    return replace(prompt, parts=(*prompt.parts, *extra))


def noisy(
    thoughts: Sequence[ImageRef], rng: np.random.Generator, kind: str = "gaussian"
) -> list[ImageRef]:
    """Noise of each thought's size: every token stays, the content is gone."""
    return [LoadedImage(noise_like(ref.load(), rng, kind), ref.name) for ref in thoughts]


def blank(thoughts: Sequence[ImageRef]) -> list[ImageRef]:
    """White images of each thought's size."""
    return [
        LoadedImage(Image.new("RGB", ref.load().size, (255, 255, 255)), ref.name)
        for ref in thoughts
    ]


def mismatched(thoughts: Sequence[ImageRef], others: Sequence[ImageRef]) -> list[ImageRef]:
    """Another row's thoughts, resized to the size of this row's: only the content differs."""
    places = enumerate(thoughts)
    return [
        LoadedImage(others[i % len(others)].load().convert("RGB").resize(ref.load().size), ref.name)
        for i, ref in places
    ]

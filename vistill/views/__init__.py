"""What a reader may see of a prompt. One function a view; a prompt goes in, a prompt comes out."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vistill.types import ImageRef, LoadedImage, Prompt, View
from vistill.views.pictures import mask_patches, noise_like, pixelate

__all__ = ["VIEWS", "ViewContext", "pixelate", "see"]


@dataclass(frozen=True)
class ViewContext:
    """What a view may need besides the prompt."""

    pixel_share: float = 0.10
    """Side of the reduced picture as a share of the original (VA-OPD: 0.10)."""
    partner: Prompt | None = None
    """The prompt whose pictures `swapped` shows."""
    mask_share: float = 0.6
    """Share of the patches that `masked` blanks."""
    patch: int = 14
    """Side of a masked patch in pixels."""
    seed: int = 0
    """Key of the noise of `masked` and `noise`."""


def _with_pictures(prompt: Prompt, change: Callable[[Image.Image, int], Image.Image]) -> Prompt:
    images: list[ImageRef] = [LoadedImage(change(ref.load(), i), ref.name) for i, ref in enumerate(prompt.images)]
    return prompt.with_images(images)


def full(prompt: Prompt, context: ViewContext) -> Prompt:
    """Everything, as it is."""
    return prompt


def pixelated(prompt: Prompt, context: ViewContext) -> Prompt:
    """Every picture reduced and blown up again; the grid of image tokens stays the same (VA-OPD 2.1)."""
    return _with_pictures(prompt, lambda image, _: pixelate(image, context.pixel_share))


def text_only(prompt: Prompt, context: ViewContext) -> Prompt:
    """The question alone; picture placeholders are gone."""
    return replace(prompt, parts=tuple(part for part in prompt.parts if isinstance(part, str)))


def swapped(prompt: Prompt, context: ViewContext) -> Prompt:
    """Another prompt's pictures, resized to the places they stand in, so that only their content differs."""
    assert context.partner is not None, "swapped needs a partner"
    others = context.partner.images
    if not others:
        return prompt
    return _with_pictures(prompt, lambda image, i: others[i % len(others)].load().convert("RGB").resize(image.size))


def masked(prompt: Prompt, context: ViewContext) -> Prompt:
    """Random patches blanked (PAPO)."""
    rng = np.random.default_rng(context.seed)
    return _with_pictures(prompt, lambda image, _: mask_patches(image, context.mask_share, context.patch, rng))


def noise(prompt: Prompt, context: ViewContext) -> Prompt:
    """Uniform noise of the same size: a control that keeps every token and no content."""
    rng = np.random.default_rng(context.seed)
    return _with_pictures(prompt, lambda image, _: noise_like(image, rng))


VIEWS: dict[View, Callable[[Prompt, ViewContext], Prompt]] = {
    View.FULL: full,
    View.PIXELATED: pixelated,
    View.TEXT_ONLY: text_only,
    View.SWAPPED: swapped,
    View.MASKED: masked,
    View.NOISE: noise,
}


def see(prompt: Prompt, view: View, context: ViewContext | None = None) -> Prompt:
    """The prompt as a view shows it."""
    return VIEWS[view](prompt, context or ViewContext())

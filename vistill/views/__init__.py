"""What a reader may see of a prompt. One function a view; a prompt goes in, a prompt comes out."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vistill.types import ImageRef, LoadedImage, Prompt, View
from vistill.views.partners import Partners, no_partner_error
from vistill.views.pictures import add_noise, mask_patches, noise_like, pixelate, shrink
from vistill.views.privileged import (
    blank,
    has_thoughts,
    mismatched,
    noisy,
    thoughts_of,
    with_thoughts,
)

__all__ = ["VIEWS", "Partners", "ViewContext", "apply_view", "has_thoughts", "pixelate"]


@dataclass(frozen=True)
class ViewContext:
    """What a view may need besides the prompt."""

    pixel_share: float = 0.10
    """Side of the reduced picture as a share of the original (VA-OPD: 0.10)."""
    partner: Prompt | None = None
    """The prompt whose pictures `swapped` shows, and whose thoughts `privileged_mismatched` shows (`Partners`)."""
    mask_share: float = 0.6
    """Share of the patches that `masked` blanks."""
    patch: int = 14
    """Side of a masked patch in pixels."""
    degrade: str = "either"
    """What `degraded` does: downsample, noise, or one of them by a keyed coin."""
    thought: str = "data"
    """Where visual thoughts come from: data, crop or box."""
    noise: str = "gaussian"
    """What `noise` and `privileged_noise` show: gaussian (the release of Visual-OPSD) or uniform."""
    seed: int = 0
    """Key of whatever a view draws at random."""


def _with_pictures(prompt: Prompt, change: Callable[[Image.Image, int], Image.Image]) -> Prompt:
    images: list[ImageRef] = [
        LoadedImage(change(ref.load(), i), ref.name) for i, ref in enumerate(prompt.images)
    ]
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
    """Another prompt's pictures, resized to the places they stand in, so that only their content differs.

    Raises:
        DataError: D309, no other row has a picture. The row's own picture is never shown.
    """
    if not prompt.images:
        return prompt
    others = context.partner.images if context.partner is not None else ()
    if not others:
        raise no_partner_error(prompt, View.SWAPPED)
    return _with_pictures(
        prompt, lambda image, i: others[i % len(others)].load().convert("RGB").resize(image.size)
    )


def masked(prompt: Prompt, context: ViewContext) -> Prompt:
    """Random patches blanked (PAPO)."""
    rng = np.random.default_rng(context.seed)
    return _with_pictures(
        prompt, lambda image, _: mask_patches(image, context.mask_share, context.patch, rng)
    )


def noise(prompt: Prompt, context: ViewContext) -> Prompt:
    """Noise of the same size: a control that keeps every token and no content."""
    rng = np.random.default_rng(context.seed)
    return _with_pictures(prompt, lambda image, _: noise_like(image, rng, context.noise))


def black(prompt: Prompt, context: ViewContext) -> Prompt:
    """Every picture black, its size kept (VCSD)."""
    return _with_pictures(prompt, lambda image, _: Image.new("RGB", image.size))


def degraded(prompt: Prompt, context: ViewContext) -> Prompt:
    """Every picture down-sampled to 0.3-0.6 of its side, or under Gaussian noise of 0.1-0.3 of its range (S2VOPD)."""
    rng = np.random.default_rng(context.seed)

    def change(image: Image.Image, _: int) -> Image.Image:
        coin, share, strength = (
            rng.random(),
            float(rng.uniform(0.3, 0.6)),
            float(rng.uniform(0.1, 0.3)),
        )
        small = context.degrade == "downsample" or (context.degrade == "either" and coin < 0.5)
        return shrink(image, share) if small else add_noise(image, strength, rng)

    return _with_pictures(prompt, change)


def privileged(prompt: Prompt, context: ViewContext) -> Prompt:
    """The prompt and its visual thoughts, between the paper's two sentences (Visual-OPSD)."""
    return with_thoughts(prompt, thoughts_of(prompt, context.thought))


def privileged_noise(prompt: Prompt, context: ViewContext) -> Prompt:
    """Control: noise in place of every thought."""
    rng = np.random.default_rng(context.seed)
    return with_thoughts(prompt, noisy(thoughts_of(prompt, context.thought), rng, context.noise))


def privileged_blank(prompt: Prompt, context: ViewContext) -> Prompt:
    """Control: white pictures in place of the thoughts."""
    return with_thoughts(prompt, blank(thoughts_of(prompt, context.thought)))


def privileged_mismatched(prompt: Prompt, context: ViewContext) -> Prompt:
    """Control: another prompt's thoughts.

    Raises:
        DataError: D309, no other row has thoughts. The row's own thoughts are never shown.
    """
    own = thoughts_of(prompt, context.thought)
    others = thoughts_of(context.partner, context.thought) if context.partner is not None else []
    if own and not others:
        raise no_partner_error(prompt, View.PRIVILEGED_MISMATCHED)
    return with_thoughts(prompt, mismatched(own, others))


def privileged_prompts(prompt: Prompt, context: ViewContext) -> Prompt:
    """Control: the two sentences without any thought between them."""
    return with_thoughts(prompt, ())


VIEWS: dict[View, Callable[[Prompt, ViewContext], Prompt]] = {
    View.FULL: full,
    View.PIXELATED: pixelated,
    View.TEXT_ONLY: text_only,
    View.SWAPPED: swapped,
    View.MASKED: masked,
    View.BLACK: black,
    View.NOISE: noise,
    View.DEGRADED: degraded,
    View.PRIVILEGED: privileged,
    View.PRIVILEGED_NOISE: privileged_noise,
    View.PRIVILEGED_BLANK: privileged_blank,
    View.PRIVILEGED_MISMATCHED: privileged_mismatched,
    View.PRIVILEGED_PROMPTS: privileged_prompts,
}


def apply_view(prompt: Prompt, view: View, context: ViewContext | None = None) -> Prompt:
    """The prompt as a view shows it."""
    return VIEWS[view](prompt, context or ViewContext())

"""The views that come with vistill, one function each; `vistill/registry.py` lists them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image

from vistill.types import ImageRef, LoadedImage, Prompt, View
from vistill.views.partners import images_of_partner, no_partner_error
from vistill.views.pictures import add_noise, mask_patches, noise_like, pixelate, shrink
from vistill.views.privileged import blank, mismatched, noisy, with_thoughts
from vistill.views.registry import ViewContext
from vistill.views.thoughts import thoughts_of


def _with_pictures(prompt: Prompt, change: Callable[[Image.Image, int], Image.Image]) -> Prompt:
    images: list[ImageRef] = [
        LoadedImage(change(ref.load(), i), ref.name) for i, ref in enumerate(prompt.images)
    ]
    return prompt.with_images(images)


def full(prompt: Prompt, context: ViewContext) -> Prompt:
    """Everything, as it is."""
    return prompt


def pixelated(prompt: Prompt, context: ViewContext) -> Prompt:
    """Every picture reduced and enlarged again; the grid of image tokens stays (VA-OPD 2.1)."""
    return _with_pictures(prompt, lambda image, _: pixelate(image, context.pixel_share))


def text_only(prompt: Prompt, context: ViewContext) -> Prompt:
    """The question alone; picture placeholders are gone."""
    return replace(prompt, parts=tuple(part for part in prompt.parts if isinstance(part, str)))


def swapped(prompt: Prompt, context: ViewContext) -> Prompt:
    """Another prompt's pictures in the sizes of the own ones, so that only the content differs.

    Raises:
        DataError: D309, no other row has a picture. The row's own picture is never shown.
    """
    if not prompt.images:
        return prompt
    partner = context.partner
    others = [] if partner is None else images_of_partner(prompt.images, partner.images)
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
    """Every picture reduced to 0.3-0.6 of its side, or with Gaussian noise added (S2VOPD).

    The standard deviation of the noise is 0.1-0.3 of the range of a pixel.
    """
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
    partner = context.partner
    others = (
        [] if partner is None else images_of_partner(own, thoughts_of(partner, context.thought))
    )
    if own and not others:
        raise no_partner_error(prompt, View.PRIVILEGED_MISMATCHED)
    return with_thoughts(prompt, mismatched(own, others))


def privileged_prompts(prompt: Prompt, context: ViewContext) -> Prompt:
    """Control: the two sentences without any thought between them."""
    return with_thoughts(prompt, ())

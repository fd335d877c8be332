"""Image operations of the views: PIL and numpy, no torch."""

import numpy as np
from PIL import Image


def pixelate(image: Image.Image, share: float = 0.10) -> Image.Image:
    """Reduce each side to `share` (floor, at least 1 px, BILINEAR), then restore it (NEAREST).

    PIL's BILINEAR is antialiased on reduction. Palette images become RGB, 1-bit ones L; other modes
    stay.
    Source: VA-OPD section 2.1 and the authors' release.
    """
    if image.mode == "P":
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    width, height = image.size
    small = image.resize(
        (max(1, int(share * width)), max(1, int(share * height))), Image.Resampling.BILINEAR
    )
    return small.resize((width, height), Image.Resampling.NEAREST)


def mask_patches(
    image: Image.Image, share: float, patch: int, rng: np.random.Generator
) -> Image.Image:
    """Blank each patch with probability `share` (black)."""
    pixels = np.asarray(image.convert("RGB")).copy()
    for top in range(0, pixels.shape[0], patch):
        for left in range(0, pixels.shape[1], patch):
            if rng.random() < share:
                pixels[top : top + patch, left : left + patch] = 0
    return Image.fromarray(pixels)


def shrink(image: Image.Image, share: float) -> Image.Image:
    """Reduce each side to `share` and restore the size, both BILINEAR.

    Fine detail is lost, the token grid stays the same.
    """
    image = image.convert("RGB")
    small = (max(1, round(share * image.width)), max(1, round(share * image.height)))
    return image.resize(small, Image.Resampling.BILINEAR).resize(
        image.size, Image.Resampling.BILINEAR
    )


def add_noise(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Gaussian noise with `strength` of the pixel range as deviation."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    pixels = pixels + rng.normal(0, 255 * strength, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def noise_like(image: Image.Image, rng: np.random.Generator, kind: str = "gaussian") -> Image.Image:
    """RGB noise of the same size, every value drawn on its own.

    `gaussian` is 127.5 + 127.5 z with standard normal z, cut off at 0 and 255 (about a third of the
    values). A processor with mean and deviation 0.5 (Qwen-VL) turns it into a standard normal. An
    image cannot come closer to the release of Visual-OPSD, which replaces the processed thought by
    `randn_like`. `uniform` takes each of 0 to 255 equally often.
    """
    shape = (image.height, image.width, 3)
    if kind == "uniform":
        return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
    assert kind == "gaussian", f"no such noise: {kind}"
    values = 127.5 + 127.5 * rng.standard_normal(shape, dtype=np.float32)
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))

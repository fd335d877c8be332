"""Colour keys of PNG files: the one colour that is transparent.

Pillow keeps the key at the depth of the file and the pixels at 8 bits.
"""

import io

import numpy as np
from PIL import Image

GREY, RGB = 0, 2


def with_exact_key(image: Image.Image, data: bytes) -> Image.Image:
    """The decoded picture with its colour key at the depth of its pixels.

    Args:
        image: a loaded picture.
        data: the file that it was decoded from.
    """
    key = image.info.get("transparency")
    if image.format != "PNG" or not isinstance(key, int | tuple):
        return image
    depth, colour = data[24], data[25]  # of the header, which comes first
    if colour == GREY and depth in (2, 4) and isinstance(key, int):
        image.info["transparency"] = key * (255 // (2**depth - 1))
    if colour == RGB and depth == 16 and isinstance(key, tuple):
        return with_key_of_16_bits(image, data, key)
    return image


def with_key_of_16_bits(image: Image.Image, data: bytes, key: tuple[int, ...]) -> Image.Image:
    """RGBA whose pixels of the key are transparent, compared at 16 bits.

    Pillow keeps the upper byte of each value. Read as little-endian, it keeps the lower one.
    """
    with Image.open(io.BytesIO(data), formats=("PNG",)) as lower:
        lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]
        lower.load()
        values = np.asarray(image, np.uint16) * 256 + np.asarray(lower, np.uint16)
    alpha = np.where((values == np.asarray(key)).all(axis=-1), 0, 255).astype(np.uint8)
    rgba = image.convert("RGB")
    rgba.info = {name: value for name, value in image.info.items() if name != "transparency"}
    rgba.putalpha(Image.fromarray(alpha))
    return rgba

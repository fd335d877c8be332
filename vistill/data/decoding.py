"""Decode a picture and normalise it once: upright, 8 bits, on white, RGB, within pixel limits.

Views, digests of pixels, token counts and the models all start from the normalised picture.
"""

import io
import math
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from vistill.data.colour_keys import with_exact_key
from vistill.errors import DataError, quote_path

MAX_PIXELS = 50_000_000
OPENING = threading.Lock()
#: Longer side over shorter side; image processors refuse images beyond it.
MAX_ASPECT = 200
#: What Pillow decodes here. PPM stands for PBM, PGM, PPM and PFM.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM")
#: The same in words, for messages.
FORMATS_IN_WORDS = "PNG, JPEG, WebP, GIF, BMP, PPM"
#: First bytes of what is read.
IMAGE_STARTS = (
    b"\x89PNG",
    b"\xff\xd8",
    b"GIF8",
    b"RIFF",
    b"BM",
    b"P1",
    b"P2",
    b"P3",
    b"P4",
    b"P5",
    b"P6",
)
#: First bytes of what is not read: (offset, bytes, name, whether Pillow can convert it).
OTHER_FORMATS = (
    (0, b"II*\0", "TIFF", True),
    (0, b"MM\0*", "TIFF", True),
    (0, b"II+\0", "TIFF", True),
    (4, b"ftypavi", "AVIF", True),
    (4, b"ftyphei", "HEIC", False),
    (4, b"ftyphev", "HEIC", False),
    (4, b"ftypmif1", "HEIC", False),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000", True),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000", True),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL", False),
    (0, b"\xff\x0a", "JPEG XL", False),
    (0, b"8BPS", "Photoshop (PSD)", True),
    (0, b"\0\0\x01\0", "icon (ICO)", True),
    (0, b"icns", "icon (ICNS)", True),
    (0, b"qoif", "QOI", True),
    (0, b"DDS ", "DDS", True),
    (128, b"DICM", "DICOM", False),
    (0, b"%PDF", "PDF", False),
    (0, b"%!PS", "PostScript (EPS)", False),
    (0, b"<svg", "SVG", False),
    (0, b"version https://git-lfs", "Git LFS pointer", False),
    (0, b"\x93NUMPY", "NumPy array", False),
    (0, b"PK\x03\x04", "ZIP archive", False),
    (0, b"\x1f\x8b", "gzip file", False),
    (0, b"<!doctype", "web page", False),
    (0, b"<html", "web page", False),
)


#: Formats whose files may hold several pages or frames. One picture is read: the first.
PAGED = ("TIFF", "AVIF")


@dataclass(frozen=True)
class PixelLimits:
    """Least and most pixels of a picture; None for no limit."""

    min_pixels: int | None = None
    max_pixels: int | None = None

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The size that a picture gets: sides scaled by one factor, rounded down.

        Source: the release of VA-OPD, which first shrinks and then enlarges. The shorter side is
        rounded up where the aspect ratio would exceed the limit of image processors.
        """
        for limit, is_beyond in (
            (self.max_pixels, lambda pixels, bound: pixels > bound),
            (self.min_pixels, lambda pixels, bound: pixels < bound),
        ):
            if limit is not None and is_beyond(width * height, limit):
                width, height = scaled(width, height, math.sqrt(limit / (width * height)))
        return width, height


NO_LIMITS = PixelLimits()


def scaled(width: int, height: int, factor: float) -> tuple[int, int]:
    """Both sides times a factor, rounded down, at least 1 and within `MAX_ASPECT`."""
    sides = [max(1, int(width * factor)), max(1, int(height * factor))]
    shorter = sides.index(min(sides))
    sides[shorter] = max(sides[shorter], math.ceil(max(sides) / MAX_ASPECT))
    return sides[0], sides[1]


def decode_image(
    data: bytes, where: str, limits: PixelLimits = NO_LIMITS, path: Path | None = None
) -> Image.Image:
    """Decode one picture and normalise it (D202). Only a full decode detects a truncated file.

    Args:
        data: the encoded picture.
        where: row and name, for messages.
        limits: pixel limits.
        path: its file, for the command in the message that converts it.
    """
    try:
        with open_image(data) as image:
            check_image_size(image.width, image.height, where)
            image.load()
            return normalise(with_exact_key(image, data), where, limits)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise unread_format_error(data, where, path) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning) as error:
        raise DataError(
            "D202",
            "image cannot be decoded",
            where=where,
            why=f"{error} ({len(data):,} bytes)",
            fix="download it again, or remove the row",
        ) from error


def open_image(data: bytes) -> Image.Image:
    """Open a picture, undecoded. A warning of too many pixels is an error.

    The filters of warnings belong to the whole process, so one thread at a time changes them.
    """
    with OPENING, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=FORMATS)


def normalise(image: Image.Image, where: str, limits: PixelLimits = NO_LIMITS) -> Image.Image:
    """The picture as the model sees it. An upright RGB picture within the limits stays the object.

    Raises:
        DataError: D202, its values are no brightness (mode I or F outside the usual ranges).
    """
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    image = to_rgb(image, where)
    size = limits.size(*image.size)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def to_rgb(image: Image.Image, where: str = "image") -> Image.Image:
    """RGB of 8 bits on white; the same object for RGB without transparency.

    A direct conversion would reveal the colour under transparent pixels, often black, and would
    cut values of 16 bits off at 255: a picture of one colour.
    """
    if (
        image.format == "BMP"
        and image.mode == "RGBA"
        and image.getchannel("A").getextrema()[1] == 0
    ):
        return image.convert("RGB")  # the fourth byte is unused
    if image.mode.startswith("I") or image.mode == "F":
        image = to_eight_bits(image, where)
    image = flatten_on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def to_eight_bits(image: Image.Image, where: str) -> Image.Image:
    """Scale 16 bit or float values to 0..255; the values of a colour key become transparent."""
    values = np.asarray(image, dtype=np.float64)
    largest = float(values.max(initial=0))
    if not (np.isfinite(values).all() and values.min(initial=0) >= 0 and largest <= 65535):
        raise image_refused_error(f"values of mode {image.mode} outside 0 to 65,535", where)
    # PNG and PGM of 16 bits always use the whole range.
    is_declared = image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I")
    top = 65535 if is_declared else top_of_range(largest, image.mode, where)
    grey = Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
        return Image.merge("LA", (grey, alpha))
    return grey


def top_of_range(largest: float, mode: str, where: str) -> int:
    """The value of white, by the largest value of a picture that does not declare it.

    The smallest range that holds the values: 0..1 (floats only), 0..255 or 0..65,535. A range after
    the first one is taken only if the largest value reaches a quarter of it. Otherwise the picture
    may be a bright one of the smaller range, and would become black.

    Raises:
        DataError: D202, the range is ambiguous.
    """
    tops = (1, 255, 65535) if mode == "F" else (255, 65535)
    index = next(index for index, top in enumerate(tops) if largest <= top)
    if index and largest < tops[index] / 4:
        raise DataError(
            "D202",
            "the range of the values of an image is ambiguous",
            where=where,
            why=f"the largest value is {largest:g}, so white may be {tops[index - 1]:,} or "
            f"{tops[index]:,} (mode {mode})",
            fix="save the image with 8 bits, or scale its values to 0..1"
            if mode == "F"
            else "save the image with 8 bits, or scale its values to 0..65,535",
        )
    return tops[index]


def flatten_on_white(image: Image.Image) -> Image.Image:
    """Put transparent pixels on white; the same object if no pixel is transparent.

    The models' preprocessing does the same.
    """
    if image.mode in ("La", "RGBa"):  # colours already multiplied by alpha
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    has_colour_key = image.mode in ("1", "L", "P", "RGB") and "transparency" in image.info
    if not has_colour_key and image.mode not in ("LA", "PA", "RGBA"):
        return image
    if has_colour_key:
        image = with_eight_bit_key(image)
    rgba = image.convert("RGBA")
    if not has_colour_key and rgba.getchannel("A").getextrema()[0] == 255:
        return image
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def with_eight_bit_key(image: Image.Image) -> Image.Image:
    """Pillow reads RGB of 16 bits as 8 bits, but leaves the transparent colour at 16 bits."""
    key = image.info["transparency"]
    if not isinstance(key, tuple) or max(key) <= 255:
        return image
    image = image.copy()
    image.info["transparency"] = tuple(part >> 8 for part in key)
    return image


def check_image_size(width: int, height: int, where: str) -> None:
    """D202 for an image without pixels, with too many, or with an extreme aspect ratio."""
    if width * height > MAX_PIXELS:
        raise image_refused_error(
            f"{width:,} x {height:,} pixels, the limit is {MAX_PIXELS:,} pixels", where
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise image_refused_error(
            f"{width:,} x {height:,} pixels, one side may be {MAX_ASPECT} times the other", where
        )


def image_refused_error(why: str, where: str) -> DataError:
    """D202 for an image that a limit excludes."""
    return DataError(
        "D202",
        "image beyond the limits",
        where=where,
        why=why,
        fix="correct the image, or remove the row",
    )


def unread_format_error(data: bytes, where: str, path: Path | None) -> DataError:
    """D202 for a file of a format that is not read: its name, and how to convert it."""
    name, convertible = other_format(data)
    why = f"formats that are read: {FORMATS_IN_WORDS} ({len(data):,} bytes)"
    what = f"image of a format that is not read: {name}" if name else "no image of a known format"
    fix = "download it again, or remove the row"
    if name == "Git LFS pointer":
        fix = f"git -C {quote_path(path.parent if path else '.')} lfs pull"
    elif name and convertible and path is not None:
        fix = f"convert it to PNG: {convert_command(path)}"
    elif name and name not in ("web page", "ZIP archive", "gzip file"):
        fix = "convert it to PNG with the program that wrote it, under the same name"
    note = "the originals stay as NAME.orig; a PNG may keep its old name" if convertible else ""
    note += "; of several pages the first one is taken" if name in PAGED else ""
    return DataError("D202", what, where=where, why=why, fix=fix, note=note if path else "")


def other_format(data: bytes) -> tuple[str, bool]:
    """Name of a known format that is not read, and whether Pillow can convert it."""
    text = data[:512].lstrip().lower()
    for offset, magic, name, convertible in OTHER_FORMATS:
        head = text if offset == 0 and magic[:1] == b"<" else data[offset:]
        if head.startswith(magic):
            return name, convertible
    return ("SVG", False) if text.startswith(b"<?xml") and b"<svg" in text else ("", False)


def convert_command(path: Path) -> str:
    """The command that converts the pictures of the file's folder that are not read."""
    return f"python -m vistill.data.convert {quote_path(path.parent)}"

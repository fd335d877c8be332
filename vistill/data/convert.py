"""`python -m vistill.data.convert FOLDER`: turn pictures that are not read into PNG.

It looks at the content of each file of the folder, not at its name. A picture keeps its name,
because rows name it; the original stays next to it as `NAME.orig`. Other files stay untouched. Of
several pages the first one is taken, and the output says so.
"""

import itertools
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from vistill.data.decoding import PAGED, check_image_size, decode_image, other_format, to_rgb
from vistill.errors import DataError

#: What Pillow may decode here: the convertible formats of `decoding.OTHER_FORMATS`.
CONVERTIBLE = ("TIFF", "AVIF", "JPEG2000", "PSD", "ICO", "ICNS", "QOI", "DDS")
#: Modes that PNG holds; pictures of other modes become RGB of 8 bits.
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
ORIGINAL = ".orig"


class ConvertedPicture(NamedTuple):
    """A picture that was converted, and how many pages its original has."""

    path: Path
    pages: int


def convert_folder(folder: Path) -> list[ConvertedPicture]:
    """Convert the pictures of a folder, one by one; return those that were converted.

    Raises:
        DataError: D202, a picture cannot be converted. It stays as it is.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [convert_file(path) for path in files if is_convertible(path)]


def is_convertible(path: Path) -> bool:
    """Whether a file holds a picture of a format that is not read and that Pillow converts."""
    if ORIGINAL in path.suffix:
        return False
    with path.open("rb") as handle:
        return other_format(handle.read(512))[1]


def convert_file(path: Path) -> ConvertedPicture:
    """Replace a picture by an upright PNG of the same name, after the PNG is written and read."""
    image, pages = read_picture(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:50]}-", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as out:
            image.save(out, "PNG")
        decode_image(part.read_bytes(), str(path))
        part.chmod(path.stat().st_mode & 0o777)
        path.rename(free_name(path))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return ConvertedPicture(path, pages)


def read_picture(path: Path) -> tuple[Image.Image, int]:
    """The first picture of a file, upright, in a mode that PNG holds; and its pages (D202)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=CONVERTIBLE) as opened:
                check_image_size(opened.width, opened.height, str(path))
                pages = getattr(opened, "n_frames", 1) if opened.format in PAGED else 1
                opened.load()
                image = ImageOps.exif_transpose(opened)
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning) as error:
        raise DataError(
            "D202",
            "image cannot be converted",
            where=str(path),
            why=str(error)[:200],
            fix="convert it with the program that wrote it, or remove its rows",
        ) from error
    if image.mode in PNG_MODES:
        return image, pages
    image = to_rgb(image, str(path))
    image.info = {}  # the colour profile of another mode
    return image, pages


def free_name(path: Path) -> Path:
    """The first free name for the original."""
    names = (f"{path.name}{ORIGINAL}{number or ''}" for number in itertools.count())
    return next(path.with_name(name) for name in names if not path.with_name(name).exists())


def main(arguments: list[str]) -> int:
    """Convert the pictures of one folder and print each; return the exit status."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python -m vistill.data.convert FOLDER", file=sys.stderr)
        return 2
    try:
        converted = convert_folder(Path(arguments[0]))
    except DataError as error:
        print(error, file=sys.stderr)
        return 3
    for path, pages in converted:
        page = f"; page 1 of {pages}, the others are only there" if pages > 1 else ""
        print(f"converted  {path}   (the original stays as {path.name}{ORIGINAL}{page})")
    print(f"{len(converted):,} pictures converted to PNG in {arguments[0]}")
    several = sum(picture.pages > 1 for picture in converted)
    if several:
        print(f"{several:,} of them had several pages: the PNG shows the first one alone")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Image files from strangers: limits before decoding, no URLs, nothing outside the image folder."""

import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from vistill.errors import DataError, suggest

MAX_PIXELS = 50_000_000
MAX_BYTES = 20_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


@dataclass(frozen=True)
class FileImage:
    """A picture in a file, decoded when somebody looks."""

    path: Path
    where: str = ""
    """Row and column, for messages."""

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def load(self) -> Image.Image:
        """The decoded picture, turned as its EXIF says, fully read."""
        return decode(self.path, self.where)


def decode(path: Path, where: str = "") -> Image.Image:
    """Decode one file within the limits (D201, D202). Only a full decode notices a truncated file."""
    if not path.is_file():
        raise missing(path, where)
    if path.stat().st_size > MAX_BYTES:
        raise DataError("D202", f"image larger than {MAX_BYTES:,} bytes", where=f"{where} {path.name}", fix="shrink it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(
                        "D202",
                        f"image has {image.width:,} x {image.height:,} pixels",
                        where=f"{where} {path.name}",
                        why=f"the limit is {MAX_PIXELS:,} pixels",
                        fix="shrink it before training",
                    )
                image.load()
                return ImageOps.exif_transpose(image)
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning) as error:
        raise DataError(
            "D202",
            "image cannot be decoded",
            where=f"{where} {path.name}",
            why=f"{error} ({path.stat().st_size:,} bytes)",
            fix="download it again, or continue without the row: data.on_bad_row=quarantine",
        ) from error


def missing(path: Path, where: str) -> DataError:
    """D201 with a suggestion from the folder."""
    names = sorted(p.name for p in path.parent.iterdir())[:5000] if path.parent.is_dir() else []
    hint = suggest(path.name, names)
    return DataError(
        "D201",
        f'image missing: "{path.name}"',
        where=where,
        why=f"looked for {path}   {hint}".rstrip(),
        fix="data.images=OTHER_FOLDER, or continue without the row: data.on_bad_row=quarantine",
    )


def resolve(name: str, root: Path, where: str) -> Path:
    """The file a row names, which must lie inside the image folder (D205, D206)."""
    if "://" in name or name.startswith("data:"):
        raise DataError(
            "D205",
            "an image is given as a URL",
            where=where,
            why="data never reaches the network: a row could make the machine call anywhere",
            fix="download the images into a folder and name them by path",
        )
    if "\0" in name or any(len(part.encode()) > 255 for part in Path(name).parts) or len(name.encode()) > 4096:
        raise DataError(
            "D206",
            f"not a file name: {name[:40]!r}, {len(name)} characters",
            where=where,
            why="names have at most 255 bytes and no null byte",
            fix="correct the row, or name the right column: data.columns.images=COLUMN",
        )
    path = (root / name).resolve()
    if Path(name).is_absolute() or not path.is_relative_to(root.resolve()):
        raise DataError(
            "D206",
            f'image path leaves the image folder: "{name}"',
            where=where,
            why=f"paths must stay inside {root}",
            fix="data.images=FOLDER that holds all images",
        )
    return path

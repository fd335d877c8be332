"""Untrusted image files: limits before decoding, no URLs, no path outside the image folder."""

import contextlib
import io
import itertools
import os
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import xxhash
from PIL import Image, ImageOps, UnidentifiedImageError

from vistill.errors import DataError, suggest

MAX_PIXELS = 50_000_000
MAX_BYTES = 20_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

#: The fix for an image that no nearby folder contains.
NO_IMAGE_FIX = "data.images=OTHER_FOLDER   or skip such rows: data.on_bad_row=quarantine"
#: Longer side over shorter side; image processors refuse images beyond it.
MAX_ASPECT = 200


@dataclass(frozen=True)
class FileImage:
    """An image in a file, decoded on demand."""

    path: Path
    where: str = ""
    """Row and column, for messages."""
    root: Path = Path()
    """The image folder."""
    digest: str = ""
    """Hash of the file as first read; any other content is an error afterwards (D208)."""

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def data(self) -> bytes:
        """Read the file, within the limits (D201, D202)."""
        try:
            if not self.path.is_file():
                raise image_missing_error(self.path, self.where, self.root)
            if self.path.stat().st_size > MAX_BYTES:
                raise image_refused_error(
                    f"larger than {MAX_BYTES:,} bytes", f"{self.where} {self.path.name}"
                )
            return self.path.read_bytes()
        except OSError as error:
            raise image_refused_error(
                str(error.strerror or error), f"{self.where} {self.path.name}"
            ) from error

    def load(self) -> Image.Image:
        """Decode the image fully and apply its EXIF rotation."""
        data = self.data()
        if self.digest and file_digest(data) != self.digest:
            raise image_changed_error(f"{self.where} {self.path.name}")
        return decode_image(data, f"{self.where} {self.path.name}")


@dataclass(frozen=True)
class BytesImage:
    """An image stored in the data file itself."""

    content: bytes
    name: str

    def data(self) -> bytes:
        """The encoded image."""
        if len(self.content) > MAX_BYTES:
            raise image_refused_error(f"larger than {MAX_BYTES:,} bytes", self.name)
        return self.content

    def load(self) -> Image.Image:
        """Decode the image."""
        return decode_image(self.data(), self.name)


def file_digest(data: bytes) -> str:
    """xxh3-128 of an encoded image."""
    return xxhash.xxh3_128(data).hexdigest()


def flatten_on_white(image: Image.Image) -> Image.Image:
    """Put transparent pixels on white, as the models' preprocessing does.

    Returns the same object if no pixel is transparent. A direct conversion to RGB would reveal the
    colour under transparent pixels, often black: black lines on black.
    """
    has_colour_key = image.mode in ("1", "L", "P", "RGB") and "transparency" in image.info
    if not has_colour_key and image.mode not in ("LA", "PA", "RGBA"):
        return image
    rgba = image.convert("RGBA")
    if not has_colour_key and rgba.getchannel("A").getextrema()[0] == 255:
        return image
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def pixel_digest(image: Image.Image) -> str:
    """xxh3-128 of an image in memory: mode, size, values, and the palette if it has one."""
    values, palette = image.tobytes(), b""
    if image.mode == "P" and values:  # only the used part: files drop the rest
        used = 3 * (max(values) + 1)
        palette = bytes(image.getpalette("RGB") or []).ljust(used, b"\0")[:used]
    return file_digest(f"{image.mode} {image.size} ".encode() + palette + values)


def decode_image(data: bytes, where: str) -> Image.Image:
    """Decode one image within the limits (D202). Only a full decode detects a truncated file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                check_image_size(image.width, image.height, where)
                image.load()
                return flatten_on_white(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning) as error:
        reason = (
            "no image of a known format"
            if isinstance(error, UnidentifiedImageError)
            else str(error)
        )
        raise DataError(
            "D202",
            "image cannot be decoded",
            where=where,
            why=f"{reason} ({len(data):,} bytes)",
            fix="download it again, or skip such rows: data.on_bad_row=quarantine",
        ) from error


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
        fix="fix the image, or skip such rows: data.on_bad_row=quarantine",
    )


def image_changed_error(where: str) -> DataError:
    """D208."""
    return DataError(
        "D208",
        "an image changed after this run first read it",
        where=where,
        why="training on both contents would mix two experiments in one run",
        fix="restore the old file, or start a new run: run=OTHER_FOLDER",
    )


def image_missing_error(path: Path, where: str, root: Path) -> DataError:
    """D201 with a similar name from the folder, or a nearby folder that contains the image."""
    folder, hint = "", ""
    with contextlib.suppress(OSError, ValueError):  # advice only
        folder = find_image_folder(path, root)
        hint = suggest(path.name, similar_names(path))
    return DataError(
        "D201",
        f'image missing: "{path.name}"',
        where=where,
        why=f"looked for {path}   {hint}".rstrip(),
        fix=f"data.images={folder}" if folder else NO_IMAGE_FIX,
    )


def similar_names(path: Path) -> list[str]:
    """Names in the folder with the same first letter and a similar length.

    Looks at the first 5,000 entries of a large folder.
    """

    def is_similar(name: str) -> bool:
        return name[:1] == path.name[:1] and abs(len(name) - len(path.name)) <= 3

    entries = itertools.islice(os.scandir(path.parent), 5000) if path.parent.is_dir() else []
    return sorted(entry.name for entry in entries if is_similar(entry.name))[:300]


@cache
def nearby_folders(root: Path) -> tuple[Path, ...]:
    """An image folder, its two parents, and the folders inside each of them."""
    folders: list[Path] = []
    for parent in (root, *root.absolute().parents[:2]):
        if parent.is_dir():
            folders += [parent, *sorted(p for p in parent.iterdir() if p.is_dir())[:100]]
    return tuple(folders)


def find_image_folder(path: Path, root: Path) -> str:
    """A nearby folder in which the row's path leads to a file; empty if there is none."""
    inside = path.relative_to(root.resolve())
    for folder in nearby_folders(root.absolute()):
        if (folder / inside).is_file():
            is_below = folder.is_relative_to(Path.cwd())
            return str(folder.relative_to(Path.cwd()) if is_below else folder)
    return ""


def resolve_image_path(name: str, root: Path, where: str) -> Path:
    """Resolve the file that a row names; it must be inside the image folder (D205, D206)."""
    if "://" in name or name.startswith("data:"):
        raise DataError(
            "D205",
            "a row names an image by URL",
            where=where,
            why="vistill fetches no image from the network: a row could contact any host",
            fix="download the images into a folder and name them by path",
        )
    if not is_legal_file_name(name):
        raise DataError(
            "D206",
            f"not a file name: {name[:40]!r}, {len(name)} characters",
            where=where,
            why="a name has at most 255 bytes, no null byte and no lone surrogate",
            fix="correct the row, or name the right column: data.columns.images=COLUMN",
        )
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError) as error:
        raise DataError(
            "D206",
            f'image path is a circular link: "{name}"',
            where=where,
            why=str(error)[:200],
            fix="fix the link, or skip such rows: data.on_bad_row=quarantine",
        ) from error
    if Path(name).is_absolute() or not path.is_relative_to(root.resolve()):
        raise DataError(
            "D206",
            f'image path leaves the image folder: "{name}"',
            where=where,
            why=f"paths must stay inside {root}",
            fix="data.images=FOLDER that holds all images",
        )
    return path


def is_legal_file_name(name: str) -> bool:
    """Whether a file system can hold the name: no null byte, no lone surrogate, not too long."""

    def size(text: str) -> int:
        return len(text.encode(errors="surrogatepass"))

    if "\0" in name or any("\ud800" <= character <= "\udfff" for character in name):
        return False
    return size(name) <= 4096 and all(size(part) <= 255 for part in Path(name).parts)

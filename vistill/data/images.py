"""Image files from strangers: limits before decoding, no URLs, nothing outside the image folder."""

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


#: What to do about a picture that is nowhere near.
NO_IMAGE_FIX = "data.images=OTHER_FOLDER   or without the row: data.on_bad_row=quarantine"
#: Longer side over shorter side; beyond it image processors refuse the picture.
MAX_ASPECT = 200


@dataclass(frozen=True)
class FileImage:
    """A picture in a file, decoded when somebody looks."""

    path: Path
    where: str = ""
    """Row and column, for messages."""
    root: Path = Path()
    """The image folder."""
    digest: str = ""
    """Hash of the file as it was first read; another content is an error from then on (D208)."""

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def data(self) -> bytes:
        """The file's content, within the limits (D201, D202)."""
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
        """The decoded picture, turned as its EXIF says, fully read."""
        data = self.data()
        if self.digest and file_digest(data) != self.digest:
            raise image_changed_error(f"{self.where} {self.path.name}")
        return decode_image(data, f"{self.where} {self.path.name}")


@dataclass(frozen=True)
class BytesImage:
    """A picture stored in the data file itself."""

    content: bytes
    name: str

    def data(self) -> bytes:
        """The encoded picture."""
        if len(self.content) > MAX_BYTES:
            raise image_refused_error(f"larger than {MAX_BYTES:,} bytes", self.name)
        return self.content

    def load(self) -> Image.Image:
        """The decoded picture."""
        return decode_image(self.data(), self.name)


def file_digest(data: bytes) -> str:
    """xxh3-128 of an encoded picture."""
    return xxhash.xxh3_128(data).hexdigest()


def flatten_on_white(picture: Image.Image) -> Image.Image:
    """A picture whose transparent pixels lie on white, as in the models' own preprocessing; without such, itself.

    A plain conversion to RGB would show whatever colour lies under them, often black: black lines on black.
    """
    keyed = picture.mode in ("1", "L", "P", "RGB") and "transparency" in picture.info
    if not keyed and picture.mode not in ("LA", "PA", "RGBA"):
        return picture
    full = picture.convert("RGBA")
    if not keyed and full.getchannel("A").getextrema()[0] == 255:
        return picture
    return Image.alpha_composite(Image.new("RGBA", full.size, "white"), full).convert("RGB")


def pixel_digest(picture: Image.Image) -> str:
    """xxh3-128 of a picture in memory: mode, size and values; the values of a palette picture mean nothing alone."""
    values, palette = picture.tobytes(), b""
    if picture.mode == "P" and values:  # only as far as it is used: files drop the rest
        used = 3 * (max(values) + 1)
        palette = bytes(picture.getpalette("RGB") or []).ljust(used, b"\0")[:used]
    return file_digest(f"{picture.mode} {picture.size} ".encode() + palette + values)


def decode_image(data: bytes, where: str) -> Image.Image:
    """Decode one picture within the limits (D202). Only a full decode notices a truncated file."""
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
            "no picture of a known format"
            if isinstance(error, UnidentifiedImageError)
            else str(error)
        )
        raise DataError(
            "D202",
            "image cannot be decoded",
            where=where,
            why=f"{reason} ({len(data):,} bytes)",
            fix="download it again, or continue without the row: data.on_bad_row=quarantine",
        ) from error


def check_image_size(width: int, height: int, where: str) -> None:
    """D202 for more pixels than the limit, none, or a picture that is all length."""
    if width * height > MAX_PIXELS:
        raise image_refused_error(
            f"{width:,} x {height:,} pixels, the limit is {MAX_PIXELS:,} pixels", where
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise image_refused_error(
            f"{width:,} x {height:,} pixels, one side may be {MAX_ASPECT} times the other", where
        )


def image_refused_error(why: str, where: str) -> DataError:
    """D202 for a picture that is readable and not wanted."""
    return DataError(
        "D202",
        "image beyond the limits",
        where=where,
        why=why,
        fix="mend the picture, or continue without the row: data.on_bad_row=quarantine",
    )


def image_changed_error(where: str) -> DataError:
    """D208."""
    return DataError(
        "D208",
        "an image has changed since this run first read it",
        where=where,
        why="two contents under one name would be two experiments under one",
        fix="put the old file back, or start a new run: run=OTHER_FOLDER",
    )


def image_missing_error(path: Path, where: str, root: Path) -> DataError:
    """D201 with a suggestion from the folder, or the folder nearby that holds it."""
    found, hint = "", ""
    with contextlib.suppress(OSError, ValueError):  # it is only advice
        found = find_image_folder(path, root)
        hint = suggest(path.name, similar_names(path))
    return DataError(
        "D201",
        f'image missing: "{path.name}"',
        where=where,
        why=f"looked for {path}   {hint}".rstrip(),
        fix=f"data.images={found}" if found else NO_IMAGE_FIX,
    )


def similar_names(path: Path) -> list[str]:
    """Names in the folder that begin alike and are as long; a large folder is not searched to its end."""
    there = itertools.islice(os.scandir(path.parent), 5000) if path.parent.is_dir() else []
    near = lambda name: name[:1] == path.name[:1] and abs(len(name) - len(path.name)) <= 3
    return sorted(entry.name for entry in there if near(entry.name))[:300]


@cache
def nearby_folders(root: Path) -> tuple[Path, ...]:
    """An image folder, those beside, above and below it."""
    above = [root, *root.absolute().parents[:2]]
    return tuple(
        f
        for a in above
        if a.is_dir()
        for f in [a, *sorted(p for p in a.iterdir() if p.is_dir())[:100]]
    )


def find_image_folder(path: Path, root: Path) -> str:
    """An image folder beside, above or below under which the row's own path leads to a picture."""
    inside = path.relative_to(root.resolve())
    found = next(
        (folder for folder in nearby_folders(root.absolute()) if (folder / inside).is_file()), None
    )
    if found is None:
        return ""
    return str(found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found)


def resolve_image_path(name: str, root: Path, where: str) -> Path:
    """The file a row names, which must lie inside the image folder (D205, D206)."""
    if "://" in name or name.startswith("data:"):
        raise DataError(
            "D205",
            "an image is given as a URL",
            where=where,
            why="data never reaches the network: a row could make the machine call anywhere",
            fix="download the images into a folder and name them by path",
        )
    size = lambda text: len(text.encode(errors="surrogatepass"))
    half = any("\ud800" <= character <= "\udfff" for character in name)
    if (
        "\0" in name
        or half
        or any(size(part) > 255 for part in Path(name).parts)
        or size(name) > 4096
    ):
        raise DataError(
            "D206",
            f"not a file name: {name[:40]!r}, {len(name)} characters",
            where=where,
            why="names are whole characters, at most 255 bytes, and have no null byte",
            fix="correct the row, or name the right column: data.columns.images=COLUMN",
        )
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError) as error:
        raise DataError(
            "D206",
            f'image path leads in circles: "{name}"',
            where=where,
            why=str(error)[:200],
            fix="mend the link",
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

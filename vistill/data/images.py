"""Untrusted image files: limits before decoding, no URLs, no path outside the image folder."""

import base64
import binascii
import contextlib
import itertools
import os
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import xxhash
from PIL import Image

from vistill.data.decoding import (
    IMAGE_STARTS,
    NO_LIMITS,
    PixelLimits,
    decode_image,
    image_refused_error,
    other_format,
)
from vistill.errors import DataError, quote_setting, suggest

MAX_BYTES = 20_000_000

#: The fix for an image that no nearby folder contains.
NO_IMAGE_FIX = "correct the path in the row, or name the folder of the images: data.images=FOLDER"
#: A text in base64 that begins like an encoded image: PNG, JPEG, GIF, WebP, BMP.
BASE64_IMAGE = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk[0-3])[A-Za-z0-9+/\s]{40,}={0,2}")
DATA_URI = re.compile(r"data:(?:image/[\w.+-]+)?(?:;[\w=-]+)*;base64,", re.IGNORECASE)
#: `C:\\images\\a.png`, or a path on a Windows share.
WINDOWS_ROOT = re.compile(r"[A-Za-z]:[\\/]|\\\\")


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
    limits: PixelLimits = NO_LIMITS
    """Pixels of the normalised picture."""
    size: tuple[int, int] | None = field(default=None, compare=False)
    """Width and height of the normalised picture, once it was decoded."""

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
        """Decode the image fully and normalise it."""
        data = self.data()
        if self.digest and file_digest(data) != self.digest:
            raise image_changed_error(f"{self.where} {self.path.name}")
        return self.decode(data)

    def decode(self, data: bytes) -> Image.Image:
        """Decode the file's bytes and normalise the picture (D202)."""
        return decode_image(data, f"{self.where} {self.path.name}", self.limits, self.path)


@dataclass(frozen=True)
class BytesImage:
    """An image stored in the data file itself."""

    content: bytes
    name: str
    limits: PixelLimits = NO_LIMITS
    """Pixels of the normalised picture."""
    size: tuple[int, int] | None = field(default=None, compare=False)
    """Width and height of the normalised picture, once it was decoded."""

    def data(self) -> bytes:
        """The encoded image."""
        if len(self.content) > MAX_BYTES:
            raise image_refused_error(f"larger than {MAX_BYTES:,} bytes", self.name)
        return self.content

    def load(self) -> Image.Image:
        """Decode the image and normalise it."""
        return self.decode(self.data())

    def decode(self, data: bytes) -> Image.Image:
        """Decode bytes of this image and normalise the picture (D202)."""
        return decode_image(data, self.name, self.limits)


def file_digest(data: bytes) -> str:
    """xxh3-128 of an encoded image."""
    return xxhash.xxh3_128(data).hexdigest()


def pixel_digest(image: Image.Image) -> str:
    """xxh3-128 of an image in memory: mode, size, values, and the palette if it has one."""
    values, palette = image.tobytes(), b""
    if image.mode == "P" and values:  # only the used part: files drop the rest
        used = 3 * (max(values) + 1)
        palette = bytes(image.getpalette("RGB") or []).ljust(used, b"\0")[:used]
    return file_digest(f"{image.mode} {image.size} ".encode() + palette + values)


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
        names = similar_names(path)
        same = [name for name in names if name.casefold() == path.name.casefold()]
        hint = f'did you mean "{same[0]}"?' if same else suggest(path.name, names)
    fix = quote_setting("data.images", folder) if folder else NO_IMAGE_FIX
    if path.name.isdigit() and not folder:  # a table of VLMEvalKit
        hint = "a number is no picture; it may be the index of a row that holds the picture"
        fix = "write the picture of that row into this cell, or remove the row"
    return DataError(
        "D201",
        f'image missing: "{path.name}"',
        where=where,
        why=f"looked for {path}   {hint}".rstrip(),
        fix=fix,
    )


def similar_names(path: Path) -> list[str]:
    """Names in the folder with the same first letter and a similar length.

    Looks at the first 5,000 entries of a large folder.
    """

    def is_similar(name: str) -> bool:
        return (
            name[:1].casefold() == path.name[:1].casefold() and abs(len(name) - len(path.name)) <= 3
        )

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
            return shorter_path(folder)
    return ""


def image_bytes(text: str, where: str) -> bytes | None:
    """The image that a text holds: a `data:` URI, or plain base64; None for a file name.

    Raises:
        DataError: D205, a `data:` URI without an image in base64.
    """
    uri = DATA_URI.match(text)
    if uri is None and not BASE64_IMAGE.fullmatch(text.rstrip()):
        return None
    encoded = text[uri.end() :] if uri else text
    try:
        data = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        if uri is None:
            return None  # a file name after all
        raise data_uri_error(str(error), where) from error
    if uri and not (data.startswith(IMAGE_STARTS) or other_format(data)[0]):
        raise data_uri_error("it holds no image of a known format", where)
    return data


def data_uri_error(why: str, where: str) -> DataError:
    """D205 for a `data:` URI that holds no image."""
    return DataError(
        "D205",
        "a row has a data: URI that holds no image",
        where=where,
        why=why,
        fix="write the image in base64 behind `data:image/png;base64,`, or name a file",
    )


def resolve_image_path(name: str, root: Path, where: str, base: Path | None = None) -> Path:
    """Resolve the file that a row names; it must be inside the image folder (D205, D206).

    Args:
        name: absolute, or relative to the image folder; a path that leaves the image folder, or
            leads to no file in it, is read relative to the data file. Either way the file must be
            inside the image folder.
        root: the image folder.
        where: row and column, for messages.
        base: the folder of the data file.
    """
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
    if WINDOWS_ROOT.match(name) and not (root / name).exists():
        raise outside_error(name, root, where, base)
    try:
        path = path_inside(with_slashes(name, root), root, base)
    except (OSError, RuntimeError) as error:
        raise DataError(
            "D206",
            f'image path is a circular link: "{name}"',
            where=where,
            why=str(error)[:200],
            fix="correct the link, or remove the row",
        ) from error
    if path is None:
        raise outside_error(name, root, where, base)
    return path


def path_inside(name: str, root: Path, base: Path | None) -> Path | None:
    """The file that a name leads to from the image folder, else from the folder of the data file.

    None if it is not inside the image folder. Rows can have pictures next to them and in a sister
    folder (`a.png`, `../images/b.png`); an image folder above both holds them.
    """
    inside = str(root.resolve()).rstrip(os.sep) + os.sep
    first: Path | None = None
    for start in (root, base):
        path = None if start is None else (start / name).resolve()
        if path is None or not f"{path}{os.sep}".startswith(inside):
            continue
        if may_be_file(path):
            return path
        first = first or path
    return first


def may_be_file(path: Path) -> bool:
    """Whether there is a file, or a folder that does not let us see it; reading it says which."""
    try:
        return path.is_file()
    except OSError:
        return True


def with_slashes(name: str, root: Path) -> str:
    """A path of Windows with slashes; a name that exists as it is stays."""
    if "\\" not in name or (root / name).exists():
        return name
    return name.replace("\\", "/")


def outside_error(name: str, root: Path, where: str, base: Path | None) -> DataError:
    """D206 with the folder that holds the image folder and the file, if the file exists."""
    if WINDOWS_ROOT.match(name):
        fix = "write the paths with slashes, relative to the image folder (data.images)"
        why = "it is an absolute path of a Windows machine"
    else:
        path = ((base or root) / name).resolve()
        common = Path(os.path.commonpath([root.resolve(), path]))
        folder = common if len(common.parts) > 2 else path.parent
        fix = "correct the path in the row, or remove the row"
        if path.is_file() and len(folder.parts) > 2:
            fix = quote_setting("data.images", shorter_path(folder))
        elif path.is_file():
            fix = "put all images below one folder, and write the paths relative to it"
        why = f"an image must be inside the image folder, {root}"
    return DataError(
        "D206", f'image path leaves the image folder: "{name}"', where=where, why=why, fix=fix
    )


def shorter_path(folder: Path) -> str:
    """A folder relative to the current one, where it is below it."""
    here = Path.cwd()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)


def has_surrogate(text: str) -> bool:
    """Whether a text contains half a character (a lone surrogate)."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def is_legal_file_name(name: str) -> bool:
    """Whether a file system can hold the name: no null byte, no lone surrogate, not too long."""

    def size(text: str) -> int:
        return len(text.encode(errors="surrogatepass"))

    if "\0" in name or has_surrogate(name):
        return False
    if name.isascii() and len(name) <= 255:
        return True
    return size(name) <= 4096 and all(size(part) <= 255 for part in Path(name).parts)


def joined_bytes(value: object) -> object:
    """An encoded image that is stored as a list of its bytes; anything else as it is."""
    if not isinstance(value, list) or len(value) < 16 or not isinstance(value[0], int):
        return value
    is_image = all(isinstance(byte, int) and 0 <= byte <= 255 for byte in value)
    return bytes(value) if is_image else value

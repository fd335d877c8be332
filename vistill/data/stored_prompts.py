"""The prompts of `vistill.distill`, stored in the run folder so that other commands can read them.

A prompt is one JSON line with its id, because ids key the sampling noise. An image file is stored
as path and hash; an image in memory is stored as a PNG, which is lossless.
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from vistill.data.decoding import PixelLimits, image_refused_error, normalise, to_rgb
from vistill.data.images import (
    BytesImage,
    FileImage,
    file_digest,
    image_changed_error,
    pixel_digest,
)
from vistill.data.known_pictures import KnownPictures
from vistill.data.rows import content_hash, with_hashes
from vistill.errors import DataError
from vistill.runs.storage import append_line, disk_error, sync_file, write_text
from vistill.types import ImageRef, LoadedImage, Prompt

#: Prefix of stored prompts in a recipe: `data.train: prompts:runs/mine/data/train.jsonl`.
PREFIX = "prompts:"


def with_content_hashes(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Add content hashes and make the images storable; ids stay.

    Raises:
        DataError: D102 if two prompts have one id: ids key the noise and the encoded prompts.
    """
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise DataError(
                "D102",
                f'two prompts have the id "{prompt.id}"',
                why="ids key the sampling noise and the encoded prompts",
                fix="vistill.Prompt(ID, ...)   with another id for each prompt",
            )
        seen.add(prompt.id)
    pictures = KnownPictures("prompts that are passed in")

    def hashed(prompt: Prompt) -> Prompt:
        if has_current_hashes(prompt):
            return prompt
        return with_hashes(with_storable_images(prompt), pictures=pictures)

    try:
        return [hashed(prompt) for prompt in prompts]
    finally:
        pictures.cache.save()


def has_current_hashes(prompt: Prompt) -> bool:
    """Whether the prompt has hashes and they match its content. Reads and decodes no file."""
    if not prompt.content:
        return False
    digests = [current_digest(image) for image in (*prompt.images, *prompt.thoughts)]
    return all(digests) and prompt.content == content_hash(prompt, digests)


def current_digest(image: ImageRef) -> str:
    """The hash of an image as `with_hashes` computes it; empty for a file not read yet."""
    if isinstance(image, FileImage | PngImage):
        return image.digest
    return (
        file_digest(image.data()) if isinstance(image, BytesImage) else pixel_digest(image.load())
    )


def with_storable_images(prompt: Prompt) -> Prompt:
    """Normalise the images in memory: RGB, which PNG stores without loss."""
    where = str(prompt.labels.get("row", prompt.id))

    def convert(image: ImageRef) -> ImageRef:
        if isinstance(image, FileImage | BytesImage):
            return image
        pixels = image.load()
        picture = normalise(pixels, where)
        return image if picture is pixels else LoadedImage(picture, image.name)

    parts = tuple(part if isinstance(part, str) else convert(part) for part in prompt.parts)
    return replace(prompt, parts=parts, thoughts=tuple(convert(image) for image in prompt.thoughts))


def write_prompts(prompts: Sequence[Prompt], file: Path) -> None:
    """Write prompts to a JSON Lines file, images in memory to the folder `images` next to it."""
    file.unlink(missing_ok=True)
    write_text(file, "")
    for prompt in prompts:
        append_line(file, prompt_to_row(prompt, file.parent / "images"), exact=True)
    sync_file(file)


def prompt_to_row(prompt: Prompt, images: Path) -> dict[str, Any]:
    """Convert a prompt to JSON values; store its images in memory."""
    return {
        "id": prompt.id,
        "content": prompt.content,
        "parts": [
            part if isinstance(part, str) else store_image(part, images) for part in prompt.parts
        ],
        "thoughts": [store_image(image, images) for image in prompt.thoughts],
        "answer": prompt.answer,
        "choices": list(prompt.choices),
        "response": prompt.response,
        "boxes": [list(box) for box in prompt.boxes],
        "system": prompt.system,
        "labels": prompt.labels,
    }


def limits_of(image: FileImage | BytesImage) -> dict[str, int]:
    """The pixel limits of an image, where it has some."""
    return {name: limit for name, limit in vars(image.limits).items() if limit is not None}


def store_image(image: ImageRef, images: Path) -> dict[str, Any]:
    """Return where to read an image again: its file, or one that this call writes."""
    if isinstance(image, FileImage):
        paths = {"file": str(image.path.absolute()), "root": str(image.root.absolute())}
        return {**paths, "digest": image.digest, "where": image.where, **limits_of(image)}
    try:
        images.mkdir(parents=True, exist_ok=True)
        if isinstance(image, BytesImage):
            path = images / file_digest(image.data())
            write_if_missing(path, image.data)
            return {"bytes": path.name, "name": image.name, **limits_of(image)}
        pixels = image.load()
        path = images / f"{pixel_digest(pixels)}.png"
        write_if_missing(path, lambda: encode_png(pixels))
        return {"png": path.name, "name": image.name}
    except OSError as error:
        raise disk_error(images, error) from error


def encode_png(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def write_if_missing(path: Path, content: Callable[[], bytes]) -> None:
    """Write a file named after its content, unless it exists; atomically."""
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content())
    sync_file(temporary)
    temporary.replace(path)


def read_prompts(source: str) -> list[Prompt]:
    """Read stored prompts (D102 if the file is missing, damaged or changed)."""
    file = Path(source.removeprefix(PREFIX))
    try:
        # not splitlines: JSON texts may contain other line separators
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        return [prompt_from_row(json.loads(line), file.parent / "images") for line in lines if line]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "D102",
            f'stored prompts "{file}" cannot be read',
            why=f"{type(error).__name__}: {error}"[:200],
            fix="restore the data of the run folder, or name another source: data.train=FILE.jsonl",
        ) from error


def prompt_from_row(row: dict[str, Any], images: Path) -> Prompt:
    """Make a prompt from its stored row (ValueError if its hash does not match)."""
    prompt = Prompt(
        id=row["id"],
        parts=tuple(
            part if isinstance(part, str) else open_stored_image(part, images)
            for part in row["parts"]
        ),
        answer=tuple(row["answer"]) if isinstance(row["answer"], list) else row["answer"],
        choices=tuple(row["choices"]),
        response=row["response"],
        thoughts=tuple(open_stored_image(image, images) for image in row["thoughts"]),
        boxes=tuple((box[0], box[1], box[2], box[3]) for box in row["boxes"]),
        system=row["system"],
        labels=dict(row["labels"]),
        content=row["content"],
    )
    if not has_current_hashes(prompt):
        raise ValueError(f"the prompt {prompt.id!r} changed after it was stored")
    return prompt


def open_stored_image(entry: dict[str, Any], images: Path) -> ImageRef:
    """A stored image, decoded on demand."""
    limits = PixelLimits(entry.get("min_pixels"), entry.get("max_pixels"))
    if "file" in entry:
        # without a hash, an untrusted run folder could show any image of this machine
        if not entry["digest"]:
            raise ValueError(f"no hash of {entry['file']!r}")
        path, root = Path(entry["file"]), Path(entry["root"])
        return FileImage(path, entry["where"], root, entry["digest"], limits)
    name = entry.get("bytes") or entry["png"]
    if Path(name).name != name:
        raise ValueError(f"{name!r} leaves the image folder")
    if "bytes" in entry:
        return FileImage(images / name, entry["name"], images, name, limits)
    return PngImage(images / name, entry["name"])


class PngImage:
    """An image that vistill wrote as PNG, normalised; earlier versions wrote other modes too."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    @property
    def digest(self) -> str:
        """Hash of its pixels, which is the name of the file."""
        return self.path.stem

    def load(self) -> Image.Image:
        """Load the image (D202 if it cannot be read, D208 if it changed)."""
        try:
            with Image.open(self.path, formats=("PNG",)) as file:
                pixels = file.copy()
        except (OSError, ValueError, SyntaxError) as error:
            raise image_refused_error(str(error), f"{self.name} {self.path}") from error
        if pixel_digest(pixels) != self.digest:
            raise image_changed_error(f"{self.name} {self.path}")
        return to_rgb(pixels, self.name)

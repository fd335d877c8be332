"""Prompts as the run folder keeps them: what `vistill.distill` was given, so that the run can be read again.

A prompt is one JSON line with its own id, because ids key the sampling noise. A picture that lies in a file is named
by its path and hash; a picture that exists only in memory is written as PNG, which loses nothing.
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from vistill.data.images import (
    BytesImage,
    FileImage,
    file_digest,
    flatten_on_white,
    image_changed_error,
    image_refused_error,
    pixel_digest,
)
from vistill.data.rows import content_hash, with_hashes
from vistill.errors import DataError
from vistill.runs.storage import append_line, disk_error, sync_file, write_text
from vistill.types import ImageRef, LoadedImage, Prompt

#: How a recipe names stored prompts: `data.train: prompts:runs/mine/data/train.jsonl`.
PREFIX = "prompts:"
#: Modes that PNG holds without loss. Pictures of other modes are made RGB before anything reads them.
PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


def with_content_hashes(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts whose content hashes are known and whose pictures can be stored, ids as they are.

    Raises:
        DataError: D102 where two prompts have the same id: ids key the noise and the encoded prompts.
    """
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise DataError(
                "D102",
                f'two prompts have the id "{prompt.id}"',
                why="ids key the sampling noise and what is encoded, so one would be taken for the other",
                fix="vistill.Prompt(id, ...) with an id of its own for each",
            )
        seen.add(prompt.id)
    return [
        prompt if has_current_hashes(prompt) else with_hashes(with_storable_images(prompt))
        for prompt in prompts
    ]


def has_current_hashes(prompt: Prompt) -> bool:
    """Whether the hashes are there and are those of what the prompt holds now; no file is read, nothing decoded."""
    if not prompt.content:
        return False
    digests = [current_digest(image) for image in (*prompt.images, *prompt.thoughts)]
    return all(digests) and prompt.content == content_hash(prompt, digests)


def current_digest(image: ImageRef) -> str:
    """The hash of a picture as `known` takes it; empty for a file that was not read yet."""
    if isinstance(image, FileImage | PngImage):
        return image.digest
    return (
        file_digest(image.data()) if isinstance(image, BytesImage) else pixel_digest(image.load())
    )


def with_storable_images(prompt: Prompt) -> Prompt:
    """The prompt with pictures in memory in a mode that PNG holds."""

    def kept(image: ImageRef) -> ImageRef:
        if isinstance(image, FileImage | BytesImage):
            return image
        picture = image.load()
        plain = flatten_on_white(picture)
        if plain is picture and picture.mode in PNG_MODES:
            return image
        try:
            return LoadedImage(
                plain if plain is not picture else picture.convert("RGB"), image.name
            )
        except ValueError as error:
            raise image_refused_error(str(error), image.name) from error

    parts = tuple(part if isinstance(part, str) else kept(part) for part in prompt.parts)
    return replace(prompt, parts=parts, thoughts=tuple(kept(image) for image in prompt.thoughts))


def write_prompts(prompts: Sequence[Prompt], file: Path) -> None:
    """Write prompts to a JSON Lines file; pictures in memory go into the folder `images` next to it."""
    file.unlink(missing_ok=True)
    write_text(file, "")
    for prompt in prompts:
        append_line(file, prompt_to_row(prompt, file.parent / "images"), exact=True)
    sync_file(file)


def prompt_to_row(prompt: Prompt, images: Path) -> dict[str, Any]:
    """One prompt as plain values."""
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


def store_image(image: ImageRef, images: Path) -> dict[str, str]:
    """Where a picture can be read again: its own file, or one that is written now."""
    if isinstance(image, FileImage):
        place = {"file": str(image.path.absolute()), "root": str(image.root.absolute())}
        return {**place, "digest": image.digest, "where": image.where}
    try:
        images.mkdir(parents=True, exist_ok=True)
        if isinstance(image, BytesImage):
            path = images / file_digest(image.data())
            write_if_missing(path, image.data)
            return {"bytes": path.name, "name": image.name}
        picture = image.load()
        path = images / f"{pixel_digest(picture)}.png"
        write_if_missing(path, lambda: encode_png(picture))
        return {"png": path.name, "name": image.name}
    except OSError as error:
        raise disk_error(images, error) from error


def encode_png(picture: Image.Image) -> bytes:
    """A picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def write_if_missing(path: Path, content: Callable[[], bytes]) -> None:
    """Write a file under the name of its content, whole or not at all."""
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content())
    sync_file(temporary)
    temporary.replace(path)


def read_prompts(source: str) -> list[Prompt]:
    """The prompts of a stored file (D102 where it is gone, damaged or changed)."""
    file = Path(source.removeprefix(PREFIX))
    try:
        # not splitlines: JSON holds other line separators as they are
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        return [prompt_from_row(json.loads(line), file.parent / "images") for line in lines if line]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "D102",
            f'stored prompts "{file}" cannot be read',
            why=f"{type(error).__name__}: {error}"[:200],
            fix="put the run folder's data back, or name another source: data.train=FILE.jsonl",
        ) from error


def prompt_from_row(row: dict[str, Any], images: Path) -> Prompt:
    """A prompt from its line (ValueError where it is not what its own hash says)."""
    prompt = Prompt(
        id=row["id"],
        parts=tuple(
            part if isinstance(part, str) else find_stored_image(part, images)
            for part in row["parts"]
        ),
        answer=row["answer"],
        choices=tuple(row["choices"]),
        response=row["response"],
        thoughts=tuple(find_stored_image(image, images) for image in row["thoughts"]),
        boxes=tuple((box[0], box[1], box[2], box[3]) for box in row["boxes"]),
        system=row["system"],
        labels=dict(row["labels"]),
        content=row["content"],
    )
    if not has_current_hashes(prompt):
        raise ValueError(f"the prompt {prompt.id!r} was changed since it was written")
    return prompt


def find_stored_image(place: dict[str, str], images: Path) -> ImageRef:
    """A stored picture, decoded on demand."""
    if "file" in place:
        if not place[
            "digest"
        ]:  # the hash keeps a stranger's run folder from showing any picture of this machine
            raise ValueError(f"no hash of {place['file']!r}")
        return FileImage(Path(place["file"]), place["where"], Path(place["root"]), place["digest"])
    name = place.get("bytes") or place["png"]
    if Path(name).name != name:
        raise ValueError(f"{name!r} leaves the folder of the pictures")
    if "bytes" in place:
        return FileImage(images / name, place["name"], images, digest=name)
    return PngImage(images / name, place["name"])


class PngImage:
    """A picture that this program wrote itself: read back in the mode it was written in."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    @property
    def digest(self) -> str:
        """Hash of its pixels, after which the file is called."""
        return self.path.stem

    def load(self) -> Image.Image:
        """The picture (D202 where it cannot be read, D208 where it is another)."""
        try:
            with Image.open(self.path, formats=("PNG",)) as stored_picture:
                picture = stored_picture.copy()
        except (OSError, ValueError, SyntaxError) as error:
            raise image_refused_error(str(error), f"{self.name} {self.path}") from error
        if pixel_digest(picture) != self.digest:
            raise image_changed_error(f"{self.name} {self.path}")
        return picture

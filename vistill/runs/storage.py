"""The single place that writes durable files: fsync, rename, hashes, appended lines."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from vistill.errors import StorageError
from vistill.faults import fault
from vistill.outward import MASK, is_secret, masked


def to_json(value: object, indent: int | None = None) -> str:
    """JSON that every reader accepts: no NaN, no infinity (they become null). It holds no secrets either."""
    plain = finite(value)
    return masked(json.dumps(plain, allow_nan=False, ensure_ascii=False, indent=indent, sort_keys=indent is not None))


def finite(value: Any) -> Any:
    """The same value with NaN and infinity replaced by None, and what a key calls a secret by a mask."""
    if isinstance(value, float) and not (value == value and abs(value) != float("inf")):
        return None
    if isinstance(value, dict):
        return {str(k): MASK if is_secret(k, v) else finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value


def sync_folder(folder: Path) -> None:
    """Make renames and new names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    with path.open("rb+") as handle:
        os.fsync(handle.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: temporary name, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as handle:  # half a surrogate pair
            handle.write(masked(text))
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(path, error) from error
    sync_folder(path.parent)


def disk_error(path: Path, error: OSError) -> StorageError:
    """S601 for anything the disk refuses."""
    return StorageError(
        "S601",
        f"cannot write {path.name}: {error.strerror or error}",
        where=str(path.parent),
        why="the disk is full or the folder is not writable; earlier checkpoints are untouched",
        fix="free space and run the same command again, or choose another folder: run=OTHER_FOLDER",
    )


def write_json(path: Path, value: object) -> None:
    """A JSON document, whole or not at all."""
    write_text(path, to_json(value, indent=2) + "\n")


def write_synced(path: Path, text: str) -> None:
    """Write a file and make its content durable; a crash may leave half of it, so readers must look for that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise disk_error(path, error) from error


def append_line(path: Path, record: object) -> None:
    """One JSON line, one write, flushed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as handle:
            handle.write(to_json(record) + "\n")
    except OSError as error:
        raise disk_error(path, error) from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The complete JSON lines of a file; a half-written last line is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as handle:
        for line in handle:
            if not line.endswith("\n"):
                return
            yield json.loads(line)


def cut_lines(path: Path, last_step: int, lost: Path) -> None:
    """Keep the lines of steps up to `last_step`; move later ones to another file, so that no step appears twice."""
    if not path.exists():
        return
    kept, cut = [], []
    for record in read_lines(path):
        (kept if record.get("step", 0) <= last_step else cut).append(record)
    for record in cut:
        append_line(lost, record)
    write_text(path, "".join(to_json(record) + "\n" for record in kept))


def file_hash(path: Path) -> str:
    """xxh3-128 of a file."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def remove_tree(folder: Path) -> None:
    """Delete a folder by renaming it first, so that no half-deleted folder is ever taken for a whole one."""
    trash = folder.with_name(f".trash-{folder.name}-{os.getpid()}")
    folder.rename(trash)
    fault("remove.after_rename")
    shutil.rmtree(trash, ignore_errors=True)

"""The single place that writes durable files: fsync, rename, hashes, appended lines."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from vistill.errors import StorageError
from vistill.faults import fault
from vistill.outward import MASK, is_secret, masked


def to_json(value: object, indent: int | None = None, exact: bool = False) -> str:
    """JSON that every reader accepts: no NaN, no infinity (they become null).

    Secrets in its texts are masked, unless it is exact: state that this program reads again must come back as it was.
    """
    plain = finite(value) if exact else without_secrets(finite(value))
    return json.dumps(plain, allow_nan=False, ensure_ascii=False, indent=indent, sort_keys=indent is not None)


def finite(value: Any) -> Any:
    """The same value with NaN and infinity replaced by None."""
    if isinstance(value, float) and not (value == value and abs(value) != float("inf")):
        return None
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value


def without_secrets(value: Any) -> Any:
    """The same plain value, secrets in its texts masked; numbers and keys stay."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {k: MASK if is_secret(k, v) else without_secrets(v) for k, v in value.items()}
    return [without_secrets(v) for v in value] if isinstance(value, list) else value


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as handle:  # half a surrogate pair
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
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


def write_json(path: Path, value: object, exact: bool = False) -> None:
    """A JSON document, whole or not at all."""
    write_text(path, to_json(value, indent=2, exact=exact) + "\n")


def write_synced(path: Path, text: str) -> None:
    """Write a file and make it durable; a crash may leave half of it, so readers must look for that."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        sync_folder(path.parent)
    except OSError as error:
        raise disk_error(path, error) from error


def append_line(path: Path, record: object, exact: bool = False) -> None:
    """One JSON line, one write, flushed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="backslashreplace") as handle:
            handle.write(to_json(record, exact=exact) + "\n")
    except OSError as error:
        raise disk_error(path, error) from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The complete JSON lines of a file; a half-written last line is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, 1):
            if not line.endswith("\n"):
                return
            try:
                record = json.loads(line)
            except ValueError as error:
                raise StorageError(
                    "S605",
                    f"line {number} of {path.name} cannot be read",
                    where=str(path.parent),
                    why=f"it was changed since it was written: {error}",
                    fix=f"take the line out of {path}",
                ) from error
            yield record


def cut_lines(path: Path, keep: Callable[[dict[str, Any]], bool], lost: Path) -> None:
    """Keep some lines, move the others to another file; half a last line is dropped."""
    if not path.exists():
        return
    kept, cut = [], []
    for record in read_lines(path):
        (kept if keep(record) else cut).append(record)
    for record in cut:
        append_line(lost, record, exact=True)
    write_text(path, "".join(to_json(record, exact=True) + "\n" for record in kept))


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

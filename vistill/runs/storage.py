"""The single place that writes durable files: fsync, rename, hashes, appended lines."""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from vistill.errors import NonFiniteError, StorageError
from vistill.faults import fault
from vistill.redaction import MASK, Secrets, is_secret, mask_secrets, secrets_in_environment


def to_json(value: object, indent: int | None = None, exact: bool = False) -> str:
    """JSON that every reader accepts: no NaN, no infinity (they become null), secrets in its texts masked.

    Where it is exact, this program reads it again and it must come back as it was: nothing is masked, and a number that
    is not finite is an error (N702).
    """
    if exact:
        check_finite(value)
    plain = (
        replace_nonfinite(value)
        if exact
        else without_secrets(replace_nonfinite(value), secrets_in_environment())
    )
    return json.dumps(
        plain, allow_nan=False, ensure_ascii=False, indent=indent, sort_keys=indent is not None
    )


def check_finite(value: Any, name: str = "") -> None:
    """N702 where NaN or infinity would be read back as nothing."""
    if isinstance(value, float) and not math.isfinite(value):
        raise NonFiniteError(
            "N702",
            f"{name.removeprefix('.') or 'a value'} is {value} and cannot be saved",
            why="what is saved is read again, and a run that goes on with such a number never becomes finite again",
            fix="train.lr=1e-7 --accept train.lr   or in a new run: train.precision=fp32 run=NEW",
            note="nothing was overwritten; the same command goes on from the newest checkpoint",
        )
    if isinstance(value, Mapping):
        for key, part in value.items():
            check_finite(part, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            check_finite(part, f"{name}[{index}]")


def replace_nonfinite(value: Any) -> Any:
    """The same value with NaN and infinity replaced by None."""
    if isinstance(value, float) and not (value == value and abs(value) != float("inf")):
        return None
    if isinstance(value, dict):
        return {str(k): replace_nonfinite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_nonfinite(v) for v in value]
    return value


def without_secrets(value: Any, secrets: Secrets) -> Any:
    """The same plain value, secrets in its texts masked; numbers and keys stay."""
    if isinstance(value, str):
        return mask_secrets(value, secrets)
    if isinstance(value, dict):
        return {
            k: MASK if is_secret(k, v) else without_secrets(v, secrets) for k, v in value.items()
        }
    return [without_secrets(v, secrets) for v in value] if isinstance(value, list) else value


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
        with temporary.open(
            "w", encoding="utf-8", errors="backslashreplace"
        ) as handle:  # half a surrogate pair
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
    """The complete JSON lines of a file; a half-written last line is left out (S605 for another that is no record)."""
    if not path.exists():
        return
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError(f"a record is expected, not {type(record).__name__}")
            except ValueError as error:
                raise StorageError(
                    "S605",
                    f"line {number} of {path.name} cannot be read",
                    where=str(path.parent),
                    why=f"it was changed since it was written: {error}",
                    fix=f"take the line out of {path}",
                ) from error
            yield record


def read_json(path: Path, **fields: type | set[str]) -> dict[str, Any]:
    """A JSON document that this program wrote (S606 where it is none).

    Args:
        path: of the file.
        fields: what it must hold at least: a type, or the exact keys of an object.
    """
    try:
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict):
            raise ValueError(f"an object is expected, not {type(record).__name__}")
        for name, kind in fields.items():
            value = record.get(name)
            exact = isinstance(kind, set) and isinstance(value, dict) and set(value) == kind
            if not exact and not (isinstance(kind, type) and isinstance(value, kind)):
                raise ValueError(f"{name} is missing or not as it was written")
    except (OSError, ValueError) as error:
        raise damaged_file_error(path, str(error)) from error
    return record


def damaged_file_error(path: Path, why: str) -> StorageError:
    """S606."""
    return StorageError(
        "S606",
        f"{path.name} cannot be read",
        where=str(path.parent),
        why=f"it was changed since it was written: {why}",
        fix=f"restore {path} from a backup, or start a new run: run={path.parent}-2",
    )


def move_lines(path: Path, keep: Callable[[dict[str, Any]], bool], lost: Path) -> None:
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
    trash = folder
    if not folder.name.startswith(".trash-"):
        trash = folder.with_name(f".trash-{folder.name}-{os.getpid()}")
        folder.rename(trash)
        fault("remove.after_rename")
    if (
        trash.is_symlink()
    ):  # a checkpoint that was moved to another disk and linked: what it points to stays
        trash.unlink()
    else:
        shutil.rmtree(trash, ignore_errors=True)

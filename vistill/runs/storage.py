"""Write and read the files of a run folder: fsync, rename, hashes, appended lines."""

import contextlib
import json
import math
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from vistill.errors import NonFiniteError, StorageError
from vistill.faults import fault
from vistill.redaction import MASK, Secrets, is_secret, mask_secrets, secrets_in_environment
from vistill.runs.recipe_changes import in_new_folder


def to_json(value: object, indent: int | None = None, exact: bool = False) -> str:
    """Convert to JSON that every reader accepts: NaN and infinity become null, secrets are masked.

    `exact` is for files that vistill reads again: nothing is masked, and a number that is not
    finite is an error (N702).
    """
    if exact:
        check_finite(value)
    values = replace_nonfinite(value)
    if not exact:
        values = without_secrets(values, secrets_in_environment())
    return json.dumps(
        values, allow_nan=False, ensure_ascii=False, indent=indent, sort_keys=indent is not None
    )


def check_finite(value: Any, name: str = "") -> None:
    """N702 if the value contains NaN or infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        raise NonFiniteError(
            "N702",
            f"{name.removeprefix('.') or 'a value'} is {value} and cannot be saved",
            why="a run that resumes with such a number never becomes finite again",
            fix="train.lr=SMALLER --accept train.lr   or in a new run:   train.lr=SMALLER run=NEW",
            note="nothing was overwritten; the same command resumes from the newest checkpoint",
        )
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_finite(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            check_finite(item, f"{name}[{index}]")


def replace_nonfinite(value: Any) -> Any:
    """Replace NaN and infinity by None, and tuples by lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): replace_nonfinite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_nonfinite(v) for v in value]
    return value


def without_secrets(value: Any, secrets: Secrets) -> Any:
    """Mask the secrets in the texts of a JSON value; numbers and keys stay."""
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
    """Make the content of a file durable."""
    with path.open("rb+") as handle:
        os.fsync(handle.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # backslashreplace: texts may contain lone surrogates
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as handle:
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
    """S601 for any error of the disk."""
    return StorageError(
        "S601",
        f"cannot write {path.name}: {error.strerror or error}",
        where=str(path.parent),
        why="the disk is full or the folder is not writable; earlier checkpoints are untouched",
        fix="free space and run the same command again, or choose another folder: run=OTHER_FOLDER",
    )


def write_json(path: Path, value: object, exact: bool = False) -> None:
    """Write a JSON document atomically."""
    write_text(path, to_json(value, indent=2, exact=exact) + "\n")


def write_synced(path: Path, text: str) -> None:
    """Write a file and make it durable. A crash may leave half of it; readers must detect that."""
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
    """Append one JSON line in one write."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="backslashreplace") as handle:
            handle.write(to_json(record, exact=exact) + "\n")
    except OSError as error:
        raise disk_error(path, error) from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read the complete JSON lines of a file and ignore a half-written last line.

    Raises:
        StorageError: S605, another line is not a record.
    """
    if not path.exists():
        return
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError(f"expected a record, not {type(record).__name__}")
            except ValueError as error:
                raise StorageError(
                    "S605",
                    f"line {number} of {path.name} cannot be read",
                    where=str(path.parent),
                    why=f"it changed after it was written: {error}",
                    fix=f"remove the line from {shlex.quote(str(path))}",
                ) from error
            yield record


def read_json(path: Path, **fields: type | set[str]) -> dict[str, Any]:
    """Read a JSON document that vistill wrote (S606 if it is damaged).

    Args:
        path: of the file.
        fields: required fields, each with a type or the exact keys of an object.
    """
    try:
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict):
            raise ValueError(f"expected an object, not {type(record).__name__}")
        for name, kind in fields.items():
            value = record.get(name)
            has_keys = isinstance(kind, set) and isinstance(value, dict) and set(value) == kind
            if not has_keys and not (isinstance(kind, type) and isinstance(value, kind)):
                raise ValueError(f"{name} is missing or has another type")
    except (OSError, ValueError) as error:
        raise damaged_file_error(path, str(error)) from error
    return record


def damaged_file_error(path: Path, why: str) -> StorageError:
    """S606."""
    return StorageError(
        "S606",
        f"{path.name} cannot be read",
        where=str(path.parent),
        why=f"it changed after it was written: {why}",
        fix=f"restore {shlex.quote(str(path))} from a backup, or start a new run:   "
        + in_new_folder(path.parent),
    )


def move_lines(path: Path, keep: Callable[[dict[str, Any]], bool], lost: Path) -> None:
    """Keep some lines and move the others to another file; drop a half-written last line."""
    if not path.exists():
        return
    to_keep, to_move = [], []
    for record in read_lines(path):
        (to_keep if keep(record) else to_move).append(record)
    for record in to_move:
        append_line(lost, record, exact=True)
    write_text(path, "".join(to_json(record, exact=True) + "\n" for record in to_keep))


def file_hash(path: Path) -> str:
    """xxh3-128 of a file."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def remove_tree(folder: Path) -> None:
    """Rename a folder, then delete it, so that no half-deleted folder counts as complete."""
    trash = folder
    if not folder.name.startswith(".trash-"):
        trash = folder.with_name(f".trash-{folder.name}-{os.getpid()}")
        folder.rename(trash)
        fault("remove.after_rename")
    if trash.is_symlink():  # a checkpoint moved to another disk and linked: its target stays
        trash.unlink()
    else:
        shutil.rmtree(trash, ignore_errors=True)


def free_space(path: Path) -> int:
    """Free bytes on the disk of a path, which may not exist yet."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free

"""What a start found out about pictures and prompts, kept for the next start.

An entry is found by a hash of everything that decides it. A file names the rule of its entries, so
another version of vistill, of a library or of a setting reads another file. Nothing in a file is a
path or a text of the data. A file that is damaged or that cannot be read counts as empty.

The folder is `VISTILL_CACHE`, else `vistill` in the user's cache folder (`XDG_CACHE_HOME`, else
`~/.cache`). `VISTILL_CACHE=off` keeps nothing.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import xxhash

from vistill.phases import send_record

#: The environment variable that names the folder, or turns the cache off.
VARIABLE = "VISTILL_CACHE"
FORMAT = 1
#: Files that no start has used for so many days are removed.
KEPT_DAYS = 90
#: A file of more bytes is not read, and starts again empty.
MAX_BYTES = 1 << 30
SECONDS_PER_DAY = 86_400

Entries = dict[str, list[Any]]


def hash_text(*parts: object) -> str:
    """xxh3-128 of texts, each with its length, so that no two lists of texts are one."""
    texts = [str(part) for part in parts]
    joined = "".join(f"{len(text)}:{text}" for text in texts)
    return xxhash.xxh3_128(joined.encode(errors="surrogatepass")).hexdigest()


@cache
def source_hash(*names: str) -> str:
    """A hash of source files of this package, which is the version of a rule they define.

    Args:
        names: files or folders below `vistill/`; of a folder all modules count.
    """
    root = Path(__file__).parent.parent
    files = [file for name in names for file in sorted([root / name, *root.glob(f"{name}/*.py")])]
    return hash_text(*(file.read_bytes() for file in files if file.is_file()))


def cache_folder() -> Path | None:
    """The folder of all files, or None if nothing is kept."""
    named = os.environ.get(VARIABLE, "")
    if named.lower() in ("off", "0", "false", "no"):
        return None
    if named:
        return Path(named)
    user = os.environ.get("XDG_CACHE_HOME", "")
    if user and Path(user).is_absolute():
        return Path(user) / "vistill"
    try:
        return Path.home() / ".cache" / "vistill"
    except RuntimeError:  # no home folder
        return None


class StartCache:
    """The entries of one kind under one rule, in one file.

    Several runs may use a file at once: it is replaced as a whole, after the entries that another
    run has written in between are taken over.

    Args:
        kind: the first part of the file's name.
        rule: everything that holds for all entries, versions included. None keeps nothing.
    """

    def __init__(self, kind: str, rule: Iterable[object] | None) -> None:
        folder = None if rule is None else cache_folder()
        self.path: Path | None = None
        self.entries: Entries = {}
        self.is_changed = False
        if folder is not None and rule is not None:
            self.path = folder / f"{kind}-{hash_text(FORMAT, *rule)}.json"
            self.entries = read_entries(self.path)

    def get(self, key: str, *kinds: type) -> list[Any] | None:
        """The values of an entry, or None if there is none of these types."""
        values = self.entries.get(key)
        if values is None or [type(value) for value in values] != list(kinds):
            return None
        return values

    def put(self, key: str, *values: int | str | bool) -> None:
        """Add an entry."""
        self.entries[key] = list(values)
        self.is_changed = True

    def save(self) -> None:
        """Write new entries. If that is not possible, say so: the next start takes longer."""
        if self.path is None or not self.is_changed:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.entries = read_entries(self.path) | self.entries
            write_entries(self.path, self.entries)
            remove_unused(self.path.parent)
            self.is_changed = False
        except OSError as error:
            send_record(
                {
                    "event": f"note: {self.path.parent} cannot be written ({error.strerror}), so"
                    " the next start checks every picture again"
                }
            )


def read_entries(path: Path) -> Entries:
    """The entries of a file; none if it is missing, damaged or too large."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return {}
        head, _, body = path.read_bytes().partition(b"\n")
        if head.decode() != xxhash.xxh3_128(body).hexdigest():
            return {}
        entries = json.loads(body)
        if time.time() - path.stat().st_mtime > SECONDS_PER_DAY:
            os.utime(path)  # it is used: see `remove_unused`
    except (OSError, ValueError):
        return {}
    is_sound = isinstance(entries, dict) and all(isinstance(v, list) for v in entries.values())
    return entries if is_sound else {}


def write_entries(path: Path, entries: Entries) -> None:
    """Replace a file at once. A crash leaves the old one, or one whose hash does not fit."""
    body = json.dumps(entries, separators=(",", ":")).encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(xxhash.xxh3_128(body).hexdigest().encode() + b"\n" + body)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unused(folder: Path) -> None:
    """Remove the files that no start has read or written for a long time."""
    oldest = time.time() - KEPT_DAYS * SECONDS_PER_DAY
    for pattern in ("*-*.json", ".*-*.json.*.tmp"):
        for file in folder.glob(pattern):
            with contextlib.suppress(OSError):
                if file.stat().st_mtime < oldest:
                    file.unlink(missing_ok=True)

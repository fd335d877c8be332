"""Every folder that a power cut can leave: each prefix of the writes, with each legal loss.

A run is recorded operation by operation. Files are detected by comparing the folder between calls,
so writes from outside Python count too. The disk is modelled as inodes: a file has durable content
(since its last fsync) and unsynced content; a folder has durable entries (since its fsync) and
pending changes. After each operation, each pending change of an entry may be lost on its own, and
each unsynced file may have its old content, its new content, or half of the new one.
"""

import contextlib
import itertools
import os
import random
import threading
from dataclasses import dataclass, field
from pathlib import Path


def one_at_a_time(lock, function):
    """The function under a lock: checkpoints are written in a thread."""

    def call(*args, **more):
        with lock:
            return function(*args, **more)

    return call


@dataclass
class Operation:
    """One operation below the root."""

    kind: str
    path: str
    other: str = ""
    content: bytes = b""


class Recorder:
    """Watches a folder while something writes into it."""

    def __init__(self, root: Path) -> None:
        self.root, self.operations = root, []
        self.lock = threading.RLock()
        self.known: dict[str, tuple[int, int, int]] = {}
        self.names: dict[int, str] = {}

    def below(self, path) -> str | None:
        """The path relative to the root; None if it is outside."""
        if isinstance(path, int):
            path = Path(f"/proc/self/fd/{path}").readlink()
        full = Path(os.fspath(path)).absolute()
        return str(full.relative_to(self.root)) if full.is_relative_to(self.root) else None

    def record_changes(self) -> None:
        """Record files and folders that appeared or changed since the last call."""
        for folder, folders, files in sorted(os.walk(self.root)):
            parent = Path(folder)
            for name in sorted(folders):
                key = str((parent / name).relative_to(self.root))
                if key not in self.known:
                    self.known[key] = (0, 0, 0)
                    self.operations.append(Operation("mkdir", key))
            for name in sorted(files):
                file = parent / name
                key = str(file.relative_to(self.root))
                with contextlib.suppress(FileNotFoundError):
                    stat = file.stat()
                    mark = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
                    if self.known.get(key) != mark:
                        self.known[key] = mark
                        self.operations.append(Operation("write", key, content=file.read_bytes()))

    def rename_known(self, source: str, target: str) -> None:
        """Apply a rename to the known paths."""
        for key in [k for k in self.known if k == source or k.startswith(source + "/")]:
            self.known[target + key[len(source) :]] = self.known.pop(key)

    @contextlib.contextmanager
    def watching(self):
        """Record operations inside the context."""
        original = {
            name: getattr(os, name)
            for name in ("fsync", "rename", "replace", "unlink", "remove", "rmdir", "mkdir")
        }

        def fsync(fd):
            self.record_changes()
            original["fsync"](fd)
            path = self.below(fd)
            if path is not None:
                self.operations.append(
                    Operation("syncdir" if (self.root / path).is_dir() else "sync", path)
                )

        def rename(source, target, **more):
            self.record_changes()
            before, after = self.below(source), self.below(target)
            original["rename"](source, target, **more)
            if before is not None:
                self.rename_known(before, after)
                self.operations.append(Operation("rename", before, after))

        def record_removal(name):
            def remove(path, *args, dir_fd=None, **more):
                self.record_changes()
                where = (
                    path
                    if dir_fd is None
                    else Path(f"/proc/self/fd/{dir_fd}").readlink() / os.fspath(path)
                )
                key = self.below(where)
                original[name](path, *args, dir_fd=dir_fd, **more)
                if key is not None:
                    self.known.pop(key, None)
                    self.operations.append(Operation("remove", key))

            return remove

        def mkdir(path, *args, **more):
            self.record_changes()
            original["mkdir"](path, *args, **more)
            self.record_changes()

        patched = {"fsync": fsync, "rename": rename, "replace": rename, "mkdir": mkdir}
        patched |= {name: record_removal(name) for name in ("unlink", "remove", "rmdir")}
        for name, function in patched.items():
            setattr(os, name, one_at_a_time(self.lock, function))
        try:
            yield self
        finally:
            for name, function in original.items():
                setattr(os, name, function)
            self.record_changes()


@dataclass
class Inode:
    """A file or a folder."""

    folder: bool = False
    content: bytes = b""
    durable: bytes | None = None
    entries: dict[str, "Inode"] = field(default_factory=dict)
    """Durable entries."""
    pending: list[tuple[str, "Inode | None"]] = field(default_factory=list)
    """Changes since the last fsync of the folder: name and its new inode."""

    def now(self) -> dict[str, "Inode"]:
        """Entries as a running process sees them, renames included."""
        return apply_changes(self.entries, expand_renames(self.pending))


def apply_changes(entries, changes):
    """Entries after some changes."""
    result = dict(entries)
    for name, inode in changes:
        if inode is None:
            result.pop(name, None)
        else:
            result[name] = inode
    return result


class Disk:
    """A disk with durable and pending state."""

    def __init__(self) -> None:
        self.root = Inode(folder=True)

    def find(self, path: str) -> Inode:
        """The inode of a path, as a running process sees it."""
        inode = self.root
        for part in Path(path).parts:
            inode = inode.now()[part]
        return inode

    def parent(self, path: str) -> tuple[Inode, str]:
        """The parent folder of a path, and its name there."""
        return self.find(str(Path(path).parent)) if len(Path(path).parts) > 1 else self.root, Path(
            path
        ).name

    def apply(self, op: Operation) -> None:
        """Apply one operation."""
        if op.kind in ("sync", "syncdir"):
            inode = self.root if op.path == "." else self.find(op.path)
            if op.kind == "sync":
                inode.durable = inode.content
            else:
                inode.entries, inode.pending = inode.now(), []
            return
        folder, name = self.parent(op.path)
        if op.kind == "mkdir":
            folder.pending.append((name, Inode(folder=True)))
        elif op.kind == "write":
            inode = folder.now().get(name)
            if inode is None:
                inode = Inode()
                folder.pending.append((name, inode))
            inode.content = op.content
        elif op.kind == "remove":
            folder.pending.append((name, None))
        elif op.kind == "rename":
            target, other = self.parent(op.other)
            assert target is folder, "renames stay inside one folder"
            folder.pending.append((name, None))
            folder.pending.append((other, folder.now().get(name) or folder.entries.get(name)))
            (_, removed), (_, moved) = folder.pending[-2:]
            if moved is None:  # the first change just removed the name: look before it
                moved = apply_changes(folder.entries, folder.pending[:-2]).get(name)
            folder.pending[-2:] = [(f"\0rename\0{name}\0{other}", moved)]
            assert removed is None

    def unsynced(self, inode: Inode | None = None) -> tuple[list[Inode], list[Inode]]:
        """Folders with pending changes, and files whose content is not durable."""
        inode = inode or self.root
        folders = [inode] if inode.pending else []
        files: list[Inode] = []
        reachable = {id(x): x for x in (*inode.now().values(), *inode.entries.values())}
        for child in reachable.values():
            if child.folder:
                more = self.unsynced(child)
                folders += more[0]
                files += more[1]
            elif child.durable != child.content:
                files.append(child)
        return folders, files


def expand_renames(changes):
    """Replace each rename by its two changes."""
    result = []
    for name, inode in changes:
        if name.startswith("\0rename\0"):
            _, _, source, target = name.split("\0")
            result += [(source, None), (target, inode)]
        else:
            result.append((name, inode))
    return result


@dataclass
class Loss:
    """Which pending changes survive, and the content of unsynced files."""

    surviving: dict[int, tuple[int, ...]]
    content: dict[int, bytes | None]


def losses(disk: Disk, rng: random.Random, limit: int):
    """Legal losses: all if they are few; else none, all, each alone, all but each, random ones."""
    folders, files = disk.unsynced()
    folders = list({id(f): f for f in folders}.values())
    files = list({id(f): f for f in files}.values())
    choices = [[True, False] for f in folders for _ in f.pending] + [[0, 1, 2] for _ in files]
    total = 1
    for choice in choices:
        total *= len(choice)
    if total <= limit:
        picks = list(itertools.product(*choices))
    else:
        first, last = tuple(c[0] for c in choices), tuple(c[-1] for c in choices)
        picks = [first, last]
        for i, choice in enumerate(choices):
            picks += [(*first[:i], x, *first[i + 1 :]) for x in choice[1:]]
            picks += [(*last[:i], x, *last[i + 1 :]) for x in choice[:-1]]
        picks += [tuple(rng.choice(c) for c in choices) for _ in range(max(0, limit - len(picks)))]
    for pick in dict.fromkeys(picks):
        at, surviving = 0, {}
        for f in folders:
            surviving[id(f)] = tuple(i for i in range(len(f.pending)) if pick[at + i])
            at += len(f.pending)
        content: dict[int, bytes | None] = {}
        for f in files:
            content[id(f)] = (f.content, f.durable, half_written(f))[pick[at]]
            at += 1
        yield Loss(surviving, content)


def half_written(inode: Inode) -> bytes:
    """Half of the new content: of the appended part if the old content is a prefix, else of all."""
    durable = inode.durable or b""
    start = len(durable) if inode.content.startswith(durable) else 0
    return inode.content[: (start + len(inode.content)) // 2]


def build_folder(inode: Inode, loss: Loss, folder: Path, store: Path) -> None:
    """Write the folder that remains after a loss."""
    folder.mkdir()
    changes = [inode.pending[i] for i in loss.surviving.get(id(inode), range(len(inode.pending)))]
    for name, child in apply_changes(inode.entries, expand_renames(changes)).items():
        if child.folder:
            build_folder(child, loss, folder / name, store)
            continue
        content = loss.content.get(id(child), child.content)
        if not name.endswith(".safetensors"):  # the check may append to logs
            (folder / name).write_bytes(content or b"")
            continue
        blob = store / f"{hash(content or b'')}-{len(content or b'')}"
        if not blob.exists():
            blob.write_bytes(content or b"")
        os.link(blob, folder / name)

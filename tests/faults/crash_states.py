"""Every folder a power cut can leave: all prefixes of what was written, times the legal losses of what was not synced.

A run is recorded operation by operation (files appear by comparing the folder between calls, so writers outside Python
count too). A disk is modelled as inodes: a file has content that is durable since its last fsync and content that is
not; a folder has entries that are durable since its own fsync and changes that are not. After each operation any
unsynced change of an entry may be lost by itself, and any unsynced file may have its old content, its new content, or
half of the new one.
"""

import contextlib
import itertools
import os
import random
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Op:
    """One operation below the root."""

    kind: str
    path: str
    other: str = ""
    content: bytes = b""


class Recorder:
    """Watches a folder while something writes into it."""

    def __init__(self, root: Path) -> None:
        self.root, self.ops = root, []
        self.known: dict[str, tuple[int, int, int]] = {}
        self.names: dict[int, str] = {}

    def below(self, path) -> str | None:
        """The path relative to the root, or None where it lies elsewhere."""
        if isinstance(path, int):
            path = Path(f"/proc/self/fd/{path}").readlink()
        full = Path(os.fspath(path)).absolute()
        return str(full.relative_to(self.root)) if full.is_relative_to(self.root) else None

    def look(self) -> None:
        """Files and folders that appeared or changed since the last look."""
        for folder, folders, files in sorted(os.walk(self.root)):
            place = Path(folder)
            for name in sorted(folders):
                key = str((place / name).relative_to(self.root))
                if key not in self.known:
                    self.known[key] = (0, 0, 0)
                    self.ops.append(Op("mkdir", key))
            for name in sorted(files):
                file = place / name
                key = str(file.relative_to(self.root))
                with contextlib.suppress(FileNotFoundError):
                    stat = file.stat()
                    mark = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
                    if self.known.get(key) != mark:
                        self.known[key] = mark
                        self.ops.append(Op("write", key, content=file.read_bytes()))

    def moved(self, source: str, target: str) -> None:
        """A rename in the list of what is known."""
        for key in [k for k in self.known if k == source or k.startswith(source + "/")]:
            self.known[target + key[len(source) :]] = self.known.pop(key)

    @contextlib.contextmanager
    def watching(self):
        """Inside, operations are recorded."""
        plain = {
            name: getattr(os, name)
            for name in ("fsync", "rename", "replace", "unlink", "remove", "rmdir", "mkdir")
        }

        def fsync(fd):
            self.look()
            plain["fsync"](fd)
            path = self.below(fd)
            if path is not None:
                self.ops.append(Op("syncdir" if (self.root / path).is_dir() else "sync", path))

        def rename(source, target, **more):
            self.look()
            before, after = self.below(source), self.below(target)
            plain["rename"](source, target, **more)
            if before is not None:
                self.moved(before, after)
                self.ops.append(Op("rename", before, after))

        def gone(name):
            def remove(path, *args, dir_fd=None, **more):
                self.look()
                where = (
                    path
                    if dir_fd is None
                    else Path(f"/proc/self/fd/{dir_fd}").readlink() / os.fspath(path)
                )
                key = self.below(where)
                plain[name](path, *args, dir_fd=dir_fd, **more)
                if key is not None:
                    self.known.pop(key, None)
                    self.ops.append(Op("remove", key))

            return remove

        def mkdir(path, *args, **more):
            self.look()
            plain["mkdir"](path, *args, **more)
            self.look()

        patched = {"fsync": fsync, "rename": rename, "replace": rename, "mkdir": mkdir}
        patched |= {name: gone(name) for name in ("unlink", "remove", "rmdir")}
        for name, function in patched.items():
            setattr(os, name, function)
        try:
            yield self
        finally:
            for name, function in plain.items():
                setattr(os, name, function)
            self.look()


@dataclass
class Inode:
    """A file or a folder."""

    folder: bool = False
    content: bytes = b""
    durable: bytes | None = None
    entries: dict[str, "Inode"] = field(default_factory=dict)
    """What is durable."""
    pending: list[tuple[str, "Inode | None"]] = field(default_factory=list)
    """Changes of entries since the last fsync of the folder: name and what it now means."""

    def now(self) -> dict[str, "Inode"]:
        """Entries as a running process sees them."""
        return applied(self.entries, self.pending)


def applied(entries, changes):
    """Entries after some changes."""
    made = dict(entries)
    for name, inode in changes:
        if inode is None:
            made.pop(name, None)
        else:
            made[name] = inode
    return made


class Disk:
    """What would be left after a power cut."""

    def __init__(self) -> None:
        self.root = Inode(folder=True)

    def find(self, path: str) -> Inode:
        """The inode of a path, as a process sees it."""
        inode = self.root
        for part in Path(path).parts:
            inode = inode.now()[part]
        return inode

    def parent(self, path: str) -> tuple[Inode, str]:
        """The folder a path lies in, and its name there."""
        return self.find(str(Path(path).parent)) if len(Path(path).parts) > 1 else self.root, Path(
            path
        ).name

    def do(self, op: Op) -> None:
        """Take one operation."""
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
            (_, gone), (_, moved) = folder.pending[-2:]
            if moved is None:  # the name was removed a moment ago: look before that
                moved = applied(folder.entries, folder.pending[:-2]).get(name)
            folder.pending[-2:] = [(f"\0rename\0{name}\0{other}", moved)]
            assert gone is None

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


def expand(changes):
    """Pending changes with renames as the two they are, taken together."""
    made = []
    for name, inode in changes:
        if name.startswith("\0rename\0"):
            _, _, source, target = name.split("\0")
            made += [(source, None), (target, inode)]
        else:
            made.append((name, inode))
    return made


# `now` must see renames too
Inode.now = lambda self: applied(self.entries, expand(self.pending))  # type: ignore[method-assign]


@dataclass
class Loss:
    """Which pending changes survived, and what unsynced files hold."""

    kept: dict[int, tuple[int, ...]]
    content: dict[int, bytes | None]


def losses(disk: Disk, rng: random.Random, most: int):
    """Legal losses: all of them where they are few; else none, all, each alone, all but each, and random ones."""
    folders, files = disk.unsynced()
    folders = list({id(f): f for f in folders}.values())
    files = list({id(f): f for f in files}.values())
    choices = [[True, False] for f in folders for _ in f.pending] + [[0, 1, 2] for _ in files]
    total = 1
    for choice in choices:
        total *= len(choice)
    if total <= most:
        picks = list(itertools.product(*choices))
    else:
        first, last = tuple(c[0] for c in choices), tuple(c[-1] for c in choices)
        picks = [first, last]
        for i, choice in enumerate(choices):
            picks += [(*first[:i], x, *first[i + 1 :]) for x in choice[1:]]
            picks += [(*last[:i], x, *last[i + 1 :]) for x in choice[:-1]]
        picks += [tuple(rng.choice(c) for c in choices) for _ in range(max(0, most - len(picks)))]
    for pick in dict.fromkeys(picks):
        at, kept = 0, {}
        for f in folders:
            kept[id(f)] = tuple(i for i in range(len(f.pending)) if pick[at + i])
            at += len(f.pending)
        content: dict[int, bytes | None] = {}
        for f in files:
            content[id(f)] = (f.content, f.durable, torn(f))[pick[at]]
            at += 1
        yield Loss(kept, content)


def torn(inode: Inode) -> bytes:
    """Half of what is new: of an appended tail where the durable content is a prefix, else of everything."""
    durable = inode.durable or b""
    start = len(durable) if inode.content.startswith(durable) else 0
    return inode.content[: (start + len(inode.content)) // 2]


def build(inode: Inode, loss: Loss, folder: Path, store: Path) -> None:
    """Lay out the folder that is left."""
    folder.mkdir()
    changes = [inode.pending[i] for i in loss.kept.get(id(inode), range(len(inode.pending)))]
    for name, child in applied(inode.entries, expand(changes)).items():
        if child.folder:
            build(child, loss, folder / name, store)
            continue
        content = loss.content.get(id(child), child.content)
        if not name.endswith(".safetensors"):  # logs may be appended to by whoever looks
            (folder / name).write_bytes(content or b"")
            continue
        place = store / f"{hash(content or b'')}-{len(content or b'')}"
        if not place.exists():
            place.write_bytes(content or b"")
        os.link(place, folder / name)

"""The run folder: names inside it, its lock, and its logs."""

import fcntl
import os
import re
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vistill.errors import StorageError, quote_setting
from vistill.redaction import for_terminal
from vistill.runs.recipe_changes import in_new_folder, unused_folder
from vistill.runs.storage import (
    append_line,
    disk_error,
    move_lines,
    read_lines,
    sync_file,
    sync_folder,
    write_json,
    write_text,
)

#: Names that vistill uses. It neither reads nor removes copies, backups and other files of users.
CHECKPOINT = re.compile(r"checkpoint-([0-9]{6,})")
JOURNAL_ENTRY = re.compile(r"([0-9]{6,})\.json")
ROLLOUTS = re.compile(r"([0-9]{6,})\.jsonl")
TOKENS = re.compile(r"step-([0-9]{6,})\.json")
#: Folders that an interrupted save or removal leaves.
UNFINISHED = r"\.inprogress-[0-9]{6,}-[0-9a-f]{8}"
LEFTOVER = re.compile(rf"{UNFINISHED}|(\.trash-)+(checkpoint-[0-9]{{6,}}|{UNFINISHED})(-[0-9]+)+")

#: Logs that a resume cuts back to the step of its checkpoint.
STEP_LOGS = ("metrics.jsonl", "timing.jsonl", "evaluations.jsonl", "replaced.jsonl")
#: Characters of a name that some file system does not take.
LONGEST_NAME = 200
#: Run folders that this process has locked: process id and path.
LOCKED_HERE: set[tuple[int, str]] = set()


def numbered_paths(folder: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    """The entries of a folder with a numbered name, by ascending number."""
    by_name = {path.name: path for path in folder.iterdir()} if folder.is_dir() else {}
    matches = [match for match in map(pattern.fullmatch, by_name) if match]
    # `0000001` is not a second name for 1
    canonical = [m for m in matches if m[1] == f"{int(m[1]):06d}"]
    return {int(m[1]): by_name[m[0]] for m in sorted(canonical, key=lambda m: int(m[1]))}


def checkpoints_in(path: Path) -> list[Path]:
    """The checkpoints of a run folder by step: folders named exactly `checkpoint-000123`."""
    return [folder for folder in numbered_paths(path, CHECKPOINT).values() if folder.is_dir()]


def checkpoint_step(checkpoint: Path) -> int:
    """The step in the name of a checkpoint folder."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def journal_files(path: Path) -> dict[int, Path]:
    """The entries of a journal by ascending step."""
    return {
        step: file for step, file in numbered_paths(path, JOURNAL_ENTRY).items() if file.is_file()
    }


def leftovers_in(path: Path) -> list[Path]:
    """Folders that an interrupted save or removal left."""
    if not path.is_dir():
        return []
    return [folder for folder in path.iterdir() if LEFTOVER.fullmatch(folder.name)]


@dataclass(frozen=True)
class RunFolder:
    """A folder with `recipe.json`, `run.lock.json`, `metrics.jsonl`, `checkpoint-000300/`, ..."""

    path: Path

    @property
    def metrics(self) -> Path:
        """Reproducible values, one line per step."""
        return self.path / "metrics.jsonl"

    @property
    def timing(self) -> Path:
        """Durations, rates and memory: not reproducible."""
        return self.path / "timing.jsonl"

    @property
    def evaluations(self) -> Path:
        """One line per evaluation."""
        return self.path / "evaluations.jsonl"

    @property
    def lock_file(self) -> Path:
        """Facts of the first start: settings, versions, hashes."""
        return self.path / "run.lock.json"

    @property
    def events(self) -> Path:
        """Starts, resumes, rejected checkpoints and warnings, as text."""
        return self.path / "events.log"

    @property
    def quarantine(self) -> Path:
        """Rows that cannot be used, with place and reason."""
        return self.path / "quarantine.jsonl"

    @property
    def replaced(self) -> Path:
        """Rows that became unusable during training, with place and reason."""
        return self.path / "replaced.jsonl"

    @property
    def journal(self) -> Path:
        """The responses of every step since the oldest retained checkpoint."""
        return self.path / "journal"

    def has_started(self) -> bool:
        """Whether the run has taken a step. A start that failed before fixes no recipe."""
        return self.metrics.exists() or bool(checkpoints_in(self.path))

    def rollouts(self, step: int) -> Path:
        """The file of a step's rollouts with their signals."""
        return self.path / "rollouts" / f"{step:06d}.jsonl"

    def samples(self, name: str) -> Path:
        """The file of an evaluation's per-sample results."""
        return self.path / "samples" / f"{name}.jsonl"

    def rollout_files(self) -> list[Path]:
        """The files of rollouts by ascending step."""
        files = numbered_paths(self.path / "rollouts", ROLLOUTS).values()
        return [file for file in files if file.is_file()]

    def token_files(self) -> list[Path]:
        """The token files of evaluated responses by ascending step."""
        files = numbered_paths(self.path / "tokens", TOKENS).values()
        return [file for file in files if file.is_file()]

    def checkpoint(self, step: int) -> Path:
        """The folder of a published checkpoint."""
        return self.path / f"checkpoint-{step:06d}"

    def event(self, text: str) -> None:
        """Append a line to the event log; secrets and control characters are masked."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self.events.open("a", encoding="utf-8") as handle:
                handle.write(for_terminal(text) + "\n")
        except OSError as error:
            raise disk_error(self.events, error) from error

    def sync_logs(self) -> None:
        """Make the logs durable."""
        for name in (*STEP_LOGS, "events.log"):
            if (self.path / name).exists():
                sync_file(self.path / name)
        sync_folder(self.path)

    def cut_after(self, step: int, replaced: Collection[str] = ()) -> None:
        """Cut the logs back to a checkpoint: later steps, and replaced rows that it does not know.

        Args:
            step: of the checkpoint.
            replaced: ids of the rows that the checkpoint has replaced.
        """

        def is_known_row(record: dict[str, Any]) -> bool:
            return record["id"] in replaced

        def is_earlier_step(record: dict[str, Any]) -> bool:
            return record.get("step", 0) <= step

        for name in STEP_LOGS:
            keep = is_known_row if name == "replaced.jsonl" else is_earlier_step
            move_lines(self.path / name, keep, self.path / name.replace(".jsonl", ".lost.jsonl"))

    def log(self, path: Path, record: dict[str, Any], exact: bool = False) -> None:
        """Append one record; `exact` if vistill reads its texts again."""
        append_line(path, record, exact)

    def read(self, path: Path) -> list[dict[str, Any]]:
        """Read all complete records of a log."""
        return list(read_lines(path))

    def write(self, name: str, text: str) -> None:
        """Write a text file of the folder."""
        write_text(self.path / name, text)

    def write_lock(self, record: dict[str, Any]) -> None:
        """Write the lock file."""
        write_json(self.lock_file, record)

    def check_writable(self) -> None:
        """S601 if the run folder or one of its parents is a file."""
        path = self.path.absolute()
        # of a name that is too long, `os.path.exists` says that it does not exist
        existing = (p for p in (path, *path.parents) if os.path.exists(p))  # noqa: PTH110
        file = next((p for p in existing if not p.is_dir()), None)
        if file is not None:
            raise StorageError(
                "S601",
                f"run={self.path} cannot be a folder: {file.name} is a file",
                where=str(self.path),
                why="a run writes its checkpoints, logs and report into its own folder",
                fix=in_new_folder(file),
            )

    def try_to_write(self) -> None:
        """S601 if the run folder cannot be created or written; leaves nothing behind.

        The folders that are missing are created inside a temporary one, so that a run that starts
        at the same time loses none of its own.
        """
        path = self.path.absolute()
        try:
            parent = next(p for p in (path, *path.parents) if os.path.exists(p))  # noqa: PTH110
            with TemporaryDirectory(prefix=".vistill-", dir=parent) as probe:
                folder = Path(probe, *path.relative_to(parent).parts)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "probe").write_bytes(b"0")
        except OSError as error:
            raise self.unwritable_error(error) from error

    def unwritable_error(self, error: OSError) -> StorageError:
        """S601 for a run folder that cannot be created or written."""
        free = Path("runs") / (self.path.name if len(self.path.name) < LONGEST_NAME else "run")
        return StorageError(
            "S601",
            f"cannot write the run folder: {error.strerror or error}",
            where=f"{self.path!s:.200}",
            why="a run writes its checkpoints, logs and report into its own folder",
            fix=quote_setting("run", unused_folder(str(free)) if free.exists() else free),
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other processes (S602); reentrant within this process."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self.unwritable_error(error) from error
        key = (os.getpid(), str(self.path.resolve()))
        if key in LOCKED_HERE:
            yield
            return
        try:
            handle = (self.path / ".owner").open("a+")
        except OSError as error:
            raise self.unwritable_error(error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            handle.close()
            raise StorageError(
                "S602",
                "another process uses this run folder",
                where=str(self.path),
                why=f"locked by {owner}",
                fix="wait for it or stop it, or choose another folder: run=OTHER_FOLDER",
            ) from error
        handle.truncate(0)
        handle.write(f"pid {os.getpid()} on {socket.gethostname()}, boot {boot_id()}")
        handle.flush()
        LOCKED_HERE.add(key)
        try:
            yield
        finally:
            LOCKED_HERE.discard(key)
            handle.close()


def boot_id() -> str:
    """An id of this boot of the machine; a process id is only meaningful with it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8]
    except OSError:
        return "unknown"

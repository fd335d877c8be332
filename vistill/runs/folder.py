"""Names inside a run folder, its owner, and the logs."""

import fcntl
import os
import re
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistill.errors import StorageError
from vistill.redaction import for_terminal
from vistill.runs.recipe_changes import unused_folder
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

#: Names that count. Copies, backups and other files of people in a run folder are neither read nor removed.
CHECKPOINT = re.compile(r"checkpoint-([0-9]{6,})")
JOURNAL_ENTRY = re.compile(r"([0-9]{6,})\.json")
ROLLOUTS = re.compile(r"([0-9]{6,})\.jsonl")
TOKENS = re.compile(r"step-([0-9]{6,})\.json")
#: What an interrupted save or removal leaves behind.
UNFINISHED = r"\.inprogress-[0-9]{6,}-[0-9a-f]{8}"
LEFTOVER = re.compile(rf"{UNFINISHED}|(\.trash-)+(checkpoint-[0-9]{{6,}}|{UNFINISHED})(-[0-9]+)+")

#: Logs that are cut back to the checkpoint's step on resume.
STEP_LOGS = ("metrics.jsonl", "timing.jsonl", "evaluations.jsonl", "replaced.jsonl")


#: Run folders that this process owns.
LOCKED_HERE: set[tuple[int, str]] = set()


def numbered_paths(folder: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    """What lies in a folder under a numbered name, by number in ascending order; anything else is left out."""
    named = {path.name: path for path in folder.iterdir()} if folder.is_dir() else {}
    matches = [match for match in map(pattern.fullmatch, named) if match]
    as_written = [m for m in matches if m[1] == f"{int(m[1]):06d}"]  # no second name for one number
    return {int(m[1]): named[m[0]] for m in sorted(as_written, key=lambda m: int(m[1]))}


def checkpoints_in(path: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest step first: folders that are called exactly `checkpoint-000123`."""
    return [place for place in numbered_paths(path, CHECKPOINT).values() if place.is_dir()]


def checkpoint_step(checkpoint: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def journal_files(path: Path) -> dict[int, Path]:
    """The entries of a journal by step, oldest first."""
    return {
        step: file for step, file in numbered_paths(path, JOURNAL_ENTRY).items() if file.is_file()
    }


def leftovers_in(path: Path) -> list[Path]:
    """Folders that an interrupted save or removal left behind."""
    return (
        [place for place in path.iterdir() if LEFTOVER.fullmatch(place.name)]
        if path.is_dir()
        else []
    )


@dataclass(frozen=True)
class RunFolder:
    """`recipe.json, run.lock.json, metrics.jsonl, rollouts/, samples/, checkpoint-000300/, report.html`, ..."""

    path: Path

    @property
    def metrics(self) -> Path:
        """Reproducible values, one line a step."""
        return self.path / "metrics.jsonl"

    @property
    def timing(self) -> Path:
        """Durations, rates and memory: outside bit identity."""
        return self.path / "timing.jsonl"

    @property
    def evaluations(self) -> Path:
        """One line an evaluation."""
        return self.path / "evaluations.jsonl"

    @property
    def lock_file(self) -> Path:
        """What was resolved at the first start: versions, hashes, fingerprint."""
        return self.path / "run.lock.json"

    @property
    def events(self) -> Path:
        """Starts, resumes, rejected checkpoints, warnings: for people."""
        return self.path / "events.log"

    @property
    def quarantine(self) -> Path:
        """Rows that could not be used, with place and reason."""
        return self.path / "quarantine.jsonl"

    @property
    def replaced(self) -> Path:
        """Rows that could no longer be used after some step, with place and reason."""
        return self.path / "replaced.jsonl"

    @property
    def journal(self) -> Path:
        """The responses of every step since the oldest of the newest checkpoints."""
        return self.path / "journal"

    def has_started(self) -> bool:
        """Whether a step was ever taken here; a start that failed on bad data binds nobody to its recipe."""
        return self.metrics.exists() or bool(checkpoints_in(self.path))

    def rollouts(self, step: int) -> Path:
        """The rollouts of a step with their signals."""
        return self.path / "rollouts" / f"{step:06d}.jsonl"

    def samples(self, name: str) -> Path:
        """Per-sample results of an evaluation."""
        return self.path / "samples" / f"{name}.jsonl"

    def rollout_files(self) -> list[Path]:
        """The rollouts that were written out, oldest step first."""
        return [
            file
            for file in numbered_paths(self.path / "rollouts", ROLLOUTS).values()
            if file.is_file()
        ]

    def token_files(self) -> list[Path]:
        """The tokens of evaluated responses, oldest step first."""
        return [
            file for file in numbered_paths(self.path / "tokens", TOKENS).values() if file.is_file()
        ]

    def checkpoint(self, step: int) -> Path:
        """The folder of a published checkpoint."""
        return self.path / f"checkpoint-{step:06d}"

    def event(self, text: str) -> None:
        """Add a line to the event log, without secrets and without characters that steer a terminal."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self.events.open("a", encoding="utf-8") as handle:
                handle.write(for_terminal(text) + "\n")
        except OSError as error:
            raise disk_error(self.events, error) from error

    def sync_logs(self) -> None:
        """Make what was logged so far durable."""
        for name in (*STEP_LOGS, "events.log"):
            if (self.path / name).exists():
                sync_file(self.path / name)
        sync_folder(self.path)

    def cut_after(self, step: int, gone: Collection[str] = ()) -> None:
        """Forget logged steps that come after a checkpoint, and replaced rows that are not gone in it."""
        for name in STEP_LOGS:
            kept = lambda r, of_rows=name == "replaced.jsonl": (
                r["id"] in gone if of_rows else r.get("step", 0) <= step
            )
            move_lines(self.path / name, kept, self.path / name.replace(".jsonl", ".lost.jsonl"))

    def log(self, path: Path, record: dict[str, Any], exact: bool = False) -> None:
        """Append one record; exact where its texts are read again."""
        append_line(path, record, exact)

    def read(self, path: Path) -> list[dict[str, Any]]:
        """All complete records of a log."""
        return list(read_lines(path))

    def write(self, name: str, text: str) -> None:
        """A text file of the folder."""
        write_text(self.path / name, text)

    def write_lock(self, record: dict[str, Any]) -> None:
        """The lock file."""
        write_json(self.lock_file, record)

    def check_writable(self) -> None:
        """S601 where the run folder is a file, or lies below one."""
        place = self.path.absolute()
        file = next((p for p in (place, *place.parents) if p.exists() and not p.is_dir()), None)
        if file is not None:
            raise StorageError(
                "S601",
                f"run={self.path} cannot be a folder: {file.name} is a file",
                where=str(self.path),
                why="a run writes its checkpoints, logs and report into a folder of its own",
                fix=f"run={unused_folder(str(file))}",
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One owner at a time (S602); whoever owns it already in this process goes on."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(self.path, error) from error
        key = (os.getpid(), str(self.path.resolve()))
        if key in LOCKED_HERE:
            yield
            return
        try:
            handle = (self.path / ".owner").open("a+")
        except OSError as error:
            raise disk_error(self.path, error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            handle.close()
            raise StorageError(
                "S602",
                "another process owns this run folder",
                where=str(self.path),
                why=f"owner: {owner}",
                fix="wait for it, stop it, or choose another folder: run=OTHER_FOLDER",
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
    """Which start of this machine it is; a pid means nothing after the next one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8]
    except OSError:
        return "unknown"

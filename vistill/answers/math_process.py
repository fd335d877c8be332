"""Compare mathematical expressions in a process with limits, and keep what it answered.

`multiprocessing` would import the user's script again, so the process is a module of its own.
"""

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from vistill.answers.math_worker import MEMORY, SECONDS
from vistill.errors import RolloutError

#: Seconds of wall-clock time for one question, and for one that is asked again alone.
PATIENCE, PATIENCE_ALONE = 60.0, 600.0
#: Seconds the process may take to import.
START_LIMIT = 300.0
#: Answers that are kept in memory.
MOST_KEPT = 200_000
#: Appends a record to a file.
Append = Callable[[Path, object], None]
#: File of the answers in a run folder.
FILE = "verdicts.jsonl"


class ProcessLostError(Exception):
    """The process ended without an answer; holds its return code."""

    def __init__(self, code: int | None) -> None:
        self.code = code
        super().__init__(f"return code {code}")


class NoAnswerError(Exception):
    """The process gave no answer in the wall-clock time."""


class MathJudge:
    """Compares expressions with math-verify. The process starts at the first comparison.

    A question that exceeds the limits of processor time or memory counts as not equal and is
    counted in `limits`. So does one that ends the process twice. A process that gives no answer in
    wall-clock time is started again and asked once more; then R409 stops the run.
    """

    shared: ClassVar["MathJudge | None"] = None

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self.seconds, self.memory = seconds, memory
        self.patience = (PATIENCE, PATIENCE_ALONE)
        self.limits: Counter[str] = Counter()
        self.process: subprocess.Popen[bytes] | None = None
        self.answers: dict[str, tuple[bool, str]] = {}
        self.file: Path | None = None
        self.append: Append = lambda path, record: None
        self.lock = threading.Lock()

    # Answers that are kept.

    @contextmanager
    def kept_in(self, folder: Path, append: Append) -> Iterator[None]:
        """Use and extend the answers of a run folder, so that every start agrees with the first.

        Args:
            folder: the run folder.
            append: writes a record to the end of a file; a full disk is its error.
        """
        before = self.answers, self.file
        self.append = append
        with self.lock:
            self.answers, self.file = {}, folder / FILE
            if self.file.exists():
                text = self.file.read_text(encoding="utf-8")
                for line in text.splitlines():
                    self._keep_line(line)
                if text and not text.endswith("\n"):  # a power cut left half a line
                    os.truncate(self.file, len(text[: text.rfind("\n") + 1].encode()))
        try:
            yield
        finally:
            with self.lock:
                self.answers, self.file = before

    def _keep_line(self, line: str) -> None:
        """Take over a line; a line that a power cut left incomplete is skipped and asked again."""
        try:
            record = json.loads(line)
            limit = str(record.get("limit", ""))
            self.answers[str(record["key"])] = (bool(record["equal"]), limit)
        except (ValueError, KeyError, TypeError):
            return

    def _remember(self, key: str, equal: bool, limit: str) -> None:
        """Keep an answer in memory and in the run folder."""
        if len(self.answers) < MOST_KEPT:
            self.answers[key] = (equal, limit)
        if self.file is not None and self.file.parent.is_dir():
            record = {"key": key, "equal": equal} | ({"limit": limit} if limit else {})
            self.append(self.file, record)

    # Questions.

    def equal(self, gold: str, answer: str) -> bool:
        """Whether two expressions are equal; gold first, as math-verify requires.

        Raises:
            RolloutError: R409, the process gives no answer twice.
        """
        answered: bool | str = False
        key = hashlib.blake2b(json.dumps([gold, answer]).encode(), digest_size=16).hexdigest()
        with self.lock:
            if key not in self.answers:
                answered = self._ask_twice(gold, answer)
                limit = answered if isinstance(answered, str) else ""
                self._remember(key, answered is True, limit)
            else:
                limit = self.answers[key][1]
            equal = self.answers[key][0] if key in self.answers else answered is True
            if limit:
                self.limits[limit] += 1
            return equal

    def _ask_twice(self, gold: str, answer: str) -> bool | str:
        """Ask; if the process ends or is silent, start it again and ask once more."""
        try:
            return self._ask(gold, answer, self.patience[0])
        except ProcessLostError as lost:
            self.close()
            if lost.code == -signal.SIGXCPU:
                return "time"
        except NoAnswerError:
            self.close()
        try:
            return self._ask(gold, answer, self.patience[1])
        except ProcessLostError as lost:
            self.close()
            return "time" if lost.code == -signal.SIGXCPU else "crash"
        except NoAnswerError:
            self.close()
            self.limits["wall"] += 1
            raise RolloutError(
                "R409",
                f"math-verify gives no answer in {self.patience[1]:,.0f} s",
                where=f"gold {gold!r:.60}, answer {answer!r:.60}",
                why="the machine is overloaded or suspended; a verdict would depend on its load",
                fix="run the same command again; it continues",
            ) from None

    def _ask(self, gold: str, answer: str, patience: float) -> bool | str:
        """Ask the process once."""
        process = self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps([gold, answer]).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            raise ProcessLostError(process.wait()) from None
        return self._read(process, patience)

    def _read(self, process: "subprocess.Popen[bytes]", patience: float) -> bool | str:
        """The next line of the process."""
        assert process.stdout is not None
        end = time.monotonic() + patience
        while not select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
            if time.monotonic() >= end:
                raise NoAnswerError
        line = process.stdout.readline()
        if not line.endswith(b"\n"):
            raise ProcessLostError(process.wait())
        return json.loads(line)

    def _start(self) -> "subprocess.Popen[bytes]":
        """The running process."""
        if self.process is not None:
            return self.process
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "vistill.answers.math_worker",
                str(self.seconds),
                str(self.memory),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        if self._read(self.process, START_LIMIT) != "ready":
            raise ProcessLostError(None)
        return self.process

    def close(self) -> None:
        """Stop the process; the next question starts another one."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = None

    def __enter__(self) -> "MathJudge":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self is not MathJudge.shared:
            self.close()


def shared_judge() -> MathJudge:
    """The judge of this Python process: one math-verify process serves all its calls."""
    if MathJudge.shared is None:
        MathJudge.shared = MathJudge()
    return MathJudge.shared

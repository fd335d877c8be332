"""Compare mathematical expressions in a process with limits, and keep what it answered."""

import hashlib
import json
import os
import signal
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from vistill.answers.expression_size import is_too_large
from vistill.answers.math_worker import MEMORY, SECONDS
from vistill.answers.worker_process import (
    NoAnswerError,
    NotStartedError,
    Process,
    ProcessLostError,
    ask_process,
    end_process,
    leave_to_parent,
    start_process,
)
from vistill.errors import RolloutError

#: Seconds of wall-clock time for one question, and for one that is asked again alone.
PATIENCE, PATIENCE_ALONE = 60.0, 600.0
#: Seconds of processor time from which on a question took long.
LONG = 0.5
#: The limit that an expression exceeds which is too large to compute.
SIZE = "size"
#: Answers that are kept in memory.
MOST_KEPT = 200_000
#: Appends a record to a file.
Append = Callable[[Path, object], None]
#: File of the answers in a run folder.
FILE = "verdicts.jsonl"
#: Return codes of a process that something else ended, or that answered another question.
NOT_BY_QUESTION = (None, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGQUIT)
#: The judges of this process; a forked child resets them.
JUDGES: "weakref.WeakSet[MathJudge]" = weakref.WeakSet()


class MathJudge:
    """Compares expressions with math-verify. The process starts at the first comparison.

    A question that exceeds the limits of processor time or memory counts as not equal and is
    counted in `limits`. So does an expression that is too large to compute, and a question that
    ends a ready process twice. A process that gives no answer
    in wall-clock time is started again and asked once more; then R409 stops the run, as it does
    where the process cannot start. Whatever interrupts a question ends the process, so that no
    answer is left for the next one. A forked child starts a process of its own.
    """

    shared: ClassVar["MathJudge | None"] = None

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self.seconds, self.memory = seconds, memory
        self.patience = (PATIENCE, PATIENCE_ALONE)
        self.limits: Counter[str] = Counter()
        self.process: Process | None = None
        self.question_number = 0
        """The number of the last question."""
        self.answers: dict[str, tuple[bool, str, float]] = {}
        """Whether two expressions are equal, the limit they exceed, and seconds if it took long."""
        self.used = 0.0
        """Seconds of processor time of the last question."""
        self.file: Path | None = None
        self.append: Append = lambda path, record: None
        self.lock = threading.Lock()
        JUDGES.add(self)

    def reset_after_fork(self) -> None:
        """In a forked child: leave process, lock and file to the parent; keep the answers."""
        self.lock = threading.Lock()
        self.file = None
        process, self.process = self.process, None
        if process is not None:
            leave_to_parent(process)

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
                content = self.file.read_bytes()
                for line in content.splitlines():
                    self._keep_line(line)
                if not content.endswith(b"\n"):  # a power cut left half a line
                    os.truncate(self.file, content.rfind(b"\n") + 1)
        try:
            yield
        finally:
            with self.lock:
                self.answers, self.file = before

    def _keep_line(self, line: bytes) -> None:
        """Take over a line; a line that a power cut left incomplete is skipped and asked again."""
        try:
            record = json.loads(line)
        except ValueError:
            return
        if isinstance(record, dict) and isinstance(record.get("equal"), bool):
            seconds = record.get("seconds", 0.0)
            seconds = float(seconds) if isinstance(seconds, int | float) else 0.0
            verdict = record["equal"], str(record.get("limit", "")), seconds
            self.answers.setdefault(str(record.get("key")), verdict)

    def _remember(self, key: str, equal: bool, limit: str) -> None:
        """Keep an answer in the run folder and in memory."""
        seconds = round(self.used, 1) if self.used >= LONG else 0.0
        if self.file is not None and self.file.parent.is_dir():
            record = {"key": key, "equal": equal} | ({"limit": limit} if limit else {})
            record |= {"seconds": seconds} if seconds else {}
            self.append(self.file, record)
        if len(self.answers) < MOST_KEPT:
            self.answers[key] = (equal, limit, seconds)

    # Questions.

    def equal(self, gold: str, answer: str) -> bool:
        """Whether two expressions are equal; gold first, as math-verify requires.

        Raises:
            RolloutError: R409, the process cannot start, is ended twice by something else than
                the question, or gives no answer twice.
        """
        return self.timed_equal(gold, answer)[0]

    def timed_equal(self, gold: str, answer: str) -> tuple[bool, float]:
        """Whether two expressions are equal, and the seconds of processor time if it took long.

        The seconds are kept with the answer, so that a resumed run sees the same ones.
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
            seconds = self.answers[key][2] if key in self.answers else self.used
            if limit:
                self.limits[limit] += 1
            return equal, self.seconds if limit and limit != SIZE else seconds

    def _ask_twice(self, gold: str, answer: str) -> bool | str:
        """Ask; if the process ends or is silent, start it again and ask once more."""
        self.used = 0.0
        if is_too_large(gold) or is_too_large(answer):
            return SIZE
        codes: list[int | None] = []
        for patience in self.patience:
            try:
                return self._ask(gold, answer, patience)
            except ProcessLostError as lost:
                if lost.code == -signal.SIGXCPU:
                    return "time"
                codes.append(lost.code)
            except NoAnswerError:
                pass
            except NotStartedError as failed:
                raise not_started_error(failed) from failed
        if len(codes) == len(self.patience) and not set(codes) & set(NOT_BY_QUESTION):
            return "crash"
        self.limits["wall"] += 1
        raise no_verdict_error(gold, answer, self.patience[1], codes) from None

    def _ask(self, gold: str, answer: str, patience: float) -> bool | str:
        """Ask the process once; whatever interrupts the question ends the process."""
        try:
            process = self._start()
            self.question_number += 1
            question = gold, answer
            verdict, self.used = ask_process(process, self.question_number, question, patience)
            return verdict
        except BaseException:
            self.close()
            raise

    def _start(self) -> Process:
        """The running process; one that ended since the last question is replaced."""
        if self.process is not None and self.process.poll() is not None:
            self.close()
        if self.process is None:
            self.process = start_process(self.seconds, self.memory)
        return self.process

    def close(self) -> None:
        """End the process; the next question starts another one."""
        process, self.process = self.process, None
        if process is not None:
            end_process(process)

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


class VerdictMath:
    """The mathematics of one verdict: all its questions together get the time of one.

    A verdict asks once per reading of a reply and per option. What exceeds the time counts as not
    equal, and as `time` in the limits of the judge.
    """

    def __init__(self, judge: MathJudge) -> None:
        self.judge, self.left = judge, judge.seconds

    def equal(self, gold: str, answer: str) -> bool:
        """Whether two expressions are equal; false once the time of the verdict is used up."""
        if self.left <= 0:
            self.judge.limits["time"] += 1
            return False
        equal, seconds = self.judge.timed_equal(gold, answer)
        self.left -= seconds
        return equal


def shared_judge() -> MathJudge:
    """The judge of this Python process: one math-verify process serves all its calls."""
    if MathJudge.shared is None:
        MathJudge.shared = MathJudge()
    return MathJudge.shared


def not_started_error(failed: NotStartedError) -> RolloutError:
    """R409 for a process that cannot start: no question is at fault, and no verdict is kept."""
    return RolloutError(
        "R409",
        "the process of math-verify does not start",
        why=f"{failed!s:.300}",
        fix="repair this installation of Python, math-verify and sympy, or free memory and open "
        "files; then run the same command again, it continues",
    )


def no_verdict_error(
    gold: str, answer: str, patience: float, codes: list[int | None]
) -> RolloutError:
    """R409 for a question without an answer that is not at fault itself."""
    what = f"math-verify gives no answer in {patience:,.0f} s"
    if codes:
        what = f"the process of math-verify was ended before it answered (code {codes[-1]})"
    return RolloutError(
        "R409",
        what,
        where=f"gold {gold!r:.60}, answer {answer!r:.60}",
        why="the machine is overloaded or suspended; a verdict would depend on its load",
        fix="run the same command again; it continues",
    )


def reset_judges_after_fork() -> None:
    """In a forked child: start with processes and locks of its own."""
    for judge in list(JUDGES):
        judge.reset_after_fork()


os.register_at_fork(after_in_child=reset_judges_after_fork)

"""A signal sets a flag that every phase polls. A partial step is discarded.

A save in the background polls a flag of its own.
"""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from vistill.errors import Preempted


class Interrupted(BaseException):
    """Raised where the flag is polled. Not an `Exception`, so that no handler catches it."""

    def __init__(self, number: int) -> None:
        self.number = number
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(name)


class Interrupt:
    """The flag, and the handlers that set it."""

    def __init__(self) -> None:
        self.received: int | None = None

    def poll(self) -> None:
        """Raise if a signal has arrived."""
        if self.received is not None:
            raise Interrupted(self.received)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGTERM, SIGUSR1 and SIGINT, in the main thread; a second signal stops at once."""
        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        try:
            before = {number: signal.signal(number, self._on_signal) for number in numbers}
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            restore_handlers(before)


def restore_handlers(handlers: Mapping[Any, Any]) -> None:
    """Restore handlers; for one that was not installed from Python (None), the default."""
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def exit_on_second_signal() -> Iterator[None]:
    """Stop at the first signal, where no work must be finished, as in imports or the report."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        restore_handlers(before)


class SaveAbandonedError(Exception):
    """Raised inside a save that another thread told to stop."""


@dataclass
class StopRequest:
    """Lets another thread stop a save. A stopped save is never published."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    is_made: bool = False

    def make(self) -> None:
        """Stop the save, unless it is being renamed now."""
        is_locked = self.lock.acquire(timeout=1)
        self.is_made = True
        if is_locked:
            self.lock.release()

    def poll(self) -> None:
        """Raise if the save must stop."""
        if self.is_made:
            raise SaveAbandonedError

    @contextmanager
    def no_longer(self) -> Iterator[None]:
        """A block that is not stopped inside."""
        with self.lock:
            self.poll()
            yield


def preempted_error(
    stop: Interrupted, step: int | None, num_steps: int = 0, checkpoint: Path | None = None
) -> Preempted:
    """P075: exit code 75 after SIGTERM or SIGUSR1, 130 after Ctrl-C."""
    where = (
        "before the first step; files written so far are kept"
        if step is None
        else f"after step {step} of {num_steps}; saved: {checkpoint}"
    )
    error = Preempted(
        "P075",
        f"stopped by {stop} {where}",
        fix="run the same command again to continue",
    )
    if stop.number == signal.SIGINT:
        error.exit_code = 130  # pyright: ignore[reportAttributeAccessIssue]
    return error

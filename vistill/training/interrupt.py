"""Signals set a flag; the flag is polled inside every phase. A partial step is thrown away: it can be recomputed."""

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from vistill.errors import Preempted


class Interrupted(BaseException):
    """Raised where the flag is polled. Not an Exception, so that nothing swallows it."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


class Interrupt:
    """The flag."""

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
        """Handle SIGTERM, SIGUSR1 and SIGINT; the second one leaves at once. In other threads it does nothing."""
        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        try:
            before = {number: signal.signal(number, self._on_signal) for number in numbers}
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            restore(before)


def restore(handlers: Mapping[Any, Any]) -> None:
    """Put handlers back; one that was not installed from Python (None) cannot be, so the default takes its place."""
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def exit_on_second_signal() -> Iterator[None]:
    """Where nothing is under way that must be finished, the first signal raises: imports, rows, models, the report."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        restore(before)


def preempted(stop: Interrupted, step: int | None) -> Preempted:
    """Exit 75 after SIGTERM or SIGUSR1, 130 after Ctrl-C; before the first step there is no step to name."""
    where = (
        "before the first step; what was written is kept"
        if step is None
        else f"after step {step}; checkpoint saved"
    )
    error = Preempted(
        "P075",
        f"stopped by {stop} {where}",
        fix="run the same command again to continue",
    )
    if stop.number == signal.SIGINT:
        error.exit_code = 130  # pyright: ignore[reportAttributeAccessIssue]
    return error

"""The phase of a run and how far it is: one event, from where the work is done to who shows it.

Code in any package opens a phase (`open_phase`). `report_phases` sets who receives the events: the
progress callback of the run. Without one, a phase costs next to nothing.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

#: Least seconds between two events of one phase. The first event is sent at once.
EVENT_SECONDS = 0.1
#: Phases that the display times, to tell how long the rest of a run takes. A step begins with
#: writing responses.
LOADING_LIBRARIES = "loading torch and transformers"
WRITING, SCORING, LEARNING = "writing responses", "scoring", "learning"
EVALUATING, CANARY, SAVING = "evaluating", "canary", "saving"
#: What the code below a phase counts: responses that an engine finished, readings of one response
#: by one pass, responses whose loss went backward.
RESPONSES, READINGS, GRADIENTS = "responses", "readings", "gradients"

Receiver = Callable[[dict[str, Any]], None]
Item = TypeVar("Item")


@dataclass(frozen=True)
class PhaseProgress:
    """The event: a phase, and how much of it is done."""

    phase: str
    """What is done now, as it is shown: `checking rows`."""
    done: int = 0
    total: int | None = None
    """None if it is not known, or if the phase has no parts."""

    def text(self) -> str:
        """`checking rows 120/2,101`."""
        count = f" {self.done:,}" if self.done or self.total is not None else ""
        return f"{self.phase}{count}{'' if self.total is None else f'/{self.total:,}'}"

    def short_text(self) -> str:
        """The same with the first word of the phase alone."""
        return replace(self, phase=self.phase.partition(" ")[0]).text()

    def to_record(self) -> dict[str, Any]:
        """The record that a progress callback receives."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "PhaseProgress":
        """The event of a record with the key `phase`."""
        return cls(str(record["phase"]), int(record.get("done") or 0), record.get("total"))


class Phase:
    """A phase that is open, with its count."""

    def __init__(self, name: str, total: int | None, of: str, receive: Receiver | None) -> None:
        self.name, self.total, self.of, self.receive = name, total, of, receive
        self.done, self.sent = 0, 0.0

    def advance(self, count: int = 1) -> None:
        """Add to the count, up to the total, and send an event if one is due."""
        self.reach(self.done + count)

    def reach(self, count: int) -> None:
        """Set the count, unless it is larger already."""
        limit = count if self.total is None else min(count, self.total)
        self.done = max(self.done, limit)
        if self.receive is not None and time.monotonic() - self.sent >= EVENT_SECONDS:
            self.send()

    def send(self) -> None:
        """Send the event."""
        if self.receive is not None:
            self.sent = time.monotonic()
            self.receive(PhaseProgress(self.name, self.done, self.total).to_record())


RECEIVER: ContextVar[Receiver | None] = ContextVar("receiver of phases", default=None)
CURRENT: ContextVar[Phase | None] = ContextVar("current phase", default=None)


def send_record(record: dict[str, Any]) -> None:
    """Send a record to the receiver of the phases, if there is one: the default callback."""
    receive = RECEIVER.get()
    if receive is not None:
        receive(record)


@contextmanager
def report_phases(receive: Receiver) -> Iterator[None]:
    """Send the events of all phases inside the block to a progress callback.

    The default callback (`send_record`) leaves the receiver as it is.
    """
    token = RECEIVER.set(RECEIVER.get() if receive is send_record else receive)
    try:
        yield
    finally:
        RECEIVER.reset(token)


@contextmanager
def open_phase(name: str, total: int | None = None, of: str = "") -> Iterator[Phase]:
    """Be in a phase inside the block.

    Args:
        name: what is done, as it is shown.
        total: number of parts, if it is known.
        of: what code below counts by itself (`count_done`), such as `RESPONSES`.
    """
    phase = Phase(name, total, of, RECEIVER.get())
    token = CURRENT.set(phase)
    try:
        phase.send()
        yield phase
    finally:
        CURRENT.reset(token)


def count_items(name: str, items: Iterable[Item], total: int | None = None) -> Iterator[Item]:
    """Yield the items as a phase that counts them.

    Args:
        name: what is done with them, as it is shown.
        items: with a length, or give `total`.
        total: number of items; None without a length means that it is not known.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    phase = Phase(name, total, "", RECEIVER.get())
    phase.send()
    for item in items:
        yield item
        phase.advance()


def count_done(of: str, count: int) -> None:
    """Add to the count of the current phase, if that is what it counts."""
    phase = CURRENT.get()
    if count and phase is not None and phase.of == of:
        phase.advance(count)


def restart_count() -> None:
    """Count the current phase from 0: it is done again in smaller parts."""
    phase = CURRENT.get()
    if phase is not None:
        phase.done = 0


@contextmanager
def responses_counted(total: int) -> Iterator[None]:
    """Count `total` responses by the end of the block, whatever the engine inside it counts."""
    phase = CURRENT.get()
    before = 0 if phase is None else phase.done
    yield
    if phase is not None and phase.of == RESPONSES:
        phase.reach(before + total)

"""One live line on a terminal; a line now and then where the output goes into a file."""

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from vistill.redaction import for_terminal

#: Seconds between two lines of a run that nobody watches.
QUIET_SECONDS = 30.0


class Progress:
    """Shows training records: step, loss, accuracy of the last evaluation, mean VA, time left."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.start = time.monotonic()
        self.said = self.start
        self.first_step: int | None = None
        self.last_eval: dict[str, Any] = {}

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live:
            print(file=sys.stderr)

    def show(self, record: dict[str, Any]) -> None:
        """One record of the loop; whoever closed the other end of a pipe does not end a run."""
        with suppress(BrokenPipeError):
            self.tell(record)

    def tell(self, record: dict[str, Any]) -> None:
        """The line itself."""
        if "event" in record:
            print(for_terminal(record["event"]), file=sys.stderr)
            return
        if "eval/accuracy" in record:
            self.last_eval = record
            if not self.live:
                print(
                    f"step {record['step']}/{record['steps']}  accuracy {record['eval/accuracy']:.3f}",
                    file=sys.stderr,
                )
            return
        if "loss" not in record or not (self.live or self.is_due(record)):
            return
        if self.first_step is None:
            self.first_step = record["step"] - 1
        done = record["step"] - self.first_step
        left = (time.monotonic() - self.start) / done * (record["steps"] - record["step"])
        parts = [f"step {record['step']}/{record['steps']}", f"loss {record['loss']:.4f}"]
        if self.last_eval:
            parts.append(f"accuracy {self.last_eval['eval/accuracy']:.3f}")
        if "va/mean" in record:
            parts.append(f"VA {record['va/mean']:.3f}")
        rate = record["rollout/tokens"] / max(1e-9, record["seconds"])
        parts += [f"{rate:,.0f} tokens/s", f"{int(left // 60)}:{int(left % 60):02d} left"]
        line = "   ".join(parts)
        print(
            "\r\x1b[K" + line if self.live else line,
            end="" if self.live else "\n",
            flush=True,
            file=sys.stderr,
        )

    def is_due(self, record: dict[str, Any]) -> bool:
        """Whether a run without a terminal says something now: its first and last step, and every half a minute."""
        now = time.monotonic()
        if (
            self.first_step is None
            or record["step"] == record["steps"]
            or now - self.said >= QUIET_SECONDS
        ):
            self.said = now
            return True
        return False

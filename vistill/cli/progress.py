"""The progress of a run: one live line on a terminal, otherwise a line every half minute."""

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from vistill.redaction import for_terminal

#: Seconds between two progress lines if the output is not a terminal.
QUIET_SECONDS = 30.0


class Progress:
    """Shows step, loss, accuracy of the last evaluation, mean visual advantage and time left."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.start = time.monotonic()
        self.last_printed = self.start
        self.first_step: int | None = None
        self.last_eval: dict[str, Any] = {}
        self.stage = ""

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
        """Show one record of the loop; ignore a closed pipe."""
        with suppress(BrokenPipeError):
            self.print_record(record)

    def print_record(self, record: dict[str, Any]) -> None:
        """Print the line of a record."""
        name = self.begin_stage(str(record.get("stage", "")))
        if "event" in record:
            print(for_terminal(f"{name}{record['event']}"), file=sys.stderr)
            return
        if "eval/accuracy" in record:
            self.last_eval = record
            if not self.live:
                step, accuracy = f"{record['step']}/{record['steps']}", record["eval/accuracy"]
                print(f"{name}step {step}  accuracy {accuracy:.3f}", file=sys.stderr)
            return
        if "loss" not in record or not (self.live or self.is_due(record)):
            return
        if self.first_step is None:
            self.first_step = record["step"] - 1
        done = record["step"] - self.first_step
        left = (time.monotonic() - self.start) / done * (record["steps"] - record["step"])
        parts = [f"{name}step {record['step']}/{record['steps']}", f"loss {record['loss']:.4f}"]
        if self.last_eval:
            parts.append(f"accuracy {self.last_eval['eval/accuracy']:.3f}")
        if "va/mean" in record:
            parts.append(f"visual advantage {record['va/mean']:.3f}")
        rate = record["rollout/tokens"] / max(1e-9, record["seconds"])
        parts += [f"{rate:,.0f} tokens/s", f"{int(left // 60)}:{int(left % 60):02d} left"]
        line = "   ".join(parts)
        print(
            "\r\x1b[K" + line if self.live else line,
            end="" if self.live else "\n",
            flush=True,
            file=sys.stderr,
        )

    def begin_stage(self, stage: str) -> str:
        """Forget the run before, whose time and accuracy are another one's.

        Returns:
            The name of the stage, for the beginning of a line; empty for a single run.
        """
        if stage != self.stage:
            self.stage, self.start = stage, time.monotonic()
            self.first_step, self.last_eval = None, {}
        return f"{stage}  " if stage else ""

    def is_due(self, record: dict[str, Any]) -> bool:
        """Whether to print a line without a terminal: first and last step, and every 30 seconds."""
        now = time.monotonic()
        if (
            self.first_step is None
            or record["step"] == record["steps"]
            or now - self.last_printed >= QUIET_SECONDS
        ):
            self.last_printed = now
            return True
        return False

"""Show a run while it works: phase, count, step, figures, time left.

On a terminal one live line, and events above it. In a pipe or a notebook plain lines, rarely. The
display reads the records of the progress callback (docs/overview.md) and changes nothing.
"""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from vistill.display.live_line import (
    LiveLine,
    Part,
    columns_of,
    cut_line,
    cut_middle,
    fit_parts,
    is_live,
)
from vistill.display.time_left import TimeLeft, duration_text
from vistill.display.wrapping import fit_text
from vistill.evaluation.unparsed import UNANSWERED
from vistill.phases import (
    EVALUATING,
    LOADING_LIBRARIES,
    SAVING,
    WRITING,
    PhaseProgress,
    report_phases,
)
from vistill.redaction import for_terminal
from vistill.runs.storage import to_json

#: Least seconds between two drawings of the live line, and between two looks at the clock.
DRAW_SECONDS, TICK_SECONDS = 0.1, 0.5
#: Without a terminal: seconds between two lines, and after which a new phase gets a line.
QUIET_SECONDS, PHASE_SECONDS = 30.0, 2.0
#: Longest line where there is no terminal.
PLAIN_COLUMNS = 160
#: The display writes its state into the file that this variable names, for a process that waits.
STATUS_VARIABLE = "VISTILL_PROGRESS_JSON"


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_shell is not None and type(get_shell()).__name__ == "ZMQInteractiveShell"


class RunDisplay:
    """Shows the records of runs, one after the other. Use it as a context manager.

    Args:
        stream: default: stderr, or stdout in a notebook.
        clock: seconds that only grow.
        ticks: whether a thread looks at the clock, for phases that send nothing for a while.
        has_summary: whether a table at the end follows, with the warnings of the last evaluation.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        ticks: bool = True,
        has_summary: bool = False,
    ) -> None:
        self.has_summary = has_summary
        self.stream = stream or (sys.stdout if is_notebook() else sys.stderr)
        self.clock, self.ticks = clock, ticks
        self.line = LiveLine(self.stream) if is_live(self.stream) else None
        self.lock, self.ended = threading.RLock(), threading.Event()
        self.status_file = os.environ.get(STATUS_VARIABLE)
        self.status = ""
        self.stage = ""
        self.begin_run()
        self.last_written, self.drawn_at = self.clock(), -math.inf

    def begin_run(self) -> None:
        """Forget the run before: its time and its accuracy are another one's."""
        self.phase: PhaseProgress | None = None
        self.announced: set[str] = set()
        """Phases that had a line without a terminal."""
        self.step: dict[str, Any] = {}
        self.evaluation: dict[str, Any] = {}
        self.time_left = TimeLeft()
        self.estimate: float | None = None
        self.begun: dict[str, float] = {}
        """When the current step, evaluation and save began."""
        self.phase_began = self.estimated_at = self.clock()

    def __enter__(self) -> "RunDisplay":
        if self.ticks:
            self.thread = threading.Thread(target=self.keep_ticking, daemon=True)
            self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ended.set()
        if self.ticks:
            self.thread.join()
        with suppress(BrokenPipeError):
            if self.line is not None:
                self.line.clear()

    def keep_ticking(self) -> None:
        """Draw again while a phase sends nothing; ends with the display, or a closed stream."""
        with suppress(OSError, ValueError):
            while not self.ended.wait(TICK_SECONDS):
                self.tick()

    def show(self, record: Mapping[str, Any]) -> None:
        """Show one record of a run; ignore a closed pipe."""
        with self.lock, suppress(BrokenPipeError):
            stage = str(record.get("stage", ""))
            if stage != self.stage:
                self.stage = stage
                self.begin_run()
            self.read(record)

    def read(self, record: Mapping[str, Any]) -> None:
        """Take in a record, and print what must not be missed."""
        now = self.clock()
        if "saving" in self.begun and record.get("phase") != SAVING:
            self.time_left.saves.append(now - self.begun.pop("saving"))
            self.done_since_step("saves_left", 1)
            self.estimate_again(now)
        if "phase" in record:
            self.read_phase(PhaseProgress.from_record(record), now)
        elif "event" in record:
            if not self.is_in_summary(str(record["event"])):
                self.print_lines([f"{self.prefix()}{record['event']}"])
        elif "eval/accuracy" in record:
            self.read_evaluation(dict(record), now)
        elif "loss" in record:
            self.read_step(dict(record), now)
        self.refresh()

    def is_in_summary(self, event: str) -> bool:
        """Whether an event is a warning about the last evaluation, which the table repeats."""
        last = self.evaluation.get("step", 0) == self.evaluation.get("steps")
        return self.has_summary and last and UNANSWERED in event

    def read_phase(self, event: PhaseProgress, now: float) -> None:
        """Take in a phase. Writing responses begins a step."""
        if self.phase is None or self.phase.phase != event.phase:
            self.phase_began = now
        self.phase = event
        if event.phase == WRITING and event.done == 0:
            self.begun["step"] = now
        elif event.phase.startswith(EVALUATING):
            self.begun.setdefault("evaluation", now)
        elif event.phase == SAVING:
            self.begun.setdefault("saving", now)

    def read_evaluation(self, record: dict[str, Any], now: float) -> None:
        """Print an evaluation, with the response that it shows."""
        self.evaluation, self.phase = record, None
        began = self.begun.pop("evaluation", now)
        responses = int(record.get("evaluation_responses") or 0)
        self.time_left.add_evaluation(now - began, responses)
        self.done_since_step("evaluation_responses_left", responses)
        self.estimate_again(now)
        low, high = record.get("eval/accuracy_low"), record.get("eval/accuracy_high")
        if low is None or high is None:
            band = ""
        else:
            band = f" [{100 * low:.1f}, {100 * high:.1f}]"
        step = f"{self.prefix()}step {record['step']}/{record['steps']}"
        first = f"{step}  accuracy {100 * record['eval/accuracy']:.1f} %{band}"
        self.print_lines([first, *self.response_lines(record.get("response") or {})])

    def response_lines(self, response: Mapping[str, Any]) -> list[str]:
        """Question, response and verdict of the response that an evaluation shows, cut to fit."""
        if not response:
            return []
        given, rule = response.get("extracted"), response.get("rule")
        read = "no answer" if given is None else f"answer {given}"
        why = [str(response.get("reason") or ""), f"rule {rule}" if rule else ""]
        facts = [read, f"gold {response['gold']}", *(text for text in why if text)]
        left = self.columns() - len("  question  ")
        return [
            f"question  {cut_line(one_line(response['question']), left)}",
            f"response  {cut_middle(one_line(response['text']), left)}",
            f"{'correct' if response['correct'] else 'wrong':<8}  "
            + cut_line(one_line("; ".join(facts)), left),
        ]

    def read_step(self, record: dict[str, Any], now: float) -> None:
        """Take in a step."""
        is_first = not self.step
        self.step, self.phase = record, None
        self.time_left.add_step(now - self.begun.pop("step", now - record.get("seconds", 0.0)))
        self.estimate_again(now)
        is_last = record["step"] == record["steps"]
        quiet = now - self.last_written >= QUIET_SECONDS
        if self.line is None and (is_first or is_last or quiet):
            self.print_state()

    def done_since_step(self, name: str, count: int) -> None:
        """Less is left than the record of the last step says."""
        if self.step.get(name):
            self.step[name] = max(0, self.step[name] - count)

    def estimate_again(self, now: float) -> None:
        """Estimate the time that is left."""
        if self.step:
            self.estimate, self.estimated_at = self.time_left.after(self.step), now

    def tick(self) -> None:
        """Look at the clock: draw again, or print a line if none was printed for long."""
        with self.lock:
            self.write_status()
            self.refresh()
            if self.line is not None or self.phase is None:
                return
            now, name = self.clock(), self.phase.phase
            is_new = name not in self.announced and now - self.phase_began >= PHASE_SECONDS
            if is_new or now - self.last_written >= QUIET_SECONDS:
                self.print_state()

    def refresh(self) -> None:
        """Draw the live line, unless it was drawn a moment ago: the thread does it then."""
        if self.line is None:
            return
        now = self.clock()
        if now - self.drawn_at >= DRAW_SECONDS:
            self.drawn_at = now
            self.line.draw(self.parts())

    def print_state(self) -> None:
        """Print the state as a plain line."""
        if self.phase is not None:
            self.announced.add(self.phase.phase)
        self.print_lines([fit_parts(self.parts(), self.columns())])

    def columns(self) -> int:
        """Columns that a line may take."""
        return columns_of(self.stream) - 1 if self.stream.isatty() else PLAIN_COLUMNS

    def print_lines(self, lines: list[str], separator: str = "\n  ") -> None:
        """Print lines, above the live line if there is one."""
        text = for_terminal(separator.join(lines))
        if self.stream.isatty():
            text = fit_text(text, self.columns())
        if self.line is not None:
            self.line.print_above(text)
            self.drawn_at = -math.inf
        else:
            self.last_written = self.clock()
            self.stream.write(text + "\n")
            self.stream.flush()

    def print_text(self, text: str) -> None:
        """Print lines that come from elsewhere, such as the table at the end."""
        if text:
            with self.lock, suppress(BrokenPipeError):
                self.print_lines(text.splitlines(), "\n")

    def prefix(self) -> str:
        """The name of the stage before a line."""
        return f"{self.stage}  " if self.stage else ""

    def parts(self) -> list[Part]:
        """The parts of the line, most important ones with the highest priority."""
        now, step = self.clock(), self.step
        parts = [Part(one_line(self.stage), 6)]
        if step:
            count = f"{step['step']}/{step['steps']}"
            parts.append(Part(f"step {count}", 8, count))
        parts += self.phase_parts(now)
        if not step:
            return parts
        parts.append(Part(f"loss {step['loss']:.4f}", 4))
        if self.evaluation:
            parts.append(Part(f"accuracy {100 * self.evaluation['eval/accuracy']:.1f} %", 5))
        if "va/mean" in step:
            parts.append(Part(f"visual advantage {step['va/mean']:.3f}", 3))
        rate = step["rollout/tokens"] / max(1e-9, step["seconds"])
        left = self.left_text(now)
        parts += [Part(f"{rate:,.0f} tokens/s", 2), Part(left, 8, left.removesuffix(" left"))]
        return parts

    def phase_parts(self, now: float) -> list[Part]:
        """The phase with its count, and before the first step for how long it lasts."""
        if self.phase is None:
            return []
        parts = [Part(one_line(self.phase.text()), 7, one_line(self.phase.short_text()))]
        seconds = now - self.phase_began
        if seconds >= 1 and not self.step:
            parts.append(Part(duration_text(seconds), 1))
        return parts

    def left_text(self, now: float) -> str:
        """The time that is left, counted down since it was estimated."""
        if self.estimate is None:
            return ""
        seconds = max(0.0, self.estimate - (now - self.estimated_at))
        about = "about " if self.time_left.is_rough else ""
        more = " + evaluation" if self.time_left.misses_evaluations(self.step) else ""
        return f"{about}{duration_text(seconds)} left{more}"

    def write_status(self) -> None:
        """Write the state for a process that waits for this one, if it has changed."""
        if not self.status_file:
            return
        status = to_json({
            "phase": None if self.phase is None else self.phase.to_record(),
            "step": self.step.get("step", 0),
            "steps": self.step.get("steps"),
            "left": self.left_text(self.clock()) if self.step else "",
        })  # fmt: skip
        if status != self.status:
            self.status = status
            temporary = Path(f"{self.status_file}.new")
            temporary.write_text(status, encoding="utf-8")
            temporary.replace(self.status_file)


@contextmanager
def show_phases(first: str = LOADING_LIBRARIES) -> Iterator[None]:
    """Show the phases of the work inside the block, which begins with this one."""
    with RunDisplay() as display, report_phases(display.show):
        if first:
            display.show(PhaseProgress(first).to_record())
        yield


def one_line(text: str) -> str:
    """A text of unknown origin as one harmless line."""
    return for_terminal(" ".join(text.split()))

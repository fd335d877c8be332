"""Run arms side by side, each in its own process: progress, signals, errors, costs."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from vistill.display.live_line import LiveLine, Part, is_live, join_parts
from vistill.display.run_display import STATUS_VARIABLE
from vistill.errors import ArmError, Preempted, VistillError, error_from_dict
from vistill.phases import PhaseProgress
from vistill.report.headline import percent
from vistill.report.run_data import read_json
from vistill.runs.folder import RunFolder
from vistill.runs.storage import disk_error, write_json
from vistill.studies.arms import Arm
from vistill.training.interrupt import Interrupted

#: Seconds between two polls of the processes.
POLL_SECONDS = 0.2
#: Seconds between two progress lines if the output is not a terminal.
QUIET_SECONDS = 30.0
#: One thread per process, because several small processes are faster than threads. No network.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
#: The process of an arm writes its error into this file.
ERROR_FILE = "arm-error.json"
#: The process of an arm writes what it does now into this file.
STATUS_FILE = "arm-progress.json"
#: Exit codes of a process that saved and stopped after a signal.
STOPPED = (75, 130)


class Cost(NamedTuple):
    """Time and memory of the process of an arm."""

    wall_seconds: float
    peak_mib: float


def run_side_by_side(label: str, arms: Sequence[Arm], cost_file: Path, at_once: int = 2) -> None:
    """Run every unfinished arm in its own process.

    Args:
        label: printed before the start.
        arms: the arms with their commands.
        cost_file: sums of wall time and memory; the run folders are below its folder.
        at_once: number of processes at the same time.

    Raises:
        VistillError: the error of the first arm that fails; the others save and stop.
        Interrupted: a signal arrived; every arm received it, saved and stopped.
    """
    print(f" · {label}", flush=True)
    line = ProgressLine()
    waiting: list[Arm] = []
    for arm in arms:
        if arm.is_finished():
            print(f"   {arm.name} is already finished", flush=True)
        else:
            waiting.append(arm)
    processes = Processes(waiting, at_once)
    with processes.forward_signals():
        try:
            while processes.advance():
                line.show(processes.parts())
                time.sleep(POLL_SECONDS)
        finally:
            processes.stop()
            add_cost(cost_file, line.seconds(), {p.arm.folder: p.cost for p in processes.ended})
    if processes.received is not None:
        raise Interrupted(processes.received)
    line.end()


class Processes:
    """The waiting, running and ended processes of a study."""

    def __init__(self, arms: Sequence[Arm], at_once: int) -> None:
        self.waiting, self.at_once = list(arms), at_once
        self.running: list[ArmProcess] = []
        self.ended: list[ArmProcess] = []
        self.received: int | None = None
        """The first received signal."""

    def advance(self) -> bool:
        """Collect ended processes and start waiting ones. Return False if none is running.

        Raises:
            VistillError: an arm has failed.
        """
        self.collect()
        for process in self.ended:
            if process.code != 0 and not (self.received is not None and process.has_stopped()):
                raise process.error()
        while (
            len(self.running) < self.at_once and self.received is None and (arm := self.next_arm())
        ):
            self.waiting.remove(arm)
            process = ArmProcess(arm)
            self.running.append(process)
            if self.received is not None:  # the signal arrived during the start
                process.send_signal(self.received)
        return bool(self.running)

    def next_arm(self) -> Arm | None:
        """The first waiting arm that is ready; if none is ready or running, the first of all."""
        ready = (arm for arm in self.waiting if arm.ready())
        # what nothing can make ready is started: its own error says what it lacks
        return next(ready, None if self.running or not self.waiting else self.waiting[0])

    def collect(self) -> None:
        """Move ended processes from `running` to `ended`."""
        for process in [process for process in self.running if process.has_ended()]:
            self.running.remove(process)
            self.ended.append(process)

    def stop(self) -> None:
        """Tell all running processes to save and stop, and wait for them."""
        for process in self.running:
            if not process.stop_requested:
                process.send_signal(signal.SIGTERM)
        while self.running:
            self.collect()
            time.sleep(POLL_SECONDS)

    @contextmanager
    def forward_signals(self) -> Iterator[None]:
        """Forward every signal to the running processes: the first one saves, a second one ends.

        The processes have their own sessions, so Ctrl-C reaches them only through here, once.
        Python delivers signals to the main thread; in another thread this does nothing.
        """

        def forward(number: int, frame: FrameType | None) -> None:
            self.received = self.received or number
            for process in self.running:
                process.send_signal(number)

        numbers = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # not started with nohup
            numbers.append(signal.SIGHUP)
        with ExitStack() as restored:
            with suppress(ValueError):
                for number in numbers:
                    restored.callback(signal.signal, number, signal.signal(number, forward))
            yield

    def parts(self) -> list[Part]:
        """The progress of all processes as parts of a line."""
        total = len(self.waiting) + len(self.running) + len(self.ended)
        parts = [Part(f"{len(self.ended)} of {total} done", 8)] if self.ended else []
        if self.received is not None:
            parts.append(Part("waiting for each arm to save", 9, "saving"))
        return [*parts, *(part for process in self.running for part in process.parts())]


class ArmProcess:
    """The process of an arm, with its output in `console.log` of the run folder."""

    def __init__(self, arm: Arm) -> None:
        self.arm, self.stop_requested = arm, False
        self.code: int | None = None
        self.cost = Cost(0.0, 0.0)
        self.error_file, self.log = arm.folder / ERROR_FILE, arm.folder / "console.log"
        self.status_file = arm.folder / STATUS_FILE
        RunFolder(arm.folder).check_writable()
        try:
            arm.folder.mkdir(parents=True, exist_ok=True)
            self.error_file.unlink(missing_ok=True)
            self.status_file.unlink(missing_ok=True)
            output = self.log.open("ab")
        except OSError as error:
            raise disk_error(self.log, error) from error
        with output:
            self.log_start = output.tell()
            self.started = time.monotonic()
            self.process = subprocess.Popen(
                list(arm.command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ
                | ENVIRONMENT
                | {
                    "VISTILL_ERROR_JSON": str(self.error_file),
                    STATUS_VARIABLE: str(self.status_file),
                },
                start_new_session=True,
            )

    def send_signal(self, number: int) -> None:
        """Send a signal. SIGHUP (a closed terminal) becomes SIGTERM."""
        self.stop_requested = True
        with suppress(ProcessLookupError):
            if self.code is None:
                os.kill(self.process.pid, signal.SIGTERM if number == signal.SIGHUP else number)

    def has_ended(self) -> bool:
        """Whether the process has ended; if so, set its exit code and cost."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if not pid:
            return False
        self.code = self.process.returncode = os.waitstatus_to_exitcode(status)
        self.status_file.unlink(missing_ok=True)
        scale = 2**20 if sys.platform == "darwin" else 2**10
        self.cost = Cost(time.monotonic() - self.started, usage.ru_maxrss / scale)
        return True

    def has_stopped(self) -> bool:
        """Whether the process ended because of a signal, with or without saving."""
        return self.code is not None and (self.code in STOPPED or self.code < 0)

    def parts(self) -> list[Part]:
        """The step and the accuracy from the logs of the arm, and what it does now.

        A command without a recipe has no such logs: its last line of output.
        """
        folder = RunFolder(self.arm.folder)
        last = last_record(folder.metrics)
        if self.arm.recipe is None and not last:
            line = self.last_lines(1).strip()
            return [Part(f"{self.arm.name}: {line}" if line else self.arm.name, 7, self.arm.name)]
        step = last.get("step", 0)
        accuracy = last_record(folder.evaluations).get("accuracy")
        status = read_json(self.status_file)
        total = f"/{status['steps']}" if status.get("steps") else ""
        parts = [Part(f"{self.arm.name} step {step}{total}", 7, f"{self.arm.name} {step}{total}")]
        if accuracy is not None:
            parts.append(Part(percent(accuracy), 5))
        if status.get("phase"):
            event = PhaseProgress.from_record(status["phase"])
            parts.append(Part(event.text(), 3 if step else 6, event.short_text()))
        return [*parts, Part(str(status.get("left") or ""), 6)]

    def error(self) -> VistillError:
        """The error that the process wrote; without one, its exit code and last lines of output."""
        command, name = shlex.join(self.arm.command), self.arm.name
        record = read_json(self.error_file)
        if record:
            note = "\n".join(
                part for part in (record["note"], f"to run this arm alone: {command}") if part
            )
            return error_from_dict(
                {**record, "what": f"arm {name}: {record['what']}", "note": note}
            )
        if self.code in STOPPED:
            fix = "run the same command again to continue"
            return Preempted(
                "P075", f"the arm {name} was stopped by a signal", where=str(self.log), fix=fix
            )
        assert self.code is not None, "the process is still running"
        how = f"exit code {self.code}"
        if self.code < 0:
            how = f"killed by signal {-self.code} ({signal.strsignal(-self.code)})"
        what = f"the arm {name} ended without a message: {how}"
        return ArmError("A101", what, where=str(self.log), why=self.last_lines(), fix=command)

    def last_lines(self, count: int = 6) -> str:
        """The last lines of output of this process."""
        with self.log.open("rb") as handle:
            handle.seek(self.log_start)
            return "\n".join(handle.read().decode(errors="replace").splitlines()[-count:])


def last_record(path: Path, size: int = 1 << 16) -> dict[str, Any]:
    """The last complete record of a log that another process writes; empty if there is none."""
    with suppress(OSError, ValueError):
        with path.open("rb") as handle:
            handle.seek(max(0, path.stat().st_size - size))
            complete = handle.read().rpartition(b"\n")[0]
        return json.loads(complete.rpartition(b"\n")[2])
    return {}


class ProgressLine:
    """One live line on a terminal; otherwise a line every `QUIET_SECONDS`."""

    def __init__(self) -> None:
        self.line = LiveLine(sys.stderr) if is_live(sys.stderr) else None
        self.start = self.shown = time.monotonic()

    def show(self, parts: Sequence[Part]) -> None:
        """Show the state of all arms; ignore a closed pipe."""
        now = time.monotonic()
        with suppress(BrokenPipeError):
            if self.line is not None:
                self.line.draw([Part(f"  {self.seconds():.0f} s", 4), *parts])
            elif now - self.shown > QUIET_SECONDS:
                self.shown = now
                print(f"   {join_parts(parts)}", flush=True)

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def end(self) -> None:
        """Print the duration."""
        if self.line is not None:
            self.line.clear()
        print(f"   done in {self.seconds():.0f} s", flush=True)


def add_cost(file: Path, seconds: float, costs: Mapping[Path, Cost]) -> None:
    """Add wall time and peak memory of the study and of each arm to the cost file."""
    if not costs:
        return
    before = read_json(file)
    arms = before.get("arms", {})
    for folder, cost in costs.items():
        name = folder.relative_to(file.parent).as_posix()
        earlier = arms.get(name, {"wall_seconds": 0.0, "peak_mib": 0})
        arms[name] = {
            "wall_seconds": round(earlier["wall_seconds"] + cost.wall_seconds, 1),
            "peak_mib": max(earlier["peak_mib"], round(cost.peak_mib)),
        }
    record = {
        "wall_seconds": round(before.get("wall_seconds", 0.0) + seconds, 1),
        "peak_mib_largest_process": max((arm["peak_mib"] for arm in arms.values()), default=0),
        "arms": arms,
    }
    write_json(file, record)

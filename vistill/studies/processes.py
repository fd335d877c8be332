"""Arms side by side: one process each, some at a time, one progress line, signals passed on, costs noted."""

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

from vistill.errors import ArmError, Preempted, VistillError, error_of
from vistill.report.headline import percent
from vistill.report.run_data import read_json
from vistill.runs.folder import RunFolder
from vistill.runs.storage import disk_error, write_json
from vistill.studies.arms import Arm
from vistill.training.interrupt import Interrupted

#: Seconds between two looks at the processes.
POLL_SECONDS = 0.2
#: Seconds between two progress lines where the output goes into a file.
QUIET_SECONDS = 30.0
#: One thread each: small processes next to each other beat threads. No network.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
#: Where the process of an arm writes its own error.
ERROR_FILE = "arm-error.json"
#: Exit codes of a process that saved and stopped when it was asked to.
STOPPED = (75, 130)


class Cost(NamedTuple):
    """What the process of an arm took."""

    wall_seconds: float
    peak_mib: float


def run_side_by_side(label: str, arms: Sequence[Arm], cost_file: Path, at_once: int = 2) -> None:
    """Run every arm that is not finished in a process of its own, some at a time.

    Args:
        label: what is printed before they start.
        arms: with the command of each.
        cost_file: where wall time and memory are added up; the run folders lie below its folder.
        at_once: how many run at the same time.

    Raises:
        VistillError: the first failing arm's own error; the others save and stop.
        Interrupted: a signal arrived. It was passed on, and every arm has saved and stopped.
    """
    print(f" · {label}", flush=True)
    line = ProgressLine()
    waiting: list[Arm] = []
    for arm in arms:
        if arm.is_finished():
            print(f"   {arm.name} is finished already", flush=True)
        else:
            waiting.append(arm)
    processes = Processes(waiting, at_once)
    with processes.passing_signals():
        try:
            while processes.advance():
                line.show(processes.progress())
                time.sleep(POLL_SECONDS)
        finally:
            processes.stop()
            add_cost(cost_file, line.seconds(), {p.arm.folder: p.cost for p in processes.ended})
    if processes.received is not None:
        raise Interrupted(processes.received)
    line.end()


class Processes:
    """The processes of a study: waiting, running, ended."""

    def __init__(self, arms: Sequence[Arm], at_once: int) -> None:
        self.waiting, self.at_once = list(arms), at_once
        self.running: list[ArmProcess] = []
        self.ended: list[ArmProcess] = []
        self.received: int | None = None
        """The first signal that arrived."""

    def advance(self) -> bool:
        """Note what has ended and start what may start. False when nothing runs any more.

        Raises:
            VistillError: an arm has failed.
        """
        self.collect()
        for process in self.ended:
            if process.code != 0 and not (self.received is not None and process.has_stopped()):
                raise process.error()
        while self.waiting and len(self.running) < self.at_once and self.received is None:
            process = ArmProcess(self.waiting.pop(0))
            self.running.append(process)
            if self.received is not None:  # it arrived while the process was being started
                process.ask_to_stop(self.received)
        return bool(self.running)

    def collect(self) -> None:
        """Move the processes that have ended."""
        for process in [process for process in self.running if process.has_ended()]:
            self.running.remove(process)
            self.ended.append(process)

    def stop(self) -> None:
        """Let everything that still runs save and stop, and wait for it."""
        for process in self.running:
            if not process.asked:
                process.ask_to_stop(signal.SIGTERM)
        while self.running:
            self.collect()
            time.sleep(POLL_SECONDS)

    @contextmanager
    def passing_signals(self) -> Iterator[None]:
        """Pass every signal on to each running process: the first lets it save, a second ends it at once.

        The processes have sessions of their own, so Ctrl-C reaches them only through here, once. Python delivers
        signals to the main thread; in another thread this does nothing.
        """

        def pass_on(number: int, frame: FrameType | None) -> None:
            self.received = self.received or number
            for process in self.running:
                process.ask_to_stop(number)

        numbers = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # started with nohup
            numbers.append(signal.SIGHUP)
        with ExitStack() as restored:
            with suppress(ValueError):
                for number in numbers:
                    restored.callback(signal.signal, number, signal.signal(number, pass_on))
            yield

    def progress(self) -> str:
        """Where each of them is."""
        total = len(self.waiting) + len(self.running) + len(self.ended)
        parts = [f"{len(self.ended)} of {total} done"] if self.ended else []
        parts += ["waiting for each arm to save"] if self.received is not None else []
        return "   ".join([*parts, *(process.progress() for process in self.running)])


class ArmProcess:
    """The process of an arm. Its output goes to `console.log` in the run folder."""

    def __init__(self, arm: Arm) -> None:
        self.arm, self.asked = arm, False
        self.code: int | None = None
        self.cost = Cost(0.0, 0.0)
        self.error_file, self.log = arm.folder / ERROR_FILE, arm.folder / "console.log"
        RunFolder(arm.folder).check_writable()
        try:
            arm.folder.mkdir(parents=True, exist_ok=True)
            self.error_file.unlink(missing_ok=True)
            output = self.log.open("ab")
        except OSError as error:
            raise disk_error(self.log, error) from error
        with output:
            self.printed_before = output.tell()
            self.started = time.monotonic()
            self.process = subprocess.Popen(
                list(arm.command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | ENVIRONMENT | {"VISTILL_ERROR_JSON": str(self.error_file)},
                start_new_session=True,
            )

    def ask_to_stop(self, number: int) -> None:
        """Send a signal. A closed terminal counts as SIGTERM."""
        self.asked = True
        with suppress(ProcessLookupError):
            if self.code is None:
                os.kill(self.process.pid, signal.SIGTERM if number == signal.SIGHUP else number)

    def has_ended(self) -> bool:
        """Whether it has ended; from then on its exit code and its cost are known."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if not pid:
            return False
        self.code = self.process.returncode = os.waitstatus_to_exitcode(status)
        scale = 2**20 if sys.platform == "darwin" else 2**10
        self.cost = Cost(time.monotonic() - self.started, usage.ru_maxrss / scale)
        return True

    def has_stopped(self) -> bool:
        """Whether it ended as one that was asked to: after saving, or by the signal before it listened to any."""
        return self.code is not None and (self.code in STOPPED or self.code < 0)

    def progress(self) -> str:
        """Where it is, from its own logs."""
        folder = RunFolder(self.arm.folder)
        step, accuracy = (
            last_record(folder.metrics).get("step", 0),
            last_record(folder.evaluations).get("accuracy"),
        )
        return f"{self.arm.name} step {step}" + (
            "" if accuracy is None else f" {percent(accuracy)}"
        )

    def error(self) -> VistillError:
        """Its own message with its own code; where it left none, how it ended and its last lines."""
        command, name = shlex.join(self.arm.command), self.arm.name
        record = read_json(self.error_file)
        if record:
            note = "\n".join(part for part in (record["note"], f"the arm alone: {command}") if part)
            return error_of({**record, "what": f"arm {name}: {record['what']}", "note": note})
        if self.code in STOPPED:
            fix = "run the same command again to continue"
            return Preempted(
                "P075", f"the arm {name} was stopped from outside", where=str(self.log), fix=fix
            )
        assert self.code is not None, "it still runs"
        how = f"exit code {self.code}"
        if self.code < 0:
            how = f"killed by signal {-self.code} ({signal.strsignal(-self.code)})"
        what = f"the arm {name} ended without a message: {how}"
        return ArmError("A101", what, where=str(self.log), why=self.last_lines(), fix=command)

    def last_lines(self, count: int = 6) -> str:
        """The end of what it printed; nothing of earlier processes."""
        with self.log.open("rb") as handle:
            handle.seek(self.printed_before)
            return "\n".join(handle.read().decode(errors="replace").splitlines()[-count:])


def last_record(path: Path, size: int = 1 << 16) -> dict[str, Any]:
    """The last complete line of a log that another process is writing, or nothing."""
    with suppress(OSError, ValueError):
        with path.open("rb") as handle:
            handle.seek(max(0, path.stat().st_size - size))
            whole = handle.read().rpartition(b"\n")[0]
        return json.loads(whole.rpartition(b"\n")[2])
    return {}


class ProgressLine:
    """One live line on a terminal; a line now and then where the output goes into a file."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.start = self.shown = time.monotonic()

    def show(self, text: str) -> None:
        """The state of all arms. A closed pipe ends no run."""
        now = time.monotonic()
        with suppress(BrokenPipeError):
            if self.live:
                print(
                    f"\r\x1b[K   {text}   {self.seconds():.0f} s",
                    end="",
                    flush=True,
                    file=sys.stderr,
                )
            elif now - self.shown > QUIET_SECONDS:
                self.shown = now
                print(f"   {text}", flush=True)

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.start

    def end(self) -> None:
        """How long it took."""
        if self.live:
            print(file=sys.stderr)
        print(f"   done in {self.seconds():.0f} s", flush=True)


def add_cost(file: Path, seconds: float, costs: Mapping[Path, Cost]) -> None:
    """Wall time and peak memory of a study and of each arm; what earlier calls took is added."""
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

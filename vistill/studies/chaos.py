"""`vistill selftest --chaos N`: kill a tiny run and compare the resumed run bit by bit.

A parent process loads everything once and forks each trial, so a trial takes one or two seconds. A
trial compares the SHA-256 of the final weights, `metrics.jsonl` and `evaluations.jsonl` with those
of an undisturbed run.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vistill.data.diagrams import DiagramSettings, diagram_prompts
from vistill.data.keys import keyed_generator
from vistill.errors import Preempted
from vistill.evaluation.settings import EvalSettings
from vistill.faults import VARIABLE
from vistill.models.tiny import TinySize, build_tiny
from vistill.objectives import METHODS
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.folder import RunFolder
from vistill.runtime import quiet_libraries, use_one_thread
from vistill.studies.make_tiny_models import tiny_tokenizer
from vistill.training.build import build, make_setup
from vistill.training.checkpoint import newest_checkpoint
from vistill.training.loop import run
from vistill.training.recipe import Recipe, StudentSettings, TeacherSettings
from vistill.training.settings import SaveSettings, ScheduleSettings, TrainSettings
from vistill.training.setup import ProvidedInputs, RunSetup

STEPS, PROMPTS = 9, 6
#: Fault points inside a save; a quarter of the kills use them.
SAVE_POINTS = (
    "save.begin",
    "save.snapshot",
    "save.shard",
    "save.after_weights",
    "save.after_files",
    "save.after_manifest",
    "save.after_rename",
)
PHASES = (
    "rollout.begin",
    "score.begin",
    "learn.before_update",
    "evaluate.begin",
    "save.after_files",
    "log.after_metrics",
)
SIZE = TinySize(32, 2, 2, 48, 32, 2, 4, 32)


@dataclass
class TrialCounts:
    """The results of one kind of trial: one line of `chaos.json`."""

    name: str
    tried: int = 0
    survived: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """One entry of `rows` in `chaos.json`."""
        counts = {
            "name": self.name,
            "tried": self.tried,
            "survived": self.survived,
            "seconds": round(self.seconds, 1),
        }
        return {**counts, "failures": self.failures} if self.failures else counts

    def add(self, failure: str | None) -> None:
        """Count one trial; `failure` is None if it survived."""
        self.tried += 1
        self.survived += failure is None
        if failure is not None:
            self.failures.append(failure)


class ChaosTest:
    """Runs trials in subfolders of one folder, whose storage is under test."""

    def __init__(self, folder: Path, method: str = "va_opd") -> None:
        quiet_libraries()
        use_one_thread()
        self.folder, self.method = folder, method
        self.tokenizer = tiny_tokenizer()
        self.prompts = diagram_prompts("train", PROMPTS, 0, DiagramSettings(thoughts=True))
        self.eval_prompts = diagram_prompts("val", 2, 0)
        folder.mkdir(parents=True, exist_ok=True)
        reference = folder / "reference"
        start = time.perf_counter()
        code = self.child(reference)()
        self.seconds = time.perf_counter() - start
        assert code == 0, (
            f"the undisturbed run of {method} failed: "
            f"{(folder / 'console.log').read_text()[-2000:]}"
        )
        self.expected = self.fingerprint(reference)

    def setup(self, folder: RunFolder, stop_after: int | None = None) -> RunSetup:
        """The setup of a run of a few seconds: three epochs, a checkpoint every second step."""
        student = build_tiny(SIZE, self.tokenizer, 0)
        teacher = build_tiny(SIZE, self.tokenizer, 1).freeze()
        knobs = {"gate": False} if self.method == "visual_opsd" else {}
        objective = METHODS[self.method](**knobs)
        recipe = Recipe(
            run=str(folder.path),
            student=StudentSettings("built here"),
            teacher=TeacherSettings("built here"),
            method=self.method,
            seed=5,
            train=TrainSettings(
                prompts_per_step=2, steps=STEPS, lr=3e-3, schedule=ScheduleSettings("cosine", 0.2)
            ),
            rollout=RolloutSettings(
                per_prompt=2, temperature=1.0, top_p=1.0, max_new_tokens=6, all_truncated="go_on"
            ),
            save=SaveSettings(every=2, keep=1),
            eval=EvalSettings(every=4, limit=2, max_new_tokens=6, blind=False, greedy=False),
        )
        inputs = ProvidedInputs(
            student, teacher, self.prompts, self.eval_prompts, stop_after=stop_after
        )
        return make_setup(recipe, folder, given=inputs, objective=objective)

    def go(self, folder: RunFolder, stop_after: int | None = None) -> None:
        """Train into a folder, or resume it."""
        run(build(self.setup(folder, stop_after)), folder)

    def child(
        self, folder: Path, fault: str = "", before: Callable[[], None] = lambda: None
    ) -> "ForkedProcess":
        """A child process that trains into a folder, with a fault and a function to call first."""

        def work() -> None:
            os.environ.pop(VARIABLE, None)
            if fault:
                os.environ[VARIABLE] = fault
            before()
            self.go(RunFolder(folder))

        return ForkedProcess(work, self.folder / "console.log")

    def fingerprint(self, folder: Path) -> str:
        """Hash of the final weights, the metrics and the evaluations."""
        run_folder, digest = RunFolder(folder), hashlib.sha256()
        last = newest_checkpoint(run_folder)
        assert last is not None, "no checkpoint"
        weights = last / "student" / "model.safetensors"
        for path in (weights, run_folder.metrics, run_folder.evaluations):
            digest.update(path.read_bytes())
        return f"{last.name} {digest.hexdigest()}"

    def outcome(self, folder: Path, what: str) -> str | None:
        """Resume to the end; None if the result equals the reference, else what differs."""
        code = self.child(folder)()
        if code != 0:
            return f"{what}: the resumed run ended with exit code {code}"
        actual = self.fingerprint(folder)
        if actual != self.expected:
            return f"{what}: {actual} instead of {self.expected}"
        shutil.rmtree(folder)
        return None

    def kill(self, number: int) -> str | None:
        """One trial with SIGKILL at a random instant.

        Every fourth trial kills inside a save; every fifth kills three times in a row.
        """
        rng, folder = keyed_generator("kill", number), self.folder / f"kill-{number}"
        kills = []
        for _ in range(3 if number % 5 == 4 else 1):
            if number % 4 == 3:
                point = f"{rng.choice(SAVE_POINTS)}:kill@{rng.integers(1, 5)}"
                self.child(folder, point)()
                kills.append(point)
            else:
                seconds = rng.uniform(0.05, 0.98) * self.seconds
                self.child(folder).kill_after(seconds)
                kills.append(f"after {seconds:.2f} s")
        return self.outcome(folder, f"trial {number}, killed {', '.join(kills)}")

    def terminate(self, number: int) -> str | None:
        """One trial with SIGTERM in a phase: exit code 75, a checkpoint, then the same bits."""
        rng, folder = keyed_generator("term", number), self.folder / f"term-{number}"
        point = f"{PHASES[number % len(PHASES)]}:term@{rng.integers(1, 5)}"
        start = time.perf_counter()
        code = self.child(folder, point)()
        # 0: the run ended before it checked for the signal.
        if code not in (0, Preempted.exit_code):
            return f"{point}: exit {code} after {time.perf_counter() - start:.1f} s"
        if code and newest_checkpoint(RunFolder(folder)) is None:
            return f"{point}: exit {code}, but no checkpoint"
        return self.outcome(folder, f"trial {number}, {point}")

    def rows(self, trials: int) -> list[TrialCounts]:
        """Run `trials` trials of each kind: kills and signals."""
        results = []
        for name, trial in (("sigkill", self.kill), ("sigterm", self.terminate)):
            row, start = TrialCounts(name), time.perf_counter()
            for number in range(trials):
                row.add(trial(number))
            row.seconds = time.perf_counter() - start
            results.append(row)
        return results


def run_trials(folder: Path, trials: int) -> list[TrialCounts]:
    """Run all trials in a new subfolder and remove it if all of them survived."""
    subfolder = folder / f"chaos-{os.getpid()}"
    rows = ChaosTest(subfolder).rows(trials)
    if all(row.survived == row.tried for row in rows):
        shutil.rmtree(subfolder)
    return rows


def format_report(rows: Sequence[TrialCounts]) -> str:
    """One line per kind of trial, then the failures."""
    lines = [
        f"{row.name:<10} {row.survived} of {row.tried} ended with the same bits"
        f"   {row.seconds:.0f} s"
        for row in rows
    ]
    return "\n".join([*lines, *(f"failed: {text}" for row in rows for text in row.failures)])


class ForkedProcess:
    """A forked process that calls a function and writes its output to a log."""

    def __init__(self, work: Callable[[], None], log: Path) -> None:
        self.work, self.log = work, log

    def start(self) -> int:
        """Fork and return the pid; the child ends after its work."""
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            return pid
        code, log = 1, self.log.open("a", encoding="utf-8", buffering=1)
        try:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            self.work()
            code = 0
        except Preempted as stop:
            code = stop.exit_code
        except BaseException:  # noqa: BLE001  log every error; the child ends here
            import traceback

            traceback.print_exc(file=log)
        finally:
            os._exit(code)

    def __call__(self) -> int:
        """Run to the end; return the exit code, or minus the signal that ended the child."""
        _, status = os.waitpid(self.start(), 0)
        return os.waitstatus_to_exitcode(status)

    def kill_after(self, seconds: float) -> None:
        """Start the child and send SIGKILL after some seconds, unless it has ended."""
        pid = self.start()
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

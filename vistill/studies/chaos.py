"""`vistill selftest --chaos N`: a tiny run is killed again and again on your storage, and must end with the same bits.

A parent loads everything once and forks each trial, so a trial takes a second or two. What is compared is the SHA-256
of the final weights, of `metrics.jsonl` and of `evaluations.jsonl` with those of a run nobody disturbed.
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
from vistill.training.recipe import ModelSettings, Recipe
from vistill.training.settings import SaveSettings, ScheduleSettings, TrainSettings
from vistill.training.setup import ProvidedInputs, RunSetup

STEPS, PROMPTS = 9, 6
#: Points inside a save, where a quarter of the kills happen.
SAVE_POINTS = (
    "save.begin",
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
class Row:
    """One line of `chaos.json`."""

    name: str
    tried: int = 0
    survived: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """One entry of `rows`."""
        counts = {
            "name": self.name,
            "tried": self.tried,
            "survived": self.survived,
            "seconds": round(self.seconds, 1),
        }
        return {**counts, "failures": self.failures} if self.failures else counts

    def note(self, failure: str | None) -> None:
        """Count a trial."""
        self.tried += 1
        self.survived += failure is None
        if failure is not None:
            self.failures.append(failure)


class Chaos:
    """Trials below one folder; the storage under test is the one that folder lies on."""

    def __init__(self, folder: Path, method: str = "va_opd") -> None:
        quiet_libraries()
        use_one_thread()
        self.folder, self.method = folder, method
        self.tokenizer = tiny_tokenizer()
        self.prompts = diagram_prompts("train", PROMPTS, 0, DiagramSettings(thoughts=True))
        self.held = diagram_prompts("val", 2, 0)
        folder.mkdir(parents=True, exist_ok=True)
        reference = folder / "reference"
        start = time.perf_counter()
        code = self.forked(reference)()
        self.seconds = time.perf_counter() - start
        assert code == 0, (
            f"the undisturbed run of {method} failed: {(folder / 'console.log').read_text()[-2000:]}"
        )
        self.expected = self.fingerprint(reference)

    def setup(self, folder: RunFolder, stop_after: int | None = None) -> RunSetup:
        """A run of a few seconds: three epochs, evaluations, checkpoints every second step."""
        student, teacher = (
            build_tiny(SIZE, self.tokenizer, 0),
            build_tiny(SIZE, self.tokenizer, 1).freeze(),
        )
        objective = METHODS[self.method](
            **({"gate": False} if self.method == "visual_opsd" else {})
        )
        recipe = Recipe(
            run=str(folder.path),
            student=ModelSettings("built here"),
            teacher=ModelSettings("built here"),
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
        given = ProvidedInputs(student, teacher, self.prompts, self.held, stop_after=stop_after)
        return make_setup(recipe, folder, given=given, objective=objective)

    def go(self, folder: RunFolder, stop_after: int | None = None) -> None:
        """Train into a folder, from wherever it is."""
        run(build(self.setup(folder, stop_after)), folder)

    def forked(
        self, folder: Path, fault: str = "", before: Callable[[], None] = lambda: None
    ) -> "Child":
        """A child that trains into a folder."""

        def work() -> None:
            os.environ.pop(VARIABLE, None)
            if fault:
                os.environ[VARIABLE] = fault
            before()
            self.go(RunFolder(folder))

        return Child(work, self.folder / "console.log")

    def fingerprint(self, folder: Path) -> str:
        """Hash of the final weights and of everything that must be reproduced."""
        place, digest = RunFolder(folder), hashlib.sha256()
        last = newest_checkpoint(place)
        assert last is not None, "no checkpoint"
        for path in (last / "student" / "model.safetensors", place.metrics, place.evaluations):
            digest.update(path.read_bytes())
        return f"{last.name} {digest.hexdigest()}"

    def outcome(self, folder: Path, what: str) -> str | None:
        """Run to the end by repeating the command; None where the result is the reference's."""
        code = self.forked(folder)()
        if code != 0:
            return f"{what}: repeating the command ended with {code}"
        found = self.fingerprint(folder)
        if found != self.expected:
            return f"{what}: {found} instead of {self.expected}"
        shutil.rmtree(folder)
        return None

    def kill(self, number: int) -> str | None:
        """One trial: killed at a random instant, every fourth inside a save, every fifth three times in a row."""
        rng, folder = keyed_generator("kill", number), self.folder / f"kill-{number}"
        told = []
        for _ in range(3 if number % 5 == 4 else 1):
            if number % 4 == 3:
                point = f"{rng.choice(SAVE_POINTS)}:kill@{rng.integers(1, 5)}"
                self.forked(folder, point)()
                told.append(point)
            else:
                after = rng.uniform(0.05, 0.98) * self.seconds
                self.forked(folder).killed_after(after)
                told.append(f"after {after:.2f} s")
        return self.outcome(folder, f"trial {number}, killed {', '.join(told)}")

    def terminate(self, number: int) -> str | None:
        """One trial: SIGTERM in a phase; a valid checkpoint or nothing yet, exit 75, then the same bits."""
        rng, folder = keyed_generator("term", number), self.folder / f"term-{number}"
        point = f"{PHASES[number % len(PHASES)]}:term@{rng.integers(1, 5)}"
        start = time.perf_counter()
        code = self.forked(folder, point)()
        if code not in (
            0,
            Preempted.exit_code,
        ):  # 0: the last phase was over before the flag was looked at
            return f"{point}: exit {code} after {time.perf_counter() - start:.1f} s"
        if code and newest_checkpoint(RunFolder(folder)) is None:
            return f"{point}: exit {code}, but no checkpoint"
        return self.outcome(folder, f"trial {number}, {point}")

    def rows(self, trials: int) -> list[Row]:
        """Kills and signals, so many trials each."""
        made = []
        for name, trial in (("sigkill", self.kill), ("sigterm", self.terminate)):
            row, start = Row(name), time.perf_counter()
            for number in range(trials):
                row.note(trial(number))
            row.seconds = time.perf_counter() - start
            made.append(row)
        return made


def selftest_rows(folder: Path, trials: int) -> list[Row]:
    """Kills and signals below a folder of our own, which is removed where everything survived."""
    place = folder / f"chaos-{os.getpid()}"
    rows = Chaos(place).rows(trials)
    if all(row.survived == row.tried for row in rows):
        shutil.rmtree(place)
    return rows


def report_of(rows: Sequence[Row]) -> str:
    """One line a row, then what failed."""
    lines = [
        f"{row.name:<10} {row.survived} of {row.tried} ended with the same bits   {row.seconds:.0f} s"
        for row in rows
    ]
    return "\n".join([*lines, *(f"failed: {text}" for row in rows for text in row.failures)])


class Child:
    """A forked process that does some work."""

    def __init__(self, work: Callable[[], None], log: Path) -> None:
        self.work, self.log = work, log

    def start(self) -> int:
        """Fork; the child never returns."""
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
        except BaseException:  # noqa: BLE001  whatever happened is written down, and the child ends here
            import traceback

            traceback.print_exc(file=log)
        finally:
            os._exit(code)

    def __call__(self) -> int:
        """Wait for its end; the exit status, or minus the signal that ended it."""
        _, status = os.waitpid(self.start(), 0)
        return os.waitstatus_to_exitcode(status)

    def killed_after(self, seconds: float) -> None:
        """SIGKILL after so long, unless it has ended."""
        pid = self.start()
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

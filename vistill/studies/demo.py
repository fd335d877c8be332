"""`vistill demo`: both arms side by side, one thread each, then the report and one honest sentence."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistill.errors import ConfigError
from vistill.report.page import write_report
from vistill.report.reading import read_run
from vistill.report.sheet import write_sheet
from vistill.report.verdict import percent, sentence
from vistill.runs.folder import RunFolder
from vistill.runs.storage import read_lines, write_json

ARMS = ("opd", "va_opd")
#: Below this a teacher is reported as weak.
GOOD_TEACHER = 0.90


@dataclass
class Job:
    """A child process and the run folder it writes into."""

    name: str
    command: list[str]
    folder: Path
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """One thread, no network, output into the run folder's log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with (self.folder / "console.log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=environment)

    def code(self) -> int | None:
        """The exit status, or None while it runs."""
        assert self.process is not None
        return self.process.poll()

    def progress(self) -> str:
        """Where it is, from its own logs."""
        metrics = list(read_lines(self.folder / "metrics.jsonl"))
        evaluations = list(read_lines(self.folder / "evaluations.jsonl"))
        step = metrics[-1]["step"] if metrics else 0
        accuracy = f" {percent(evaluations[-1].get('accuracy'))}" if evaluations else ""
        return f"{self.name} step {step}{accuracy}"


def vistill_command(*words: str) -> list[str]:
    """This interpreter, this package."""
    return [sys.executable, "-m", "vistill", *words]


def run_demo(run: Path, seeds: int = 1, from_scratch: bool = False) -> None:
    """The whole demo; everything is written below `run`. A second call with the same folder resumes."""
    started = time.monotonic()
    print(f"vistill demo · {os.cpu_count()} cores · no network needed · 2 to 3 minutes a seed · writing to {run}")
    models: list[str] = []
    if from_scratch:
        models = raise_both(run / "models")
    paths: list[Path] = []
    for seed in range(seeds):
        base = run if seeds == 1 else run / f"seed-{seed}"
        settings = [f"run={base}", f"seed={seed}", f"data.diagrams.seed={seed}", *models]
        jobs = [Job(arm, vistill_command("train", "demo.yaml", *settings, "--stage", arm), base / arm) for arm in ARMS]
        label = "distilling with opd and va_opd" + (f", seed {seed}" if seeds > 1 else "")
        run_jobs(label, jobs)
        paths += [job.folder for job in jobs]
    page = write_report(paths[: len(ARMS)], run / "report.html")
    write_comparison(paths, run / "compare.csv")
    note_cost(run, time.monotonic() - started)
    tell(paths, seeds, page, time.monotonic() - started)


def run_jobs(label: str, jobs: Sequence[Job]) -> None:
    """Run all jobs at once and show where they are; a failing one stops the others and shows its own message."""
    live = sys.stderr.isatty()
    start = told = time.monotonic()
    print(f" · {label}", flush=True)
    for job in jobs:
        job.start()
    try:
        while any(job.code() is None for job in jobs):
            for job in jobs:
                if job.code() not in (None, 0):
                    raise ConfigError(
                        "C101", f"the arm {job.name} stopped", why=last_words(job), fix=" ".join(job.command)
                    )
            if not live and time.monotonic() - told > 30:
                told = time.monotonic()
                print("   " + "   ".join(job.progress() for job in jobs), flush=True)
            if live:
                text = "   ".join(job.progress() for job in jobs)
                print(f"\r\x1b[K   {text}   {time.monotonic() - start:.0f} s", end="", flush=True, file=sys.stderr)
            time.sleep(0.5)
    finally:
        for job in jobs:
            if job.code() is None and job.process is not None:
                job.process.terminate()
                job.process.wait()
    for job in jobs:
        if job.code() != 0:
            raise ConfigError("C101", f"the arm {job.name} stopped", why=last_words(job), fix=" ".join(job.command))
    if live:
        print(file=sys.stderr)
    print(f"   done in {time.monotonic() - start:.0f} s", flush=True)


def last_words(job: Job) -> str:
    """The end of a job's own output."""
    return "\n".join((job.folder / "console.log").read_text(errors="replace").splitlines()[-6:])


def raise_both(folder: Path) -> list[str]:
    """Raise teacher and student anew, in parallel, and point the recipe at them."""
    names = ("teacher", "student")
    jobs = [
        Job(
            name,
            [sys.executable, "-m", "vistill.studies.raising", name, str(folder / name)],
            folder / f"{name}-log",
        )
        for name in names
    ]
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)
    run_jobs("raising a teacher and a student from nothing", jobs)
    for name in names:
        card = json.loads((folder / name / "CARD.json").read_text())
        read = card["measured"]
        pixelated = percent(read["pixelated"])
        print(
            f"   {name}: {percent(read['greedy'])} greedy, {percent(read['sampled'])} at T = 1, pixelated {pixelated}"
        )
        if name == "teacher" and read["greedy"] < GOOD_TEACHER:
            print(f"   note: this teacher is below {percent(GOOD_TEACHER)}; what follows is measured with it anyway")
    return [f"{name}.model={folder / name}" for name in names]


def write_comparison(paths: Sequence[Path], out: Path) -> None:
    """`compare.csv`: first and last evaluation of every arm; formulas are defused for spreadsheets."""
    rows: list[dict[str, Any]] = []
    for path in paths:
        evaluations = RunFolder(path).read(RunFolder(path).evaluations)
        rows += [{"run": str(path), **record} for record in (evaluations[0], evaluations[-1])]
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_sheet(out, names, rows)


def note_cost(run: Path, seconds: float) -> None:
    """Wall time and the children's peak memory, for the lab notes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    write_json(run / "cost.json", {"wall_seconds": round(seconds, 1), "peak_mib_largest_process": round(peak)})


def spread(paths: Sequence[Path], seeds: int) -> str:
    """Accuracy over seeds: each value, mean and standard deviation of the paired difference."""
    accuracy: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for path in paths:
        accuracy[path.name].append(read_run(path).last["accuracy"])
    lines = [f"   {arm}: " + ", ".join(percent(v) for v in values) for arm, values in accuracy.items()]
    deltas = [b - a for a, b in zip(*accuracy.values(), strict=True)]
    mean = sum(deltas) / seeds
    deviation = (sum((d - mean) ** 2 for d in deltas) / (seeds - 1)) ** 0.5
    paired = f"{100 * mean:+.1f} points, standard deviation {100 * deviation:.1f} over {seeds} seeds"
    lines.append(f"   va_opd minus opd, paired: {paired}")
    return "\n".join(lines)


def tell(paths: Sequence[Path], seeds: int, page: Path, seconds: float) -> None:
    """What was measured, in one sentence; where to look; what to do next."""
    print()
    if seeds > 1:
        print(spread(paths, seeds))
    print("   " + sentence([read_run(path) for path in paths[: len(ARMS)]]))
    print(f"   Open   {page}   ({page.stat().st_size / 1024:.0f} KB, works offline; {seconds:.0f} s in all)")
    print("   Next   vistill init va-opd --data YOUR.jsonl      your first recipe")

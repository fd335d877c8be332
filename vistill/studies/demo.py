"""`vistill demo`: train opd and va_opd side by side from the same start, then write the report."""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vistill.display.wrapping import fit_to
from vistill.report.csv_file import write_csv
from vistill.report.headline import headline, percent
from vistill.report.page import write_report
from vistill.report.run_data import read_json, read_run
from vistill.runs.folder import RunFolder
from vistill.studies.arms import Arm, SeedComparison, check_matched, compare_arms, make_arms
from vistill.studies.processes import run_side_by_side

METHODS = ("opd", "va_opd")
#: The demo prints a note if the greedy accuracy of a new teacher is below this.
GOOD_TEACHER = 0.90


def run_demo(run: Path, seeds: int = 1, from_scratch: bool = False) -> None:
    """Run the demo in the folder `run`. A second call with the same folder resumes."""
    started = time.monotonic()
    print_line(
        f"vistill demo · {os.cpu_count()} cores · no network needed · 2 to 3 minutes per seed"
        f" · writing to {run}"
    )
    models = train_models(run / "models", run / "cost.json") if from_scratch else []
    by_seed = [make_seed_arms(run, seed, seeds, models) for seed in range(seeds)]
    for seed, arms in enumerate(by_seed):
        label = "distilling with opd and va_opd" + (f", seed {seed}" if seeds > 1 else "")
        run_side_by_side(label, arms, run / "cost.json")
    paths = [arm.folder for arms in by_seed for arm in arms]
    page = write_report(paths[: len(METHODS)], run / "report.html")
    write_comparison(paths, run / "compare.csv")
    lines = seed_lines(compare_arms(*zip(*by_seed, strict=True))) if seeds > 1 else []
    print_comparison(paths[: len(METHODS)], lines, page, time.monotonic() - started)


def make_seed_arms(run: Path, seed: int, seeds: int, models: Sequence[str]) -> list[Arm]:
    """Make the arms of one seed; C301 if they do not match."""
    folder = run if seeds == 1 else run / f"seed-{seed}"
    settings = [f"run={folder}", f"seed={seed}", f"data.diagrams.seed={seed}", *models]
    arms = {arm.name: arm for arm in make_arms("demo.yaml", settings)}
    matched = [arms[name] for name in METHODS]
    check_matched(matched)
    return matched


def train_models(folder: Path, cost_file: Path) -> list[str]:
    """Train teacher and student from scratch, side by side; return the overrides that use them."""
    names = ("teacher", "student")
    arms = []
    for name in names:
        target = folder / name
        command = (sys.executable, "-m", "vistill.studies.make_tiny_models", name, str(target))
        arms.append(
            Arm(
                name,
                folder / f"{name}-log",
                command=command,
                done=lambda target=target: is_complete_model(target),
            )
        )
        if not is_complete_model(target):
            shutil.rmtree(target, ignore_errors=True)
    run_side_by_side("training a teacher and a student from scratch", arms, cost_file)
    for name in names:
        accuracy = read_json(folder / name / "CARD.json")["measured"]
        greedy, sampled = percent(accuracy["greedy"]), percent(accuracy["sampled"])
        pixelated = percent(accuracy["pixelated"])
        print_line(
            f"   {name}: {greedy} greedy, {sampled} at T = 1, {pixelated} with pixelated image"
        )
        if name == "teacher" and accuracy["greedy"] < GOOD_TEACHER:
            print_line(f"   note: the accuracy of this teacher is below {percent(GOOD_TEACHER)}")
    return [f"{name}.model={folder / name}" for name in names]


def is_complete_model(model: Path) -> bool:
    """Whether the weights of a folder match its card, which is written last."""
    weights, card = model / "model.safetensors", read_json(model / "CARD.json")
    return (
        weights.is_file() and card.get("sha256") == hashlib.sha256(weights.read_bytes()).hexdigest()
    )


def write_comparison(paths: Sequence[Path], out: Path) -> None:
    """Write `compare.csv`: the first and the last evaluation of every arm."""
    rows: list[dict[str, Any]] = []
    for path in paths:
        evaluations = RunFolder(path).read(RunFolder(path).evaluations)
        rows += [{"run": str(path), **record} for record in (*evaluations[:1], *evaluations[-1:])]
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_csv(out, names, rows)


def seed_lines(comparison: SeedComparison) -> list[str]:
    """Lines with the accuracy of each seed and the paired difference over seeds."""
    lines = [
        f"   {name}: " + ", ".join(map(percent, values))
        for name, values in comparison.accuracy.items()
    ]
    deviation = comparison.deviation
    assert deviation is not None, "one seed has no deviation"
    paired = f"{100 * comparison.mean:+.1f} points, standard deviation {100 * deviation:.1f}"
    names = f"{comparison.other} minus {comparison.base}"
    return [*lines, f"   {names}, paired: {paired} over {len(comparison.seeds)} seeds"]


def print_comparison(
    paths: Sequence[Path], lines: Sequence[str], page: Path, seconds: float
) -> None:
    """Print the measured result, the path of the report and the next command."""
    print()
    for line in lines:
        print_line(line)
    for sentence in headline([read_run(path) for path in paths]).removesuffix(".").split(". "):
        print_line(f"   {sentence}.")
    print_line(
        f"   Open   {page}   ({page.stat().st_size / 1024:.0f} KB, works offline;"
        f" {seconds:.0f} s in total)"
    )
    print_line("   Next   vistill init va-opd --data YOUR.jsonl      your first recipe")


def print_line(line: str) -> None:
    """Print a line, in whole words on a terminal."""
    print(fit_to(line, sys.stdout))

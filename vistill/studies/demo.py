"""`vistill demo`: opd and va_opd side by side from the same start, then the report and one honest sentence."""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vistill.report.csv_file import write_sheet
from vistill.report.headline import percent, sentence
from vistill.report.page import write_report
from vistill.report.run_data import read_json, read_run
from vistill.runs.folder import RunFolder
from vistill.studies.arms import Arm, Comparison, arms_of, check_matched, compare
from vistill.studies.processes import run_side_by_side

METHODS = ("opd", "va_opd")
#: Below this a teacher is reported as weak.
GOOD_TEACHER = 0.90


def run_demo(run: Path, seeds: int = 1, from_scratch: bool = False) -> None:
    """The whole demo; everything is written below `run`. A second call with the same folder resumes."""
    started = time.monotonic()
    print(
        f"vistill demo · {os.cpu_count()} cores · no network needed · 2 to 3 minutes a seed · writing to {run}"
    )
    models = train_models(run / "models", run / "cost.json") if from_scratch else []
    by_seed = [arms_of_seed(run, seed, seeds, models) for seed in range(seeds)]
    for seed, arms in enumerate(by_seed):
        label = "distilling with opd and va_opd" + (f", seed {seed}" if seeds > 1 else "")
        run_side_by_side(label, arms, run / "cost.json")
    paths = [arm.folder for arms in by_seed for arm in arms]
    page = write_report(paths[: len(METHODS)], run / "report.html")
    write_comparison(paths, run / "compare.csv")
    lines = spread(compare(*zip(*by_seed, strict=True))) if seeds > 1 else []
    print_comparison(paths[: len(METHODS)], lines, page, time.monotonic() - started)


def arms_of_seed(run: Path, seed: int, seeds: int, models: Sequence[str]) -> list[Arm]:
    """Both methods with the same student, teacher, data and seed (C301 where they are not)."""
    folder = run if seeds == 1 else run / f"seed-{seed}"
    settings = [f"run={folder}", f"seed={seed}", f"data.diagrams.seed={seed}", *models]
    arms = {arm.name: arm for arm in arms_of("demo.yaml", settings)}
    matched = [arms[name] for name in METHODS]
    check_matched(matched)
    return matched


def train_models(folder: Path, cost_file: Path) -> list[str]:
    """Train teacher and student from nothing, side by side, and point the recipe at them."""
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
                done=lambda target=target: is_whole(target),
            )
        )
        if not is_whole(target):
            shutil.rmtree(target, ignore_errors=True)
    run_side_by_side("raising a teacher and a student from nothing", arms, cost_file)
    for name in names:
        read = read_json(folder / name / "CARD.json")["measured"]
        pixelated = percent(read["pixelated"])
        print(
            f"   {name}: {percent(read['greedy'])} greedy, {percent(read['sampled'])} at T = 1, pixelated {pixelated}"
        )
        if name == "teacher" and read["greedy"] < GOOD_TEACHER:
            print(
                f"   note: this teacher is below {percent(GOOD_TEACHER)}; what follows is measured with it anyway"
            )
    return [f"{name}.model={folder / name}" for name in names]


def is_whole(model: Path) -> bool:
    """Whether a folder holds the weights that its card, which is written last, describes."""
    weights, card = model / "model.safetensors", read_json(model / "CARD.json")
    return (
        weights.is_file() and card.get("sha256") == hashlib.sha256(weights.read_bytes()).hexdigest()
    )


def write_comparison(paths: Sequence[Path], out: Path) -> None:
    """`compare.csv`: first and last evaluation of every arm; formulas are defused for spreadsheets."""
    rows: list[dict[str, Any]] = []
    for path in paths:
        evaluations = RunFolder(path).read(RunFolder(path).evaluations)
        rows += [{"run": str(path), **record} for record in (*evaluations[:1], *evaluations[-1:])]
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_sheet(out, names, rows)


def spread(comparison: Comparison) -> list[str]:
    """Accuracy over seeds: each value, mean and standard deviation of the paired difference."""
    lines = [
        f"   {name}: " + ", ".join(map(percent, values))
        for name, values in comparison.accuracy.items()
    ]
    deviation = comparison.deviation
    assert deviation is not None, "one seed has no spread"
    paired = f"{100 * comparison.mean:+.1f} points, standard deviation {100 * deviation:.1f}"
    names = f"{comparison.other} minus {comparison.base}"
    return [*lines, f"   {names}, paired: {paired} over {len(comparison.seeds)} seeds"]


def print_comparison(
    paths: Sequence[Path], lines: Sequence[str], page: Path, seconds: float
) -> None:
    """What was measured, in one sentence; where to look; what to do next."""
    print()
    for line in lines:
        print(line)
    print("   " + sentence([read_run(path) for path in paths]))
    print(
        f"   Open   {page}   ({page.stat().st_size / 1024:.0f} KB, works offline; {seconds:.0f} s in all)"
    )
    print("   Next   vistill init va-opd --data YOUR.jsonl      your first recipe")

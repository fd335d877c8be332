"""Compare the demo with that of the version before prefix sharing.

    python benchmarks/demo_before.py

Check out the old package next to this one and run both demos in turn. Both start from the same
weights and write the same responses before the first step. The old answer checker counts one of
these 1,024 as correct that states first 9, then 2 (gold 2): 235 against 234. The ends differ
because the old learning rate warmed up above its peak.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).parent.parent
#: The last commit in which every sibling reads its own prompt.
BEFORE = "b542d48"


def checkout(folder, commit=BEFORE):
    """Extract an old package and its recipes; return None if this clone has no history."""
    folder.mkdir()
    archive = folder / "before.tar"
    command = [
        "git",
        "-C",
        str(REPO),
        "archive",
        "--output",
        str(archive),
        commit,
        "vistill",
        "recipes",
    ]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return None
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    if not (folder / "vistill" / "recipes").exists():
        (folder / "vistill" / "recipes").symlink_to(folder / "recipes")
    # The old package imports transformers first, which fails where torchvision is a CUDA build.
    helper = REPO / "vistill" / "models" / "torchvision_operators.py"
    (folder / helper.name).write_text(helper.read_text())
    (folder / "sitecustomize.py").write_text(
        "import torchvision_operators\ntorchvision_operators.make_torchvision_importable()\n"
    )
    return folder


def demo(package, run):
    """Run one demo; return its seconds and each arm's evaluations."""
    environment = os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    where = [sys.executable, "-c", "import vistill; print(vistill.__file__)"]
    location = subprocess.run(
        where, env=environment, capture_output=True, text=True, check=True, cwd=run.parent
    ).stdout
    assert Path(location.strip()).is_relative_to(package), (
        f"{location.strip()} would be timed instead of {package}"
    )
    start = time.perf_counter()
    command = [sys.executable, "-m", "vistill", "demo", "--run", str(run)]
    subprocess.run(command, env=environment, capture_output=True, check=True, cwd=run.parent)
    seconds = time.perf_counter() - start
    arms = {}
    for path in sorted(run.glob("*/evaluations.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        arms[path.parent.name] = [(r["step"], r["accuracy"]) for r in lines]
    return seconds, arms


def demo_rows(row, repeats):
    """Measure the best wall time over that of the old version; compare the accuracies."""
    with tempfile.TemporaryDirectory() as name:
        # Not next to the old package: `-m` searches the working folder first.
        folder = Path(name) / "runs"
        folder.mkdir()
        before = checkout(Path(name) / "before")
        if before is None:
            print(f"demo_arms_over_before left out: this clone has no commit {BEFORE}")
            print("get it with: git fetch --unshallow")
            return []
        times, accuracies = {"before": [], "now": []}, {}
        for turn in range(repeats):
            for side, package in (("before", before), ("now", REPO)):
                seconds, accuracies[side] = demo(package, folder / f"{side}-{turn}")
                times[side].append(seconds)
    assert accuracies["now"], "the demo wrote no evaluations"
    first = {
        side: {arm: values[0] for arm, values in arms.items()} for side, arms in accuracies.items()
    }
    last = {side: [values[-1][1] for values in arms.values()] for side, arms in accuracies.items()}
    best = {side: min(values) for side, values in times.items()}
    text = f"{BEFORE}, {best['before']:.0f} s; ours {best['now']:.0f} s, best of {repeats}; "
    start = {side: next(iter(values.values()))[1] for side, values in first.items()}
    text += f"accuracy at the start {start['now']:.4f}, before {start['before']:.4f}"
    text += f"; at the end {last['now']}, before {last['before']}"
    return [row("demo_arms_over_before", best["now"] / best["before"], "ratio", text)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=2)
    for line in demo_rows(lambda *values: values, parser.parse_args().repeats):
        print(*line)

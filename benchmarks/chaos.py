"""`make chaos N=200`: the promises of docs/reliability.md, tried so many times; writes `benchmarks/results/chaos.json`.

N counts the SIGKILL trials; the other rows scale with it. What needs a mount (disk_full) is left out with a word where
this process may not mount.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

REPO = Path(__file__).parent.parent
sys.path.insert(0, str(REPO / "tests" / "faults"))

import torch

from vistill.data.loading import load_rows
from vistill.data.settings import DataSettings
from vistill.objectives import METHODS
from vistill.runs.folder import RunFolder
from vistill.studies.chaos import Chaos, Row
from vistill.training.build import build
from vistill.training.checkpoint import weights_hash
from vistill.training.loop import run

OUT = Path(__file__).parent / "results" / "chaos.json"


def timed(row, trials):
    """A row of trials, each None where it survived."""
    start = time.perf_counter()
    for trial in trials:
        row.note(trial)
    row.seconds = time.perf_counter() - start
    print(f"{row.name:<20} {row.survived} of {row.tried}   {row.seconds:.0f} s", flush=True)
    return row


def stops(folder, methods):
    """Stop after every single step of three epochs, then repeat the command."""
    for method in methods:
        chaos = Chaos(folder / method, method)
        last = int(chaos.expected.split()[0].split("-")[1])
        for step in range(1, last):
            place = chaos.folder / f"stop-{step}"
            plain = chaos.plan
            chaos.plan = lambda plain=plain, step=step: replace(plain(), stop_after=step)
            code = chaos.forked(place)()
            chaos.plan = plain
            yield (
                f"{method}, step {step}: exit {code}"
                if code
                else chaos.outcome(place, f"{method}, step {step}")
            )


def full_disks(chaos, budgets):
    """A file system of so many bytes fills up; after it has grown the same command ends with the same bits."""
    place = chaos.folder / "disk"
    place.mkdir()
    for number, megabytes in enumerate(budgets):
        mount = [
            "mount",
            "-t",
            "tmpfs",
            "-o",
            f"size={int(megabytes * 1024)}k",
            "tmpfs",
            str(place),
        ]
        subprocess.run(mount, check=True)
        try:
            folder = place / f"run-{number}"
            code = chaos.forked(folder)()
            subprocess.run(["mount", "-o", "remount,size=256m", str(place)], check=True)
            yield chaos.outcome(folder, f"{megabytes:.2f} MB, exit {code}")
        finally:
            subprocess.run(["umount", str(place)], check=True)


def may_mount(folder):
    """Whether this process may mount a file system in memory."""
    place = folder / "probe"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode == 0:
        subprocess.run(["umount", str(place)], check=True)
    return done.returncode == 0


def power_cuts(folder, most):
    """Every prefix of a recorded run times the losses of what was not synced."""
    from crash_states import Recorder
    from test_crash_states import check_states

    chaos, place = Chaos(folder / "chaos"), RunFolder(folder / "run")
    place.path.mkdir()
    recorder = Recorder(place.path)
    with recorder.watching():
        chaos.go(place, stop_after=8)
    tried, wrong = check_states(recorder.operations, folder, most)
    yield from wrong
    yield from [None] * (tried - len(wrong))


def bad_rows(folder, chaos, rows, bad):
    """Planted rows of every kind: one trial a row, lost where it was not set aside or where weights are not the cleaned file's."""
    from bad_rows import write_data_files

    dirty, clean, codes = write_data_files(folder / "data", rows, bad)
    hashes, found = [], {}
    for file in (dirty, clean):
        data = load_rows(str(file), DataSettings(train=str(file), max_bad_share=0.5), None)
        found |= {int(q.where.split("jsonl:")[1].split()[0]): q.code for q in data.quarantined}
        place = RunFolder(folder / file.stem)
        setup = chaos.setup(place)
        setup.recipe = replace(setup.recipe, train=replace(setup.recipe.train, steps=20))
        setup.provided = replace(setup.provided, train_prompts=data.prompts)
        plan = build(setup)
        run(plan, place)
        hashes.append((weights_hash(plan.models.student), place.metrics.read_text()))
    others = "weights are not those of the cleaned file" if hashes[0] != hashes[1] else None
    yield from [
        others or (f"line {n}: {c}, got {found.get(n)}" if found.get(n) != c else None)
        for n, c in codes.items()
    ]
    yield from [f"line {n} set aside: {c}" for n, c in found.items() if n not in codes]


def tests(words):
    """Tests as trials."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report.name}", *words]
        subprocess.run(
            command,
            cwd=REPO,
            capture_output=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        cases = ElementTree.parse(report.name).getroot().iter("testcase")
        yield from [case.get("name") if len(case) else None for case in cases]


def tasks(folder, n):
    """Every row: name, and what makes its trials."""
    chaos = Chaos(folder / "first")
    rows, bad = (10_000, 100) if n >= 50 else (400, 25)
    budgets = max(4, min(64, n // 3))
    return {
        "sigkill": lambda: map(chaos.kill, range(n)),
        "stop_at_every_step": lambda: stops(folder / "stops", METHODS if n >= 50 else ["va_opd"]),
        "crash_states": lambda: power_cuts(folder, most=max(4, min(64, n // 4))),
        "sigterm": lambda: map(chaos.terminate, range(max(4, n // 4))),
        "disk_full": lambda: full_disks(chaos, [0.1 + 6.0 * i / budgets for i in range(budgets)]),
        "bad_rows": lambda: bad_rows(folder / "rows", chaos, rows, bad),
        "mistakes": lambda: tests(["tests/faults/test_mistakes.py"]),
        "blindness": lambda: tests(
            ["tests/training/test_canary.py", "-k", "blind or caught", "-m", "not slow"]
        ),
        "malicious": lambda: tests(["tests/faults/test_malicious.py"]),
    }


def run_rows(folder, args):
    """The rows that are asked for, each written as soon as it is done, in place of an earlier one of its name."""
    made = tasks(folder, args.n)
    if not may_mount(folder):
        print("disk_full left out: this process may not mount a file system")
        del made["disk_full"]
    earlier = json.loads(args.out.read_text())["rows"] if args.rows and args.out.exists() else []
    found = {row["name"]: row for row in earlier}
    about = {
        "command": f"make chaos N={args.n}",
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in args.rows or made:
        found[name] = timed(Row(name), made[name]()).to_dict()
        rows = [found[name] for name in made if name in found]
        args.out.write_text(json.dumps({"rows": rows, "about": about}, indent=2) + "\n")
    return list(found.values())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("n", type=int, nargs="?", default=200)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--rows", nargs="*", help="only these rows, into the last results")
    args = parser.parse_args()
    memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        rows = run_rows(Path(name), args)
    print(f"written to {args.out}")
    sys.exit(0 if all(row["tried"] == row["survived"] for row in rows) else 1)


if __name__ == "__main__":
    main()

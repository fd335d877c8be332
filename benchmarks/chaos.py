"""`make chaos N=200`: try the promises of docs/reliability.md N times.

Write `benchmarks/results/chaos.json`. N is the number of SIGKILL trials; the other rows scale with
it. The row disk_full needs a mount. If this process may not mount, the row is left out and a
message says so.
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
from functools import partial
from pathlib import Path

REPO = Path(__file__).parent.parent
sys.path.insert(0, str(REPO / "tests" / "faults"))

import torch

from vistill.data.loading import load_rows
from vistill.data.settings import DataSettings
from vistill.objectives import METHODS
from vistill.runs.folder import RunFolder
from vistill.studies.chaos import ChaosTest, TrialCounts
from vistill.training.build import build
from vistill.training.checkpoint import weights_hash
from vistill.training.checks import disk as disk_check
from vistill.training.loop import run

OUT = Path(__file__).parent / "results" / "chaos.json"
#: Rows whose trials are tests: the words that select them.
TESTS = {
    "mistakes": ["tests/faults/test_mistakes.py"],
    "blindness": ["tests/training/test_canary.py", "-k", "ignores or caught", "-m", "not slow"],
    "malicious": ["tests/faults/test_malicious.py"],
}


def timed(row, trials):
    """Run the trials of a row; a trial that survives gives None."""
    start = time.perf_counter()
    for trial in trials:
        row.add(trial)
    if not row.tried:  # 0 of 0 would pass
        raise SystemExit(f"{row.name}: no trial was run")
    row.seconds = time.perf_counter() - start
    print(f"{row.name:<20} {row.survived} of {row.tried}   {row.seconds:.0f} s", flush=True)
    return row


def stops(folder, methods):
    """Stop after every step of three epochs, then repeat the command."""
    for method in methods:
        chaos = ChaosTest(folder / method, method)
        last = int(chaos.expected.split()[0].split("-")[1])
        for step in range(1, last):
            place = chaos.folder / f"stop-{step}"
            usual_go = chaos.go
            chaos.go = partial(usual_go, stop_after=step)
            code = chaos.child(place)()
            chaos.go = usual_go
            yield (
                f"{method}, step {step}: exit {code}"
                if code
                else chaos.outcome(place, f"{method}, step {step}")
            )


def full_disks(chaos, budgets):
    """Fill a small file system; once it has grown, the same command must end with the same bits."""
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
            code = chaos.child(folder, before=pass_disk_check)()
            subprocess.run(["mount", "-o", "remount,size=256m", str(place)], check=True)
            yield chaos.outcome(folder, f"{megabytes:.2f} MB, exit {code}")
        finally:
            subprocess.run(["umount", str(place)], check=True)


def pass_disk_check():
    """Let a run start on a small disk, as if it were filled only after the check before step 1."""
    disk_check.free_space = lambda path: 10**12


def may_mount(folder):
    """Return whether this process may mount a file system in memory."""
    place = folder / "probe"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode == 0:
        subprocess.run(["umount", str(place)], check=True)
    return done.returncode == 0


def power_cuts(folder, most):
    """Try every prefix of a recorded run with every loss of unsynced data."""
    from crash_states import Recorder
    from test_crash_states import check_states

    chaos, place = ChaosTest(folder / "chaos"), RunFolder(folder / "run")
    place.path.mkdir()
    recorder = Recorder(place.path)
    with recorder.watching():
        chaos.go(place, stop_after=8)
    tried, problems = check_states(recorder.operations, folder, most)
    yield from problems
    yield from [None] * (tried - len(problems))


def bad_rows(folder, chaos, rows, bad):
    """Plant rows of every kind, one trial per row.

    A trial fails if its row is not quarantined, or if the weights differ from those of a run on
    the cleaned file.
    """
    from bad_rows import write_data_files

    dirty, clean, codes = write_data_files(folder / "data", rows, bad)
    hashes, codes_by_line = [], {}
    for file in (dirty, clean):
        data = load_rows(str(file), DataSettings(train=str(file), max_bad_share=0.5), None)
        codes_by_line |= {
            int(q.where.split("jsonl:")[1].split()[0]): q.code for q in data.quarantined
        }
        place = RunFolder(folder / file.stem)
        setup = chaos.setup(place)
        setup.recipe = replace(setup.recipe, train=replace(setup.recipe.train, steps=20))
        setup.provided = replace(setup.provided, train_prompts=data.prompts)
        plan = build(setup)
        run(plan, place)
        hashes.append((weights_hash(plan.models.student), place.metrics.read_text()))
    others = "weights are not those of the cleaned file" if hashes[0] != hashes[1] else None
    yield from [
        others
        or (f"line {n}: {c}, got {codes_by_line.get(n)}" if codes_by_line.get(n) != c else None)
        for n, c in codes.items()
    ]
    yield from [f"line {n} quarantined: {c}" for n, c in codes_by_line.items() if n not in codes]


def tests(words):
    """Run tests as trials."""
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
    """Return the rows: name, and the function that runs its trials."""
    chaos = ChaosTest(folder / "first")
    rows, bad = (10_000, 100) if n >= 50 else (400, 25)
    budgets = max(4, min(64, n // 3))
    return {
        "sigkill": lambda: map(chaos.kill, range(n)),
        "stop_at_every_step": lambda: stops(folder / "stops", METHODS if n >= 50 else ["va_opd"]),
        "crash_states": lambda: power_cuts(folder, most=max(4, min(64, n // 4))),
        "sigterm": lambda: map(chaos.terminate, range(max(4, n // 4))),
        "disk_full": lambda: full_disks(chaos, [0.1 + 6.0 * i / budgets for i in range(budgets)]),
        "bad_rows": lambda: bad_rows(folder / "rows", chaos, rows, bad),
    } | {name: partial(tests, words) for name, words in TESTS.items()}


def run_rows(folder, args):
    """Run the requested rows and write each as soon as it is done.

    A new row replaces an earlier one of its name.
    """
    rows_to_run = tasks(folder, args.n)
    if not may_mount(folder):
        print("disk_full left out: this process may not mount a file system")
        del rows_to_run["disk_full"]
    earlier = json.loads(args.out.read_text())["rows"] if args.rows and args.out.exists() else []
    results = {row["name"]: row for row in earlier}
    about = {
        "command": f"make chaos N={args.n}",
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in args.rows or rows_to_run:
        results[name] = timed(TrialCounts(name), rows_to_run[name]()).to_dict()
        rows = [results[name] for name in rows_to_run if name in results]
        args.out.write_text(json.dumps({"rows": rows, "about": about}, indent=2) + "\n")
    return list(results.values())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("n", type=int, nargs="?", default=200)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--rows", nargs="*", help="only these rows; merge them into the last results"
    )
    args = parser.parse_args()
    memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        rows = run_rows(Path(name), args)
    print(f"written to {args.out}")
    sys.exit(0 if all(row["tried"] == row["survived"] for row in rows) else 1)


if __name__ == "__main__":
    main()

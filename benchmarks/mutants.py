"""Does the first tier of the tests detect a planted defect? `make mutants` measures it.

Each mutant of `mutants_of_losses.py`, `mutants_of_data.py` and `mutants_of_runs.py` is planted in a
copy of the repository in a temporary folder. The test files of its group run there. A mutant is
killed if a test fails or the code no longer runs. First, the same files must pass in an unchanged
copy. The results are written to `benchmarks/results/mutants.json`. `make mutants ONLY=optim` runs
only the mutants whose file name contains that text, and keeps the stored results of the others.
"""

import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import mutants_of_data
import mutants_of_losses
import mutants_of_runs
from mutant import Mutant

MUTANTS = [*mutants_of_losses.MUTANTS, *mutants_of_data.MUTANTS, *mutants_of_runs.MUTANTS]
REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results" / "mutants.json"
FIRST_TIER = "not more and not slow and not oracle and not browser and not gpu and not triton"
WANTED, WORKERS = 0.95, 2
#: Linked into a copy. `vistill` and `tests` are copied.
LINKED = (
    "benchmarks",
    "docs",
    "examples",
    "recipes",
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "Makefile",
)


def copy_of_repository(folder: Path) -> Path:
    """Copy the package and its tests, and return the folder."""
    for name in ("vistill", "tests"):
        shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in LINKED:
        (folder / name).symlink_to(REPO / name)
    return folder


def plant(mutant: Mutant, folder: Path) -> None:
    """Write the defect into a copy."""
    file = folder / mutant.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise SystemExit(f"stale: {mutant.file} has {text.count(mutant.old)} times {mutant.old!r}")
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def run_tests(folder: Path, tests: tuple[str, ...]) -> int:
    """Run tests in this process, which must be a fresh one. Return pytest's exit status."""
    import pytest

    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  until the process ends
    options = ["-n0", "-x", "-q", "--quick", "-p", "no:cacheprovider", "-m", FIRST_TIER]
    options += ["--basetemp", str(folder / "tmp")]
    # transformers imports some of pytest's plugins before pytest does
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    # no checks of shapes, which take half of the time to import
    options += ["-o", "addopts=--strict-markers"]
    return int(pytest.main([*options, *tests]))


def judge(mutant: Mutant) -> dict[str, object]:
    """Plant a mutant, run its tests, and return whether one failed."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutant-") as place:
        folder = copy_of_repository(Path(place))
        plant(mutant, folder)
        status = run_tests(folder, mutant.tests)
        os.chdir(REPO)
    verdict = {0: "survived", 5: "no test ran"}.get(status, "killed")
    return {**asdict(mutant), "verdict": verdict, "seconds": round(time.perf_counter() - begin, 1)}


def passes_unchanged(tests: tuple[str, ...]) -> bool:
    """Whether these tests pass without a mutant."""
    with tempfile.TemporaryDirectory(prefix="unchanged-") as place:
        status = run_tests(copy_of_repository(Path(place)), tests)
        os.chdir(REPO)
    return status == 0


def write_results(records: list[dict[str, object]]) -> None:
    """Write the results; those of mutants that were not chosen stay."""

    def key(record: dict[str, object]) -> tuple[object, ...]:
        return record["file"], record["old"], record["new"]

    stored = json.loads(RESULTS.read_text(encoding="utf-8"))["records"] if RESULTS.exists() else []
    known = {key(record): record for record in [*stored, *records]}
    kept = [known[m.file, m.old, m.new] for m in MUTANTS if (m.file, m.old, m.new) in known]
    killed = sum(record["verdict"] == "killed" for record in kept)
    text = json.dumps({"mutants": len(kept), "killed": killed, "records": kept}, indent=1)
    RESULTS.write_text(text + "\n")


def main() -> None:
    """Run all mutants, each in a process forked after the slow imports."""
    import torch
    import transformers

    print(f"torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    torch.set_num_threads(1)
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [mutant for mutant in MUTANTS if only in mutant.file]
    records = []
    with multiprocessing.get_context("fork").Pool(WORKERS, maxtasksperchild=1) as pool:
        groups = sorted({mutant.tests for mutant in chosen})
        for tests, passed in zip(
            groups, pool.map(passes_unchanged, groups, chunksize=1), strict=True
        ):
            if not passed:
                raise SystemExit(f"these fail without a mutant: {' '.join(tests)}")
        for record in pool.imap(judge, chosen, chunksize=1):
            records.append(record)
            print(
                f"{record['verdict']:9} {record['seconds']:5}  {record['file']}: {record['why']}",
                flush=True,
            )
    killed = sum(record["verdict"] == "killed" for record in records)
    print(f"{killed} of {len(records)} mutants were killed")
    write_results(records)
    raise SystemExit(0 if killed >= WANTED * len(records) else 1)


if __name__ == "__main__":
    main()

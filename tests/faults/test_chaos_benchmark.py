"""The rows of `make chaos` run their trials."""

import subprocess
import sys
from itertools import islice

import pytest
from conftest import REPO

sys.path.insert(0, str(REPO / "benchmarks"))
import chaos as benchmark

from vistill.studies.chaos import ChaosTest, TrialCounts

#: At least so many tests are the trials of these rows.
FEWEST = {"mistakes": 60, "blindness": 15, "malicious": 40}


@pytest.mark.slow
@pytest.mark.parametrize("row", benchmark.TESTS)
def test_a_row_of_tests_selects_them(row):
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, *benchmark.TESTS[row]], cwd=REPO, capture_output=True, text=True, check=True
    )
    counts = [line.rpartition(": ")[2] for line in done.stdout.splitlines() if ".py: " in line]
    assert sum(map(int, counts)) >= FEWEST[row], done.stdout


@pytest.mark.slow
def test_a_run_is_stopped_after_a_step_and_continues_to_the_same_bits(tmp_path):
    row = benchmark.timed(
        TrialCounts("stop_at_every_step"), islice(benchmark.stops(tmp_path, ["opd"]), 2)
    )
    assert (row.tried, row.survived) == (2, 2)


@pytest.mark.slow
def test_a_bad_row_is_a_trial(tmp_path):
    chaos = ChaosTest(tmp_path / "first")
    row = benchmark.timed(
        TrialCounts("bad_rows"), benchmark.bad_rows(tmp_path / "rows", chaos, 100, 25)
    )
    assert (row.tried, row.survived) == (25, 25)


def test_a_row_without_trials_is_no_success():
    with pytest.raises(SystemExit, match="no trial"):
        benchmark.timed(TrialCounts("empty"), [])

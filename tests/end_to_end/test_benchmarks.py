"""Benchmarks that a machine without a GPU cannot take still run, at toy sizes."""

import json
import os
import subprocess
import sys

import pytest
from conftest import REPO


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["blocks", "flex"])
def test_the_gpu_rows_run_at_toy_sizes_and_check_their_numbers_first(tmp_path, attention):
    command = [sys.executable, str(REPO / "benchmarks" / "gpu.py"), "--tiny", "--attention", attention]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "gpu.json")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["name"] for row in json.loads((tmp_path / "gpu.json").read_text())["rows"]}
    assert {"G1_loss_time_over_floor_torch", "G2_va_step_over_rows_opd", "G3_matrix_rate_over_peak"} <= rows


def test_without_a_gpu_the_gpu_rows_are_refused_in_one_line(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    command = [sys.executable, str(REPO / "benchmarks" / "gpu.py"), "--out", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "no CUDA device here: nothing was measured. --tiny runs the same code at toy sizes."
    assert not (tmp_path / "gpu.json").exists()

"""Tests that take minutes: models trained from scratch, and a run on real geometry problems."""

import json
import os
import subprocess
import sys

import pytest
from conftest import REPO

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.mark.skipif(
    not os.environ.get("VISTILL_LONG"), reason="eight processor minutes: make test-long"
)
def test_a_demo_from_scratch_trains_both_models_and_reports_a_weak_teacher(tmp_path):
    command = [sys.executable, "-m", "vistill", "demo", "--from-scratch"]
    command += ["--run", tmp_path / "demo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    card = json.loads((tmp_path / "demo" / "models" / "teacher" / "CARD.json").read_text())
    assert card["measured"]["rows"] >= 512
    assert card["measured"]["greedy"] > 0.5
    assert ("below 90.0 %" in done.stdout) == (card["measured"]["greedy"] < 0.90)
    findings = done.stdout.splitlines()[-8:-2]
    assert [line for line in findings if "va_opd: accuracy" in line], findings


def test_a_run_on_real_geometry_from_warm_up_to_report_loses_no_row(shared_data, tmp_path):
    data = shared_data / "geometry_mathv" / "data.jsonl"
    recipe = REPO / "recipes" / "tiny_real_geometry.yaml"
    command = [sys.executable, "-m", "vistill", "train", recipe, "--accept", ""]
    command += [f"run={tmp_path / 'geo'}", f"data.train={data}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for stage in ("teacher", "warm_student", "opd", "va_opd"):
        folder = tmp_path / "geo" / stage
        assert json.loads((folder / "result.json").read_text())["finished"]
        counts = json.loads((folder / "data.json").read_text())
        expected = {
            "train_rows": 400,
            "eval_rows": 66,
            "eval_rows_with_answer": 66,
            "quarantined": 0,
            "dropped_text_only": 0,
        }
        assert expected.items() <= counts.items()
        assert counts["eval"].startswith("held out of ")
    last = [
        json.loads(line)
        for line in (tmp_path / "geo" / "va_opd" / "evaluations.jsonl").read_text().splitlines()
    ][-1]
    assert last["rows"] == 66
    assert last["va/mean"] > 0, "pixelating a real figure does not change the teacher"
    page = (tmp_path / "geo" / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 12
    assert len(page) < 3_000_000

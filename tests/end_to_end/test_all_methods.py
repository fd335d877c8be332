"""Every method from recipe to report with the shipped tiny models, and the gate."""

import csv
import json
import math
import subprocess
import sys

import pytest
from conftest import REPO

from vistill.config import load_stages
from vistill.objectives import METHODS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RECIPE = REPO / "recipes" / "every_method.yaml"


@pytest.fixture(scope="module")
def methods_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    command = [sys.executable, "-m", "vistill", "methods", RECIPE, f"run={folder}"]
    command += ["train.steps=2", "train.prompts_per_step=4"]
    command += ["data.diagrams.train=16", "eval.limit=16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_recipe_has_a_stage_for_every_method():
    stages = load_stages(RECIPE)
    assert {recipe.method for recipe in stages.values()} == set(METHODS)


def test_every_stage_trains_and_reports(methods_run):
    folder, printed = methods_run
    rows = list(csv.DictReader((folder / "methods.csv").read_text().splitlines()))
    assert [row["stage"] for row in rows] == list(load_stages(RECIPE))
    for row in rows:
        assert math.isfinite(float(row["loss_last"])), row
        stage = folder / row["stage"]
        assert json.loads((stage / "result.json").read_text())["finished"]
        assert len((stage / "metrics.jsonl").read_text().splitlines()) == 2
        assert row["stage"] in printed
        for key in ("kl", "va", "vds", "after_rollouts", "whole_step"):
            assert math.isfinite(float(row[key])), (row["stage"], key)
    assert "report" in printed.splitlines()[-1]
    assert (folder / "report.html").stat().st_size < 20_000_000


def test_stages_share_their_initial_student_and_their_prompts(methods_run):
    folder, _ = methods_run
    first = {
        name: json.loads((folder / name / "evaluations.jsonl").read_text().splitlines()[0])
        for name in ("opd", "vgs", "grpo")
    }
    assert first["opd"]["accuracy"] == first["vgs"]["accuracy"] == first["grpo"]["accuracy"]
    tokens = {
        name: json.loads((folder / name / "metrics.jsonl").read_text().splitlines()[0])[
            "rollout/tokens"
        ]
        for name in first
    }
    assert len(set(tokens.values())) == 1


def test_the_shipped_base_model_passes_the_gate(methods_run):
    folder, _ = methods_run
    gate = json.loads((folder / "visual_opsd" / "gate.json").read_text())
    assert gate["passes"]
    assert load_stages(RECIPE)["visual_opsd"].knobs.get("gate", True)


def test_in_the_card_of_the_base_model_real_thoughts_help_and_controls_do_not():
    card = json.loads((REPO / "vistill" / "assets" / "base" / "CARD.json").read_text())["measured"]
    assert card["privileged_greedy"] > card["greedy"] + 0.1
    assert card["privileged"] > card["sampled"] + 0.05
    for control in ("privileged_noise", "privileged_mismatched", "privileged_prompts"):
        assert card[control] < card["sampled"]

"""The comparison on a GPU without a GPU: its parts, and the whole at toy sizes."""

import argparse
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from conftest import REPO

from vistill.models.tiny import build_tiny
from vistill.studies.arms import Arm
from vistill.studies.make_tiny_models import tiny_tokenizer
from vistill.studies.tiny_plans import PLANS, changed_plan

SCRIPT = REPO / "benchmarks" / "gpu_compare.py"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))


def curve(*accuracies, every=16):
    """Evaluations at steps 0, 16, 32, ..."""
    return {n * every: {"sampled": a, "greedy": a + 0.1} for n, a in enumerate(accuracies)}


def test_an_unfinished_seed_is_compared_at_the_last_step_that_all_arms_reached():
    from gpu_compare_runs import compare_runs

    curves = {
        ("opd", 0): curve(0.2, 0.3, 0.4),
        ("va_opd", 0): curve(0.2, 0.4, 0.5),
        ("grounded_opd", 0): curve(0.2, 0.5, 0.7),
        ("opd", 1): curve(0.2, 0.3, 0.4),
        ("va_opd", 1): curve(0.2, 0.3, 0.3),
        ("grounded_opd", 1): curve(0.2, 0.4),
        ("opd", 2): curve(0.2, 0.3),
        ("va_opd", 2): curve(0.2),
        ("grounded_opd", 2): {},
    }
    records = compare_runs(curves, ("opd", "va_opd", "grounded_opd"), last=32)
    assert [(r["arm"], r["minus"]) for r in records] == [
        ("va_opd", "opd"),
        ("grounded_opd", "va_opd"),
        ("grounded_opd", "opd"),
    ]
    ours = records[2]
    assert [(s["seed"], s["step"], s["unfinished"]) for s in ours["seeds"]] == [
        (0, 32, False),
        (1, 16, True),
    ]
    assert [s["sampled"] for s in ours["seeds"]] == pytest.approx([0.3, 0.1])
    assert ours["mean_greedy"] == pytest.approx(0.2)
    assert ours["ahead_sampled"] == 2
    assert ours["unfinished"]
    assert ours["seeds_without_a_step"] == [2]


def test_seeds_whose_arms_start_differently_are_named():
    from gpu_compare_runs import unmatched_seeds

    curves = {("opd", 0): curve(0.2), ("va_opd", 0): curve(0.2), ("opd", 1): curve(0.2)}
    assert unmatched_seeds({**curves, ("va_opd", 1): curve(0.3), ("opd", 2): {}}) == [1]


def test_at_the_end_the_rest_is_killed_and_every_arm_says_how_it_ended(tmp_path):
    from gpu_compare_runs import run_until

    ready = tmp_path / "ready"
    programs = {
        "a": "pass",
        "b": "raise SystemExit('no memory')",
        "c": f"import time; open({str(ready)!r}, 'w'); time.sleep(600)",
        "d": "pass",
    }
    arms = [
        Arm(name, tmp_path / name, command=(sys.executable, "-S", "-c", code))
        for name, code in programs.items()
    ]
    outcomes = run_until(arms, 1, time.monotonic() + 300, ready.exists)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "a": "finished",
        "b": "failed",
        "c": "stopped",
        "d": "not started",
    }
    assert "no memory" in outcomes["b"].why
    assert not (tmp_path / "d").exists()


def test_nothing_starts_after_the_deadline(tmp_path):
    from gpu_compare_runs import run_until

    arms = [Arm("a", tmp_path / "a", command=(sys.executable, "-S", "-c", "pass"))]
    assert run_until(arms, 1, time.monotonic() - 1)["a"].status == "not started"


def test_an_error_of_a_report_does_not_end_the_arms(capsys):
    from gpu_compare_runs import try_to

    def report(_):
        raise OSError("disk full")

    try_to(report, {})
    assert capsys.readouterr().out == "   not reported: OSError: disk full\n"


def test_sizes_and_rates_reach_the_plan_and_the_models_have_20_to_40_million_weights():
    from gpu_compare_design import REAL, plan_words

    for kind, least, most in (("teacher", 35e6, 40e6), ("student", 20e6, 25e6)):
        plan = changed_plan(kind, plan_words(REAL, kind, pair=2, factor=2.0))
        tiny = PLANS[kind]
        assert plan.seed == tiny.seed + 200
        assert plan.solve_lr == pytest.approx(2 * tiny.solve_lr / 8)
        assert (plan.wrong_steps > 0) == (kind == "student")
        with torch.device("meta"):
            model = build_tiny(plan.size, tiny_tokenizer(), 0).model
        assert least <= sum(p.numel() for p in model.parameters()) <= most


def test_the_settings_of_both_designs_make_matched_arms(tmp_path):
    from gpu_compare_design import ARMS, REAL, TOY, plan_of_runs

    from vistill.studies.compare import Pairing, Study

    for design in (REAL, TOY):
        rate, _ = plan_of_runs(design)
        words = (*design.settings, f"train.lr={rate!r}", "student.model=a/b", "teacher.model=c/d")
        study = Study(str(REPO / "recipes" / "compare.yaml"), ARMS, tmp_path, words)
        arms = study.arms(Pairing(1, 0, 0), {})
        assert [arm.name for arm in arms] == list(ARMS)
        assert {arm.settings.train.lr for arm in arms} == {rate}
        last = arms[0].settings.train.steps
        assert last % arms[0].settings.eval.every == 0
    assert plan_of_runs(REAL)[0] == pytest.approx(3e-4 / 8)


def session_of(models):
    """A session whose models are measured, and those models."""
    from gpu_compare import Session
    from gpu_compare_design import REAL, Model

    results = {"design": {"pairs": 1}, "notes": [], "not_finished": []}
    session = Session(argparse.Namespace(), REAL, "cpu", REPO, 0.0, results)
    rows = []
    for kind, factor, greedy in models:
        measured = {} if greedy is None else {"measured": {"greedy": greedy, "sampled": greedy / 2}}
        rows.append(Model(kind, 0, factor, REPO, measured))
    return session, rows


def test_the_model_that_reads_best_is_taken_and_the_results_say_whether_it_reads():
    from gpu_compare import choose_models

    session, models = session_of(
        [
            ("teacher", 1.0, 0.7),
            ("teacher", 2.0, 0.9),
            ("student", 1.0, 0.5),
            ("student", 2.0, 0.5),
            ("student", 4.0, None),
        ]
    )
    chosen = choose_models(session, models)
    assert chosen is not None
    assert {key: model.factor for key, model in chosen.items()} == {
        ("teacher", 0): 2.0,
        ("student", 0): 1.0,
    }
    reads, worse = session.results["notes"]
    assert reads == "Teacher 0 reads: 0.900 greedy, at least 0.8 are needed."
    assert worse.startswith("Student 0 is worse than its teacher")
    assert session.results["not_finished"] == ["student-0-rate-4"]


def test_a_teacher_that_does_not_read_and_a_student_that_is_not_worse_are_said():
    from gpu_compare import choose_models

    session, models = session_of([("teacher", 1.0, 0.3), ("student", 1.0, 0.4)])
    assert choose_models(session, models) is not None
    reads, worse = session.results["notes"]
    assert "does NOT read" in reads
    assert "NOT worse" in worse


def test_without_a_student_nothing_is_compared():
    from gpu_compare import choose_models

    session, models = session_of([("teacher", 1.0, 0.9), ("student", 1.0, None)])
    assert choose_models(session, models) is None
    assert session.results["notes"] == ["No student 0 was finished: nothing can be compared."]


def test_without_a_gpu_it_is_refused_in_one_line(tmp_path, monkeypatch):
    import gpu_compare

    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device here"):
        gpu_compare.main(["--out", str(tmp_path / "x.json")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_comparison_runs_at_toy_sizes(tmp_path):
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--tiny", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    results = json.loads(out.read_text())
    assert results["not_finished"] == []
    assert results["chosen"] == ["teacher-0-rate-1", "student-0-rate-1"]
    for model in results["models"]:
        assert model["status"] == "finished"
        assert model["plan"]["size"]["init"] == 0.02
        assert model["parameters"] > 0
        assert model["measured"]["rows"] == 8
    assert {(run["arm"], run["seed"]) for run in results["runs"]} == {
        (arm, 0) for arm in ("opd", "va_opd", "grounded_opd")
    }
    for run in results["runs"]:
        assert (run["status"], run["updates"], run["after_step"]) == ("finished", 2, 2)
        assert [row["step"] for row in run["curve"]] == [0, 1, 2]
        assert run["before"] == {"sampled": 0.0, "greedy": 0.0}
        assert set(run["seconds_per_update"]) == {"encode", "rollout", "score", "learn"}
        assert run["compute"] > 0
    assert [row["seeds"][0]["step"] for row in results["differences"]] == [2, 2, 2]
    assert not any(row["unfinished"] for row in results["differences"])
    assert results["about"]["torch"] == torch.__version__

"""`eval.tasks`: benchmarks during a run change no number of training, and a resume repeats them."""

import json
from pathlib import Path

import pytest
from PIL import Image

import vistill
from vistill.config import build_recipe, override
from vistill.errors import ConfigError, DataError
from vistill.evaluation.benchmarks.rescoring import rescore_log
from vistill.evaluation.benchmarks.sample_log import read_samples
from vistill.report.parts import part_charts, part_rows
from vistill.report.run_data import read_run
from vistill.runs.recipe_changes import key_class
from vistill.training.benchmarks import changed_benchmarks

TASKS = {"eval.tasks": ["ai2d"], "eval.task_limit": 3}


@pytest.fixture
def recipe(tiny_folder, tmp_path, without_canary):
    """A run of two steps that evaluates before each and at the end; two sets of made rows."""
    rows = [
        {"id": f"row {i}", "question": f"How long is it? {i}", "images": "a.png", "answer": str(i)}
        for i in range(6)
    ]
    parts = [
        {"question": f"Which is {n}?", "options": ["leaf", "root"], "answer": "0",
         "image": "bild.png"}
        for n in range(5)
    ]  # fmt: skip
    (tmp_path / "sets" / "ai2d").mkdir(parents=True)
    for name, lines in (("data.jsonl", rows), ("sets/ai2d/data.jsonl", parts)):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "a.png")
    Image.linear_gradient("L").resize((48, 48)).convert("RGB").save(
        tmp_path / "sets" / "ai2d" / "bild.png"
    )
    return {
        "run": str(tmp_path / "run"),
        "method": "va_opd",
        "student.model": str(tiny_folder),
        "teacher.model": str(tiny_folder),
        "data.train": str(tmp_path / "data.jsonl"),
        "data.holdout": 2,
        "rollout.per_prompt": 2,
        "rollout.max_new_tokens": 5,
        "train.steps": 2,
        "train.prompts_per_step": 2,
        "train.lr": 1e-4,
        "eval.every": 1,
        "eval.limit": 2,
        "eval.extra_limit": 2,
        "eval.max_new_tokens": 5,
        "eval.task_data": str(tmp_path / "sets"),
    }


def run(recipe, name, **settings):
    """The folder of a run under a name."""
    tree = {}
    override(tree, {**recipe, "run": f"{recipe['run']}-{name}", **settings})
    vistill.train(build_recipe(tree), progress=lambda record: None)
    return Path(f"{recipe['run']}-{name}")


def evaluations(folder):
    """The records of the evaluations."""
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


@pytest.mark.more
def test_benchmarks_of_a_run_change_no_number_of_it_and_are_repeated_by_a_resume(
    recipe, monkeypatch
):
    plain, asked = run(recipe, "plain"), run(recipe, "asked", **TASKS)
    assert (plain / "metrics.jsonl").read_bytes() == (asked / "metrics.jsonl").read_bytes()
    hashes = [json.loads((folder / "result.json").read_text())["weights_sha256"]
              for folder in (plain, asked)]  # fmt: skip
    assert hashes[0] == hashes[1]
    records = evaluations(asked)
    assert [r["step"] for r in records] == [0, 1, 2]
    own = [{k: v for k, v in r.items() if k.startswith("benchmark/")} for r in records]
    rest = [{k: v for k, v in r.items() if not k.startswith("benchmark/")} for r in records]
    assert rest == evaluations(plain)
    assert {r["benchmark/ai2d/rows"] for r in records} == {3.0}
    assert len({r["benchmark/ai2d/key"] for r in records}) == 1
    assert own[0]["benchmark/ai2d/accuracy"] == own[0]["benchmark/ai2d/greedy/accuracy"]
    log = asked / "samples" / "step-000002.ai2d.official.jsonl"
    rows = [[s.row.id for s in read_samples(path)]
            for path in sorted((asked / "samples").glob("step-*.ai2d.official.jsonl"))]  # fmt: skip
    assert len(rows) == 3
    assert rows[0] == rows[1] == rows[2]
    task = rescore_log(log, "", None, None)["tasks"]["ai2d"]
    value = task["modes"]["greedy"]["metrics"]["accuracy"]["value"]
    assert (value, task["missing_replies"]) == (own[-1]["benchmark/ai2d/accuracy"], 0)

    monkeypatch.setenv("VISTILL_FAULT", "evaluate.before_log:raise@3")
    with pytest.raises(Exception, match=r"evaluate\.before_log"):
        run(recipe, "killed", **TASKS)
    monkeypatch.delenv("VISTILL_FAULT")
    killed = run(recipe, "killed", **TASKS)
    assert evaluations(killed) == records
    for path in (asked / "samples").glob("step-*.ai2d.official.jsonl"):
        assert (killed / "samples" / path.name).read_bytes() == path.read_bytes()

    data = read_run(asked)
    assert [(row["kind"], row["name"]) for row in part_rows([data])] == [("benchmark", "ai2d")]
    assert "Benchmarks during the run" in "".join(part_charts([data]))


@pytest.mark.more
def test_a_run_without_evaluation_rows_evaluates_its_benchmarks(recipe):
    settings = {"data.holdout": 0, "train.steps": 1, "eval.tasks": ["ai2d"]}
    records = evaluations(run(recipe, "no-rows", **settings))
    assert [r["benchmark/ai2d/rows"] for r in records] == [5.0, 5.0]


@pytest.mark.more
def test_benchmarks_that_a_run_cannot_read_stop_it_before_the_first_step(recipe, tmp_path):
    with pytest.raises(ConfigError, match="C105") as error:
        run(recipe, "wrong", **{"eval.tasks": ["ai2"]})
    assert error.value.fix == "'eval.tasks=[ai2d]'"
    with pytest.raises(DataError, match="D102") as error:
        run(recipe, "absent", **{"eval.tasks": ["wemath"]})
    assert error.value.fix.startswith("eval.task_data=FOLDER ")


def test_other_rows_or_protocols_between_evaluations_are_named():
    before = [{"step": 0, "benchmark/ai2d/key": 1.0}, {"step": 1, "benchmark/ai2d/key": 2.0}]
    assert changed_benchmarks(before, {"benchmark/ai2d/key": 1.0}) == ["ai2d"]
    assert changed_benchmarks(before, {"benchmark/ai2d/key": 2.0}) == []
    assert changed_benchmarks([], {"benchmark/ai2d/key": 2.0}) == []
    assert key_class("eval.tasks") == "free"


@pytest.mark.more
def test_blind_modes_and_signals_of_a_run_have_names_of_their_own_and_change_no_training(recipe):
    settings = {**TASKS, "eval.task_blind": True, "eval.signals": True, "train.steps": 1}
    plain = run(recipe, "plain-1", **{**TASKS, "train.steps": 1})
    blind = run(recipe, "blind", **settings)
    assert (plain / "metrics.jsonl").read_bytes() == (blind / "metrics.jsonl").read_bytes()
    last, without = evaluations(blind)[-1], evaluations(plain)[-1]
    for view in ("pixelated", "text_only"):
        name = f"benchmark/ai2d/greedy/{view}"
        gap = last["benchmark/ai2d/greedy/accuracy"] - last[f"{name}/accuracy"]
        assert last[f"{name}/gap/accuracy"] == pytest.approx(gap)
        assert f"{name}/accuracy" not in without
        assert f"{name}/visual_advantage" not in last
    assert last["benchmark/ai2d/accuracy"] == without["benchmark/ai2d/accuracy"]
    assert last["benchmark/ai2d/greedy/visual_advantage"] >= 0
    assert last["benchmark/ai2d/key"] != without["benchmark/ai2d/key"]
    log = blind / "samples" / "step-000001.ai2d.official.jsonl"
    samples = list(read_samples(log))
    assert len(samples) == 3 * 3
    assert {bool(s.pictures) for s in samples if s.mode == "greedy/text_only"} == {False}
    assert all(s.signals["log_prob"] < 0 for s in samples)
    task = rescore_log(log, "", None, None)["tasks"]["ai2d"]
    assert (task["missing_replies"], len(task["modes"])) == (0, 3)
    assert task["modes"]["greedy"]["signals"]["responses"]["visual_advantage"] == 3

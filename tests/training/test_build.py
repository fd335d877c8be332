"""One builder for recipes, API and commands: equal settings give equal runs."""

import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import REPO, build_model
from plans import make_setup_from
from poisoned import with_nan_offload
from tiers import few
from training.test_loop import TRAIN, make_plan, run_plan

import vistill
from vistill.cli.target import recipe_for
from vistill.config import build_recipe
from vistill.data.diagrams import diagram_prompts
from vistill.data.stored_prompts import read_prompts, with_content_hashes, write_prompts
from vistill.errors import ConfigError, DataError, StorageError
from vistill.evaluation.settings import EvalSettings
from vistill.models.loading import teacher_dtype
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.chosen_student import resolve_model
from vistill.runs.folder import RunFolder
from vistill.runs.recipe_changes import changed_versions
from vistill.studies.check import check
from vistill.studies.replay import replay
from vistill.training import run_lock
from vistill.training.build import START_CHECKS
from vistill.training.build import build as build_plan
from vistill.training.checks.devices import check_same_device
from vistill.training.recipe import default_settings
from vistill.training.results import choose_best
from vistill.training.settings import SaveSettings, ScheduleSettings, TrainSettings
from vistill.types import LoadedImage, Prompt
from vistill.views.settings import ViewSettings

OPTIONS = {
    "train": TrainSettings(
        prompts_per_step=2, steps=3, lr=1e-3, schedule=ScheduleSettings("constant", 0.0)
    ),
    "rollout": RolloutSettings(per_prompt=2, max_new_tokens=5, all_truncated="go_on"),
    "evaluation": EvalSettings(every=0),
    "save": SaveSettings(every=1, keep=9),
}


def distill_run(tokenizer, teacher, out, objective=None, prompts=TRAIN[:4], **options):
    student = options.pop("student", None) or build_model(tokenizer, 0)
    return vistill.distill(
        student, teacher, prompts, objective or vistill.OPD(), out, **(OPTIONS | options)
    )


def raises_code(code, kind=ConfigError):
    return pytest.raises(kind, match=rf"error\[{code}\]")


# comparison with the first start


@pytest.mark.more
def test_a_run_with_another_teacher_is_refused(tokenizer, teacher, tmp_path):
    distill_run(tokenizer, teacher, tmp_path)
    with raises_code("C202") as caught:
        distill_run(tokenizer, build_model(tokenizer, 7, hidden=48), tmp_path)
    assert "teacher" in caught.value.what


@pytest.mark.more
def test_a_run_with_another_student_is_refused_and_its_own_student_continues(
    tokenizer, teacher, tmp_path
):
    student = build_model(tokenizer, 0)
    distill_run(tokenizer, teacher, tmp_path, student=student)
    distill_run(tokenizer, teacher, tmp_path, student=student)  # this run has trained it in place
    with raises_code("C202"):
        distill_run(tokenizer, teacher, tmp_path, student=build_model(tokenizer, 3))


@pytest.mark.more
@pytest.mark.parametrize(
    "change",
    few(
        [
            {"views": ViewSettings(pixelate=0.5)},
            {"seed": 9},
            {"rollout": RolloutSettings(per_prompt=2, max_new_tokens=4, all_truncated="go_on")},
            {"objective": vistill.VAOPD(high_share=0.3)},
        ],
        3,
    ),
)
def test_distill_refuses_other_settings_in_the_same_folder(tokenizer, teacher, tmp_path, change):
    distill_run(tokenizer, teacher, tmp_path, vistill.VAOPD())
    with raises_code("C201"):
        distill_run(tokenizer, teacher, tmp_path, **({"objective": vistill.VAOPD()} | change))


@pytest.mark.more
def test_a_row_with_the_same_id_and_another_question_is_refused(tokenizer, teacher, tmp_path):
    distill_run(tokenizer, teacher, tmp_path)
    other = [replace(TRAIN[0], parts=(*TRAIN[0].parts, " Really?"), content=""), *TRAIN[1:4]]
    with raises_code("D307", DataError):
        distill_run(tokenizer, teacher, tmp_path, prompts=other)


def test_prompts_with_one_id_are_refused(tokenizer, teacher, tmp_path):
    duplicates = [replace(p, id="same") for p in TRAIN[:2]]
    with raises_code("D102", DataError) as caught:
        distill_run(tokenizer, teacher, tmp_path, prompts=[*duplicates, *TRAIN[2:4]])
    assert '"same"' in caught.value.what


@pytest.mark.more
def test_the_lock_keeps_the_versions_of_the_first_start_and_logs_changes(
    tokenizer, teacher, tmp_path
):
    distill_run(tokenizer, teacher, tmp_path)
    file = tmp_path / "run.lock.json"
    installed = json.loads(file.read_text())["versions"]["torch"]
    # as if the first start had another torch
    file.write_text(file.read_text().replace(f'"torch": "{installed}"', '"torch": "1.0"'))
    distill_run(tokenizer, teacher, tmp_path)
    lock = json.loads(file.read_text())
    assert lock["versions"]["torch"] == "1.0"
    assert [start["versions"]["torch"] for start in lock["starts"]] == ["1.0", installed]
    assert changed_versions(lock) == [f"torch 1.0 -> {installed}"]
    assert "version of torch" in (tmp_path / "events.log").read_text()


@pytest.mark.more
def test_a_run_of_an_earlier_version_continues_if_its_settings_are_the_same(
    tokenizer, teacher, tmp_path
):
    distill_run(tokenizer, teacher, tmp_path)
    lock = json.loads((tmp_path / "run.lock.json").read_text())
    for key in ("format", "models", "starts"):
        del lock[key]
    del lock["recipe"]["views"]["thought"]  # a key that the earlier version lacks
    (tmp_path / "run.lock.json").write_text(json.dumps(lock))
    distill_run(tokenizer, teacher, tmp_path)
    # 1.5 steps: the earlier version exceeded the peak
    lock["recipe"]["train"]["schedule"]["warmup"] = 0.5
    (tmp_path / "run.lock.json").write_text(json.dumps(lock))
    with raises_code("C201") as caught:
        distill_run(tokenizer, teacher, tmp_path)
    assert "accept=['train.schedule.warmup']" in caught.value.fix


@pytest.mark.more
def test_a_distill_folder_of_an_earlier_version_is_refused_with_a_fix(tokenizer, teacher, tmp_path):
    distill_run(tokenizer, teacher, tmp_path)
    lock = {
        "recipe": {"method": "OPD", "OPD": "OPD()", "prompts": ["a"], "run": str(tmp_path)},
        "versions": {},
    }
    (tmp_path / "run.lock.json").write_text(json.dumps(lock))
    with raises_code("C201") as caught:
        distill_run(tokenizer, teacher, tmp_path)
    assert "earlier version" in caught.value.what


# evaluation and replay of a run folder


def test_a_student_whose_teacher_a_server_wrote_for_is_evaluated_and_asked_without_it(tmp_path):
    """The server has the teacher: it would be refused as another model (R418)."""
    tree = {**default_settings("kd"), "run": "{run}"}
    tree["rollout"]["engine"] = "server"
    tree["data"]["train"], tree["teacher"]["model"] = "diagrams", "vistill:teacher"
    (tmp_path / "recipe.json").write_text(json.dumps(tree))
    for verb in ("eval", "chat", "generate"):
        assert recipe_for(str(tmp_path), [], verb).rollout.engine == "shared"
    asked = recipe_for(str(tmp_path), ["rollout.engine=server"], "eval")
    assert asked.rollout.engine == "server"


@pytest.mark.more
def test_a_distill_folder_is_evaluated_on_its_own_data_and_replayed(tokenizer, teacher, tmp_path):
    held_out = diagram_prompts("val", 3, 0)
    run = distill_run(tokenizer, teacher, tmp_path / "run", vistill.VAOPD(), eval_prompts=held_out)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    recipe = recipe_for(str(moved), ["eval.max_new_tokens=5"], "eval")
    evaluated = vistill.evaluate(recipe)
    samples = evaluated.folder.read(evaluated.path / "samples" / "step-000000.jsonl")
    assert {s["prompt"] for s in samples} == {p.id for p in held_out}
    assert json.loads((evaluated.path / "data.json").read_text())["eval_rows_with_answer"] == 3
    replayed, step = replay(moved)
    assert step == 3
    assert replayed.same
    assert replayed.from_journal == [3]
    assert run.path.name == "run"


@pytest.mark.parametrize("name", ["student", "checkpoint-000002/student"])
def test_a_student_inside_a_run_folder_is_evaluated_on_the_data_of_its_run(
    tmp_path, monkeypatch, name
):
    run = tmp_path / "run"
    (run / name).mkdir(parents=True)
    (run / name / "config.json").write_text("{}")
    tree = build_recipe(
        {
            "run": str(run),
            "method": "sft",
            "student": {"model": "x"},
            "data": {"train": "rows.jsonl"},
        }
    )
    (run / "recipe.json").write_text(json.dumps(tree.to_dict()))
    suffix = name.removesuffix("/student")
    monkeypatch.chdir(tmp_path)
    for target in (f"{run}/{name}", f"run/{name}"):
        recipe = recipe_for(target, [], "eval")
        assert (recipe.data.train, recipe.student.model) == ("rows.jsonl", target)
        assert recipe.run == f"{run}-eval-{suffix}"
    monkeypatch.chdir(run / Path(name).parent)
    assert recipe_for("student", [], "eval").data.train == "rows.jsonl"
    (run / "recipe.json").unlink()
    assert recipe_for("student", [], "eval").data.train == "diagrams"


@pytest.mark.more
def test_a_user_method_is_replayed_only_with_its_class(tokenizer, teacher, tmp_path):
    class Mine(vistill.OPD):
        pass

    distill_run(tokenizer, teacher, tmp_path / "run", Mine())
    with raises_code("C102"):
        replay(tmp_path / "run")
    replayed, _ = replay(tmp_path / "run", objective=Mine())
    assert replayed.same


def test_a_run_that_does_not_name_its_data_is_not_evaluated_on_other_data(tmp_path):
    (tmp_path / "run.lock.json").write_text("{}")
    with raises_code("S605", StorageError):
        recipe_for(str(tmp_path), [], "eval")
    assert recipe_for(str(tmp_path), ["data.train=diagrams"], "eval").data.train == "diagrams"


@pytest.mark.more
def test_models_that_match_their_source_are_not_stored_again(
    tokenizer, teacher, tiny_folder, tmp_path
):
    student = vistill.load(str(tiny_folder), device="cpu")
    run = distill_run(tokenizer, teacher, tmp_path, student=student)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert recipe["student"]["model"] == str(tiny_folder)
    assert recipe["teacher"]["model"] == "{run}/start/teacher"  # built in memory
    assert not (tmp_path / "start" / "student").exists()
    assert (run.path / "start" / "teacher" / "model.safetensors").exists()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_stored_prompts_come_back_with_their_pixels(tmp_path, mode):
    image = diagram_prompts("train", 1, 0)[0].images[0].load().convert(mode)
    original = Prompt(
        "p",
        (LoadedImage(image, "a"), "What?"),
        "1",
        ("1", "2"),
        boxes=((0, 0, 5, 5),),
        labels={"a": "b"},
    )
    (prompt,) = with_content_hashes([original])
    write_prompts([prompt], tmp_path / "rows.jsonl")
    (back,) = read_prompts(f"prompts:{tmp_path / 'rows.jsonl'}")
    assert replace(back, parts=()) == replace(prompt, parts=())
    assert back.content == prompt.content
    stored = back.images[0].load()
    assert stored.mode == prompt.images[0].load().mode
    assert stored.tobytes() == prompt.images[0].load().tobytes()


def test_a_stored_prompt_cannot_name_a_picture_outside_its_folder(tmp_path):
    (prompt,) = with_content_hashes(diagram_prompts("train", 1, 0))
    write_prompts([prompt], tmp_path / "rows.jsonl")
    text = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(text.replace('"png": "', '"png": "../'))
    with raises_code("D102", DataError):
        read_prompts(f"prompts:{tmp_path / 'rows.jsonl'}")


@pytest.mark.more
def test_a_run_has_one_student_path_and_the_result_names_its_checkpoint(
    tokenizer, teacher, tmp_path
):
    run = distill_run(tokenizer, teacher, tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["checkpoint"] == "checkpoint-000003"
    assert result["chosen"] == {"step": 3, "by": "last"}
    assert (tmp_path / "student").resolve() == (
        tmp_path / "checkpoint-000003" / "student"
    ).resolve()
    assert Path(resolve_model(str(tmp_path))).resolve() == (tmp_path / "student").resolve()
    assert run.student.name == "student"


# the same run from a recipe and from Python


def test_recipe_and_distill_write_the_same_metrics(tmp_path):
    tree = {
        "run": str(tmp_path / "recipe"),
        "student": {"model": "vistill:student"},
        "teacher": {"model": "vistill:teacher"},
        "method": "va_opd",
        "data": {"train": "diagrams", "diagrams": {"train": 6, "eval": 2}},
        "rollout": {"per_prompt": 2, "max_new_tokens": 5, "all_truncated": "go_on"},
        "train": {"prompts_per_step": 2, "steps": 2, "lr": 1e-4},
        "eval": {"every": 0},
        "views": {"pixelate": 0.3},
    }
    one = vistill.train(build_recipe(tree))
    two = vistill.distill(
        vistill.load("vistill:student"),
        vistill.load("vistill:teacher", frozen=True),
        vistill.load_prompts("diagrams", limit=6)[:6],
        vistill.VAOPD(),
        tmp_path / "mine",
        train=TrainSettings(prompts_per_step=2, steps=2, lr=1e-4),
        rollout=RolloutSettings(per_prompt=2, max_new_tokens=5, all_truncated="go_on"),
        evaluation=EvalSettings(every=0),
        views=ViewSettings(pixelate=0.3),
    )
    assert two.folder.metrics.read_text() == one.folder.metrics.read_text()
    stored = json.loads((two.path / "recipe.json").read_text())
    assert stored["student"]["model"] == "vistill:student"  # not the place of this installation
    facts = [json.loads((run.path / "run.lock.json").read_text())["models"] for run in (one, two)]
    assert facts[0] == facts[1]


def skip_selftest(monkeypatch):
    """Leave out the self-test: flex is slow on a CPU, and an offloaded model holds no weights."""
    monkeypatch.setattr("vistill.training.checks.models.run_selftest", lambda vlm, role="": vlm)


def test_distill_applies_the_settings_of_attention_and_offloading(
    tokenizer, teacher, tmp_path, monkeypatch
):
    plan = make_plan(tokenizer, teacher)
    train = replace(plan.train, attention="flex", offload_teacher=True)
    setup = make_setup_from(replace(plan, train=train), RunFolder(tmp_path))
    skip_selftest(monkeypatch)
    # as if it were a GPU
    monkeypatch.setattr("vistill.training.checks.models.is_on_host", lambda vlm: False)
    setup.purpose = "eval"
    for one in START_CHECKS:
        if one.name in ("data", "tokenizers", "models"):
            one.run(setup)
    assert setup.models.student.attention == "flex"
    assert setup.models.teacher.attention == "flex"
    assert setup.models.teacher.offload is not None


def test_an_offloaded_teacher_is_read_only_on_its_device(tokenizer, tmp_path, monkeypatch):
    """On a GPU, weights outside `on_device` are in host memory; here they are NaN instead."""
    plan = make_plan(tokenizer, build_model(tokenizer, 1, hidden=48).freeze())
    offloaded = replace(plan.models, teacher=with_nan_offload(plan.models.teacher))
    setup = make_setup_from(replace(plan, models=offloaded, eval_prompts=()), RunFolder(tmp_path))
    skip_selftest(monkeypatch)
    # it reads the weights of a model that was just loaded, before it is offloaded
    monkeypatch.setattr(run_lock, "hash_weights", lambda model: {"dtype": "float32", "hash": "x"})
    views = next(check for check in START_CHECKS if check.name == "views")
    for one in START_CHECKS[: START_CHECKS.index(views) + 1]:
        one.run(setup)


def test_student_and_teacher_on_two_devices_are_refused():
    check_same_device("cuda", "cuda:0")
    with raises_code("C101"):
        check_same_device("cuda:0", "cuda:1")


def test_a_teacher_has_one_dtype_per_device_and_precision():
    assert teacher_dtype("cuda:0", "auto") == torch.bfloat16
    assert teacher_dtype("cuda:0", "fp32") == torch.float32
    assert teacher_dtype("cpu", "auto") == torch.float32


def test_a_student_in_half_precision_is_refused(tokenizer, teacher, tmp_path):
    student = build_model(tokenizer, 0)
    student.model.to(torch.bfloat16)
    with raises_code("C101"):
        distill_run(tokenizer, teacher, tmp_path, student=student)


@pytest.mark.more
@pytest.mark.parametrize("before", [False, True])
def test_deterministic_kernels_end_with_the_run(tokenizer, teacher, tmp_path, before):
    torch.use_deterministic_algorithms(before, warn_only=True)
    try:
        distill_run(tokenizer, teacher, tmp_path)
        assert torch.are_deterministic_algorithms_enabled() == before
    finally:
        torch.use_deterministic_algorithms(False)


# checks and plan


@pytest.mark.more
def test_every_check_has_a_unique_name_and_check_prints_its_result(tmp_path):
    names = [c.name for c in START_CHECKS]
    assert len(set(names)) == len(names)
    settings = [
        f"run={tmp_path / 'x'}",
        "data.diagrams.train=32",
        "data.diagrams.eval=5",
        "train.steps=3",
    ]
    (lines, *_) = check("demo.yaml", settings).values()
    shown = {line.what for line in lines}
    assert {c.name for c in START_CHECKS if "check" in c.purposes} | {"canary"} <= shown
    assert not (tmp_path / "x").exists()


def test_a_plan_is_made_in_one_place():
    calls = [
        f"{path.relative_to(REPO)}:{node.lineno}"
        for path in sorted((REPO / "vistill").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Plan"
    ]
    assert len(calls) == 1, calls


def test_the_checks_run_once_and_in_order(tokenizer, teacher, tmp_path, monkeypatch):
    seen = []
    recording = [
        replace(c, run=lambda s, c=c: (seen.append(c.name), c.run(s))[1]) for c in START_CHECKS
    ]
    # the list itself is under test
    monkeypatch.setattr("vistill.training.build.START_CHECKS", tuple(recording))
    build_plan(make_setup_from(make_plan(tokenizer, teacher), RunFolder(tmp_path)))
    assert seen == [c.name for c in START_CHECKS]


# keep_best


def record(step, accuracy, rows, fixed=None, fixed_rows=4.0):
    values = {"step": step, "accuracy": accuracy, "rows": rows}
    if fixed is None:
        return values
    return values | {"selection/accuracy": fixed, "selection/rows": fixed_rows}


def test_the_best_checkpoint_is_chosen_on_one_fixed_set_of_rows():
    during, at_end = record(4, 0.75, 4.0, 0.75), record(8, 0.3125, 64.0, 0.75)
    assert choose_best([during, at_end], SaveSettings()) == {
        "step": 8,
        "value": 0.75,
        "rows": 4.0,
    }  # ties take the latest
    assert choose_best([record(4, 0.75, 4.0, 0.8), at_end], SaveSettings())["step"] == 4
    assert (
        choose_best([record(4, 0.0, 4.0, 0.0), record(8, 0.0, 64.0, 0.0)], SaveSettings())["step"]
        == 8
    )


def test_evaluations_on_other_rows_are_not_compared():
    assert choose_best([record(4, 0.75, 4.0), record(8, 0.3125, 64.0)], SaveSettings())["step"] == 8
    assert (
        choose_best(
            [record(4, 0.9, 4.0), record(6, 0.5, 4.0, 0.5), record(8, 0.1, 64.0, 0.1)],
            SaveSettings(),
        )["step"]
        == 6
    )
    assert choose_best([record(0, 0.9, 4.0, 0.9)], SaveSettings()) is None
    assert choose_best([record(4, 0.9, 4.0, 0.9)], SaveSettings(keep_best="none")) is None


@pytest.mark.more
def test_every_evaluation_of_a_run_reports_the_same_selection_rows(tokenizer, teacher, tmp_path):
    held_out = diagram_prompts("val", 6, 0)
    settings = EvalSettings(
        every=3, limit=3, samples=2, max_new_tokens=5, blind=False, greedy=False, advantage=False
    )
    folder = RunFolder(tmp_path)
    run_plan(
        make_plan(tokenizer, teacher, vistill.OPD(), eval_prompts=held_out, evaluation=settings),
        folder,
    )
    records = {r["step"]: r for r in folder.read(folder.evaluations)}
    assert {r["selection/rows"] for r in records.values()} == {3.0}
    last = max(records)
    assert [records[s]["rows"] for s in (0, 3, last)] == [6.0, 3.0, 6.0]

    def evaluated_prompts(step):
        samples = folder.read(tmp_path / "samples" / f"step-{step:06d}.jsonl")
        return {s["prompt"] for s in samples}

    assert evaluated_prompts(3) == evaluated_prompts(6)
    rows = [
        s
        for s in folder.read(tmp_path / "samples" / f"step-{last:06d}.jsonl")
        if s["prompt"] in evaluated_prompts(3)
    ]
    assert sum(s["correct"] for s in rows) / len(rows) == records[last]["selection/accuracy"]


# docs/architecture.md


def test_the_documented_path_of_a_prompt_has_at_most_twenty_functions_and_all_exist():
    text = (REPO / "docs" / "architecture.md").read_text()
    section = text[text.index("## The way of a prompt") : text.index("## One batch")]
    places = re.findall(r"\| \d+ \| `([\w/.]+):([\w.]+)` \|", section)
    assert 10 < len(places) <= 20
    for file, name in places:
        nodes = ast.parse((REPO / file).read_text()).body
        for part in name.split("."):
            definitions = [n for n in nodes if isinstance(n, ast.ClassDef | ast.FunctionDef)]
            matches = [n for n in definitions if n.name == part]
            assert matches, f"{file} has no {name}"
            nodes = matches[0].body


@pytest.mark.more
def test_a_finished_run_that_is_started_again_says_so(tokenizer, teacher, tmp_path):
    events = []

    def progress(record):
        text = record.get("event") or ""
        events.extend([text] if text.startswith(("already finished", "resumed from")) else [])

    distill_run(tokenizer, teacher, tmp_path / "run")
    distill_run(tokenizer, teacher, tmp_path / "run", progress=progress)
    assert len(events) == 1
    assert events[0].startswith("already finished: ")
    assert "nothing is trained" in events[0]
    assert f"run={tmp_path / 'run'}-2" in events[0]
    result = tmp_path / "run" / "result.json"
    result.write_text("{")  # as a crash while it was written leaves it
    distill_run(tokenizer, teacher, tmp_path / "run", progress=progress)
    assert events[1].startswith("resumed from checkpoint-")
    assert json.loads(result.read_text())["finished"]

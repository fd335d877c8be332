"""`vistill check`: everything that can be known before step 1; `--fast` without torch."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO
from PIL import Image

from vistill.errors import ConfigError, ModelError, StorageError, VistillError
from vistill.runs.folder import RunFolder
from vistill.studies.check import check, format_table
from vistill.studies.shown_rows import wrong_answer
from vistill.types import Prompt

TINY = str(REPO / "recipes" / "demo.yaml")


def vistill(*words, cwd=None):
    command = [sys.executable, "-m", "vistill", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=cwd
    )


def test_fast_needs_no_torch_and_says_what_it_found(tmp_path):
    code = (
        "import sys\nfrom vistill.studies.check import check, format_table\n"
        f"settings = ['run={tmp_path / 'x'}', 'data.diagrams.train=20', 'data.diagrams.eval=5']\n"
        f"print(format_table(check({TINY!r}, settings, fast=True)))\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "20 training rows, 5 evaluation rows" in done.stdout
    assert "qwen3_vl" in done.stdout
    assert done.stdout.strip().endswith("ok")
    assert not (tmp_path / "x").exists()


@pytest.mark.more
def test_a_full_check_runs_the_canary_and_writes_nothing(tmp_path):
    overrides = [
        f"run={tmp_path / 'x'}",
        "data.diagrams.train=32",
        "data.diagrams.eval=5",
        "train.steps=3",
    ]
    done = vistill("check", TINY, *overrides, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (results, *_) = json.loads(done.stdout).values()
    lines = dict(results)
    assert lines["canary"].startswith("every reader sees the image: student ")
    assert "teacher" in lines["canary"]
    assert "3 steps of" in lines["rows"]
    assert not (tmp_path / "x").exists()


def test_a_missing_model_is_found_before_any_weight_is_loaded(tmp_path):
    with pytest.raises(ModelError) as caught:
        check(
            TINY,
            [f"run={tmp_path / 'x'}", f"student.model={tmp_path / 'nowhere' / 'at' / 'all'}"],
            fast=True,
        )
    assert caught.value.code == "M103"


def test_a_student_without_a_name_is_an_error_and_not_left_out(tmp_path):
    with pytest.raises(ModelError) as caught:
        check(TINY, [f"run={tmp_path / 'x'}", "student.model="], fast=True)
    assert caught.value.code == "M103"


def test_another_family_is_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(ModelError) as caught:
        check(TINY, [f"run={tmp_path / 'x'}", f"student.model={folder}"], fast=True)
    assert caught.value.code == "M105"


def test_a_run_folder_with_another_recipe_is_refused_and_its_own_is_continued(tmp_path):
    run = tmp_path / "x"
    from vistill.config import load_recipe

    file, overrides = tmp_path / "recipe.yaml", [f"run={run}"]
    file.write_text(
        "run: x\nmethod: opd\nstudent: {model: 'vistill:student'}\n"
        "teacher: {model: 'vistill:teacher'}\n"
        "data: {train: diagrams, diagrams: {train: 20, eval: 5}}\n"
    )
    recipe = load_recipe(file, overrides)
    (run / "checkpoint-000004").mkdir(parents=True)
    (run / "run.lock.json").write_text(json.dumps({"format": 2, "recipe": recipe.to_dict()}))
    assert "resumes after step 4" in format_table(check(str(file), overrides, fast=True))
    file.write_text(file.read_text().replace("run: x", "run: x\nseed: 9"))
    with pytest.raises(ConfigError) as caught:
        check(str(file), overrides, fast=True)
    assert caught.value.code == "C201"
    shutil.rmtree(run)


@pytest.fixture
def started(tmp_path):
    """A recipe file whose run has started."""
    from vistill.config import load_recipe

    file, run = tmp_path / "recipe.yaml", tmp_path / "x"
    file.write_text(
        f"run: {run}\nmethod: va_opd\nva_opd: {{high_share: 0.3}}\n"
        "student: {model: 'vistill:student'}\nteacher: {model: 'vistill:teacher'}\n"
        "data: {train: diagrams, diagrams: {train: 20, eval: 5}}\n"
    )
    (run / "checkpoint-000004").mkdir(parents=True)
    lock = {"format": 2, "recipe": load_recipe(file).to_dict()}
    (run / "run.lock.json").write_text(json.dumps(lock))
    return file


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["train.lr=2e-6"],
            "resumes after step 4; train.lr 1e-06 -> 2e-06: with --accept train.lr",
        ),
        (["seed=9"], "has started, so this is a new run"),
        (["seed=9"], "seed 42 -> 9: "),
        (["method=opd"], "method va_opd -> opd"),
        (["save.every=9"], "resumes after step 4"),
        (["data.columns={prompt: q}"], "data.columns.prompt question -> q"),
    ],
)
def test_check_tells_what_the_given_settings_mean_for_a_started_run(started, words, message):
    assert message in format_table(check(str(started), words, fast=True))


def test_a_setting_that_was_not_asked_for_still_stops_the_check(started):
    started.write_text(started.read_text() + "seed: 9\n")
    with pytest.raises(ConfigError) as caught:
        check(str(started), ["train.lr=2e-6"], fast=True)
    assert caught.value.code == "C201"


@pytest.mark.parametrize("below", ["", "/deeper/run"])
def test_a_run_folder_that_is_a_file_is_refused_with_one_that_can_be_made(tmp_path, below):
    from vistill.config import load_recipe
    from vistill.runs.folder import RunFolder

    (tmp_path / "notes").write_text("mine")
    recipe = load_recipe("opd_qwen3vl_8b_to_2b.yaml", {"run": f"{tmp_path / 'notes'}{below}"})
    with pytest.raises(StorageError) as caught:
        RunFolder(Path(recipe.run)).check_writable()
    assert caught.value.code == "S601"
    assert caught.value.fix == f"run={tmp_path / 'notes'}-2"
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize("fast", [True, pytest.param(False, marks=pytest.mark.more)])
def test_a_stage_that_reads_an_earlier_stage_is_checked_before_that_one_has_run(tmp_path, fast):
    """Its folder does not exist yet; `check` once ended with M103."""
    file = tmp_path / "two.yaml"
    file.write_text(
        f"run: {tmp_path / 'x'}\nmethod: sft\nstudent: {{model: 'vistill:student'}}\n"
        "data: {train: diagrams, diagrams: {train: 32, eval: 4}}\n"
        "train: {steps: 2, prompts_per_step: 2}\n"
        "stages:\n  first: {}\n  second: {method: opd, student: {model: '{run}/first'},"
        " teacher: {model: '{run}/first'}}\n"
    )
    findings = check(str(file), fast=fast)
    assert list(findings) == ["first", "second"]
    lines = {line.what: line.summary for line in findings["second"]}
    model = str(tmp_path / "x" / "first")
    expected = f"student of {model}, which has not run; checked with vistill:student"
    assert lines["student of a stage"] == lines["teacher of a stage"] == expected
    with pytest.raises(ModelError, match="nowhere") as caught:
        check(str(file), ["stages.second.teacher.model=nowhere"], fast=fast)
    assert caught.value.code == "M103"


def row_file(folder, rows):
    Image.new("RGB", (40, 20), "navy").save(folder / "a.png")
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps({"images": ["a.png"], **row}) + "\n" for row in rows))
    return file


def test_three_rows_are_shown_with_what_the_checker_says(tmp_path):
    rows = [{"question": f"<image> How long is side {i}?", "answer": str(i)} for i in range(1, 6)]
    rows[0] |= {"answer": "B", "choices": ["30", "40"]}
    rows[3] = {**rows[3], "answer": "2√3", "question": "Line one.\n" + "x" * 900 + " end?"}
    data = [f"data.train={row_file(tmp_path, rows)}", "data.columns.choices=choices"]
    findings = check(TINY, [f"run={tmp_path / 'x'}", *data, "train.prompts_per_step=2"], fast=True)
    shown = [line.summary for line in next(iter(findings.values())) if line.what == "row"]
    assert len(shown) == 3
    assert "rows.jsonl:1; pictures 40 x 20 pixels" in shown[0]
    assert "gold: B of options 30, 40" in shown[0]
    assert "`The answer is B.` correct (choice, phrase)" in shown[0]
    assert "`The answer is \\boxed{A}.` wrong (choice, box), another option" in shown[0]
    assert "| [picture] How long is side 2?" in shown[1]
    assert "`2` correct (math, bare)" in shown[1]
    assert "characters ..." in shown[2]
    table = format_table(findings)
    assert table.count("rows.jsonl:1;") == 1, "the second stage has the same rows"
    assert re.search(r"\n +\| \[picture\] How long is side 2\?\n", table)


WRONG = {
    (("B",), ("30", "40", "50")): "A",
    (("40",), ("40", "30")): "30",
    (("7", "8", "10"), ()): "9",
    (("12 cm",), ()): "13 cm",
    (("yes",), ()): "No",
    (("C",), ()): "B",
    (("b",), ()): "A",
    (("a red car",), ()): "something else",
}


@pytest.mark.parametrize(("golds", "choices"), list(WRONG))
def test_the_wrong_answer_is_no_gold_answer(golds, choices):
    prompt = Prompt("p", ("?",), answer=golds, choices=choices)
    assert wrong_answer(prompt) == WRONG[golds, choices]


def shown_rows(tmp_path, rows, *words):
    """What `check` prints of the first row of a file."""
    data = [f"data.train={row_file(tmp_path, rows * 2)}", "data.columns.checker=checker", *words]
    findings = check(TINY, [f"run={tmp_path / 'x'}", *data, "train.prompts_per_step=1"], fast=True)
    return next(line.summary for line in next(iter(findings.values())) if line.what == "row")


@pytest.mark.parametrize(
    ("words", "goes_on"),
    [
        ([], "ask for it in data.template"),
        ([r"data.template={prompt} Use \boxed{{}}."], "and the question asks for it"),
    ],
)
def test_a_form_of_a_right_answer_that_is_not_read_is_said_with_one_that_is(
    tmp_path, words, goes_on
):
    rows = [{"question": "<image> Read it.", "answer": "the answer is. what", "checker": "text"}]
    shown = shown_rows(tmp_path, rows, *words)
    assert "note: the other form is not read. A right answer counts" in shown
    assert goes_on in shown
    assert "counts as wrong" not in shown


def test_the_letter_of_a_gold_answer_that_is_the_text_of_an_option_is_shown(tmp_path):
    row = {"question": "<image> A? B?", "answer": "blue", "choices": ["red", "blue"]}
    shown = shown_rows(tmp_path, [row], "data.columns.choices=choices", "data.columns.checker=")
    assert "gold: blue (B) of options red, blue" in shown
    assert "`The answer is \\boxed{B}.` correct" in shown
    assert "`The answer is \\boxed{blue}.` correct" in shown


@pytest.mark.parametrize(
    ("checker", "answer", "near", "far"),
    [
        ("relaxed", "100", "101", "307"),
        ("anls", "Invoice 120", "Invoice 121", "something else"),
        ("maze", "@__/_#_/__*", None, "L"),
        ("math", "100", None, "101"),
    ],
)
def test_the_wrong_answer_is_one_that_the_rule_refuses(tmp_path, checker, answer, near, far):
    row = {"question": "<image> Which?", "answer": answer, "checker": checker}
    lines = shown_rows(tmp_path, [row]).splitlines()
    if near is not None:
        line = next(line for line in lines if f"boxed{{{near}}}" in line)
        assert "correct" in line
        assert "by its rule" in line
    assert f"`The answer is \\boxed{{{far}}}.` wrong" in lines[-1]


def test_a_long_gold_answer_and_a_plan_count_in_every_form(tmp_path):
    sentence = "The man is walking his brown dog along the old road, because he likes it so."
    for checker, answer in (("auto", sentence), ("maze", "@__/_#_/__*")):
        shown = shown_rows(tmp_path, [{"question": "?", "answer": answer, "checker": checker}])
        assert "not read" not in shown
        assert ".." not in shown


def test_decimal_commas_and_missing_options_are_notes(tmp_path):
    row = {"question": "<image> How long?", "answer": "3,5"}
    words = [f"run={tmp_path / 'x'}", f"data.train={row_file(tmp_path, [row] * 2)}"]
    words += ["train.prompts_per_step=1", "data.template={prompt}\n{choices}"]
    findings = check(TINY, words, fast=True)
    notes = next(line.summary for line in next(iter(findings.values())) if line.what == "notes")
    assert "2 gold answers look like decimals with a comma and are read as two numbers" in notes
    assert "data.template shows {choices}, but no row has options" in notes


def test_a_hub_id_is_said_to_be_not_looked_at(tmp_path):
    words = [f"run={tmp_path / 'x'}", "student.model=someone/nothing", "teacher.model=someone/none"]
    findings = next(iter(check(TINY, words, fast=True).values()))
    models = [line.summary for line in findings if line.what in ("student", "teacher")]
    assert models[0].endswith("on the hub or in its cache: not looked at")


def test_a_mistake_in_the_new_settings_comes_before_a_started_run(started):
    started.write_text(started.read_text() + "seed: 9\n")
    for word, code in (
        ("student.model=./nowhere", "M103"),
        ("data.train=nowhere.jsonl", "D102"),
        ("data.eval=nowhere.jsonl", "D102"),
    ):
        with pytest.raises(VistillError) as caught:
            check(str(started), [word], fast=True)
        assert caught.value.code == code


@pytest.mark.parametrize("run", ["/proc/nowhere/run", "/proc/run", "a" * 300])
def test_a_run_folder_that_cannot_be_written_is_refused(tmp_path, run):
    """`check` said ok once, and the run ended with S601 after its models were loaded."""
    file = tmp_path / "r.yaml"
    file.write_text(SMALL)
    with contextlib.chdir(tmp_path):
        with pytest.raises(StorageError) as caught:
            check(str(file), [f"run={run}"], fast=True)
        assert caught.value.code == "S601"
        assert len(caught.value.render()) < 600
        check(str(file), [caught.value.fix], fast=True)
        assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]  # it leaves nothing behind


def test_a_run_that_has_started_is_tried_in_its_own_folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    (run.path / "mine").write_text("a")
    run.try_to_write()
    assert [path.name for path in run.path.iterdir()] == ["mine"]


def test_a_model_type_that_transformers_does_not_know_is_refused_without_weights(tmp_path):
    """The fast check once passed what the full check refuses with M105."""
    import transformers

    model = tmp_path / "model"
    model.mkdir()
    file = tmp_path / "r.yaml"
    file.write_text(SMALL)
    config = {"model_type": "zebra_vl", "vision_config": {}}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        check(str(file), [f"run={tmp_path / 'x'}", f"student.model={model}"], fast=True)
    assert caught.value.code == "M105"
    assert transformers.__version__ in caught.value.why


def test_the_types_that_transformers_knows_are_those_of_its_table():
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    from vistill.runs.model_families import transformers_types

    assert transformers_types() == {*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}


SMALL = """\
run: runs/x
method: opd
student: {model: 'vistill:student'}
teacher: {model: 'vistill:teacher'}
data: {train: diagrams}
"""

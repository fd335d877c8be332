"""The verbs on the command line, with the shipped models and with wrong input."""

import json
import subprocess
import sys

import pytest
from conftest import REPO
from doubles import command as vistill

QUICK = [
    *("data.diagrams.train=16", "data.diagrams.eval=8", "train.steps=2"),
    *("train.prompts_per_step=4", "rollout.per_prompt=2", "rollout.max_new_tokens=24"),
    *("eval.every=2", "eval.limit=8", "eval.extra_limit=8", "eval.max_new_tokens=24"),
    "save.every=1",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run; the test of the linear example and the demo start processes of their own."""
    run = tmp_path_factory.mktemp("runs") / "quick"
    words = ["train", REPO / "recipes" / "demo.yaml", "--stage", "va_opd", f"run={run}", *QUICK]
    done = vistill(*words)
    assert done.returncode == 0, done.stderr
    return run / "va_opd"


def test_train_writes_the_complete_run_folder(trained):
    names = {p.name for p in trained.iterdir()}
    expected = {
        *("recipe.json", "run.lock.json", "metrics.jsonl", "timing.jsonl", "evaluations.jsonl"),
        *("result.json", "report.html", "rollouts", "samples", "tokens", "pictures"),
        *("quarantine.jsonl", "checkpoint-000002"),
    }
    assert expected <= names
    assert json.loads((trained / "result.json").read_text())["finished"]
    page = (trained / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 4
    assert "weight 0." in page


@pytest.mark.more
def test_repeating_the_command_changes_nothing(trained):
    before = (
        (trained / "metrics.jsonl").read_text(),
        json.loads((trained / "result.json").read_text()),
    )
    done = vistill(
        "train",
        REPO / "recipes" / "demo.yaml",
        "--stage",
        "va_opd",
        f"run={trained.parent}",
        *QUICK,
    )
    assert done.returncode == 0, done.stderr
    assert (
        (trained / "metrics.jsonl").read_text(),
        json.loads((trained / "result.json").read_text()),
    ) == before


def test_a_changed_recipe_is_an_error_and_nothing_is_lost(trained):
    before = (trained / "metrics.jsonl").read_text()
    done = vistill(
        "train",
        REPO / "recipes" / "demo.yaml",
        "--stage",
        "va_opd",
        f"run={trained.parent}",
        *QUICK,
        "rollout.temperature=0.5",
    )
    assert done.returncode == 2
    assert "error[C201]" in done.stderr
    assert "rollout.temperature" in done.stderr
    assert "Traceback" not in done.stderr
    assert (trained / "metrics.jsonl").read_text() == before


def test_eval_and_probe_of_a_run_write_into_their_own_folders(trained):
    done = vistill("eval", trained, "eval.limit=6", "eval.extra_limit=6", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 6
    done = vistill("probe", trained, "eval.extra_limit=4")
    assert done.returncode == 0, done.stderr
    assert "mean visual advantage" in done.stdout
    assert (trained.parent / "va_opd-probe" / "report.html").is_file()
    assert (trained / "result.json").is_file()


@pytest.mark.more
def test_training_from_the_recipe_of_a_run_gives_the_same_bits(trained, tmp_path):
    done = vistill("train", trained / "recipe.json", f"run={tmp_path / 'again'}")
    assert done.returncode == 0, done.stderr
    hashes, metrics = set(), set()
    for folder in (trained, tmp_path / "again"):
        hashes.add(json.loads((folder / "result.json").read_text())["weights_sha256"])
        metrics.add((folder / "metrics.jsonl").read_text())
    assert len(hashes) == len(metrics) == 1


def test_a_report_of_several_runs(trained, tmp_path):
    done = vistill("report", trained, trained, "--out", tmp_path / "both.html")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "both.html").is_file()


@pytest.mark.more
def test_a_start_that_failed_on_bad_data_does_not_lock_the_recipe(tmp_path):
    words = [
        "train",
        REPO / "recipes" / "demo.yaml",
        "--stage",
        "opd",
        f"run={tmp_path / 'r'}",
        *QUICK,
    ]
    assert vistill(*words, "data.train=gone.jsonl").returncode == 3
    error = json.loads((tmp_path / "r" / "opd" / "error.json").read_text())
    assert error["code"] == "D102"
    assert error["exit_code"] == "3"
    done = vistill(*words)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "r" / "opd" / "error.json").exists()


@pytest.mark.more
def test_eval_of_a_run_uses_its_held_out_rows(tmp_path, shared_data):
    data = shared_data / "geometry3k_sample" / "data.jsonl"
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"run: {tmp_path / 'r'}\nstudent: {{model: 'vistill:student'}}\n"
        "teacher: {model: 'vistill:teacher'}\nmethod: va_opd\n"
        f"data: {{train: {data}, holdout: 3, max_prompt_tokens: 4000, "
        "columns: {id: id, choices: choices}}\n"
        "rollout: {per_prompt: 2, max_new_tokens: 6}\n"
        "train: {prompts_per_step: 2, steps: 1, lr: 1e-4}\n"
        "eval: {every: 0, max_new_tokens: 6}\n"
    )
    assert vistill("train", recipe).returncode == 0
    done = vistill("eval", tmp_path / "r", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 3
    too_many = vistill("train", recipe, f"run={tmp_path / 's'}", "train.prompts_per_step=9")
    assert too_many.returncode == 2
    assert "fix   train.prompts_per_step=5" in too_many.stderr


def test_an_overlong_last_row_or_a_missing_response_is_an_error_before_the_first_step(tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    rows = [
        {"question": "short", "images": ["a.png"], "answer": "1", "response": "one"}
        for _ in range(300)
    ]
    rows[-1] = {"question": "long " * 300, "images": ["a.png"], "answer": "1", "response": None}
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"run: {tmp_path / 'r'}\nstudent: {{model: 'vistill:student'}}\nmethod: sft\n"
        f"data: {{train: {data}, max_prompt_tokens: 200, response_template: '{{answer}}'}}\n"
        "train: {steps: 1, prompts_per_step: 2}\n"
    )
    done = vistill("train", recipe)
    assert "D203" in done.stderr, done.stderr
    assert "d.jsonl:300" in done.stderr
    done = vistill("train", recipe, "data.response_template=", "data.columns.response=response")
    assert "D303" in done.stderr, done.stderr
    assert not (tmp_path / "r" / "metrics.jsonl").exists()


def test_init_creates_the_folder_and_rejects_an_unknown_method(tmp_path):
    assert vistill("init", "new/mine.yaml", cwd=tmp_path).returncode == 0
    assert (tmp_path / "new" / "mine.yaml").is_file()
    assert "C102" in vistill("init", "nonsense", cwd=tmp_path).stderr
    assert vistill("--version").stdout.startswith("vistill ")
    assert vistill("explain", "va-opd").returncode == 0


def test_doctor_and_explain():
    assert vistill("doctor").returncode == 0
    assert "p_v" in vistill("explain", "va_opd").stdout
    assert "URL" in vistill("explain", "D205").stdout
    assert vistill("explain", "nonsense").returncode == 2


@pytest.mark.parametrize(
    ("words", "code", "status"),
    [
        (["train", "demo.yaml", "--stage", "va_opd", "rollout.per_prompt=1"], "C103", 2),
        (["train", "demo.yaml", "train.learning_rate=1"], "C001", 2),
        (["train", "nothing.yaml"], "C004", 2),
        (["train", "demo.yaml", "--stage", "opd", "student.model=no/such/model"], "M103", 4),
        (["train", "demo.yaml", "--stage", "opd", "data.train=gone.jsonl"], "D102", 3),
        (["eval", "vistill:teacher", "data.train=gone.jsonl"], "D102", 3),
        (["report", "nowhere"], "S605", 6),
    ],
)
def test_mistakes_give_a_code_a_fix_and_an_exit_status(tmp_path, words, code, status):
    done = vistill(
        *words, *([f"run={tmp_path / 'r'}"] if words[0] == "train" else []), cwd=tmp_path
    )
    assert done.returncode == status, done.stderr
    assert f"error[{code}]" in done.stderr
    assert "fix" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 14


@pytest.mark.more
def test_the_example_script_runs_and_prints_its_steps():
    command = [sys.executable, REPO / "examples" / "va_opd_from_scratch.py"]
    command += ["--steps", "2", "--prompts", "2", "--siblings", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mean VA") == 2


@pytest.mark.more
def test_the_python_api_at_three_depths(tmp_path, trained):
    import vistill as package
    from vistill.data.diagrams import diagram_prompts
    from vistill.evaluation.settings import EvalSettings
    from vistill.rollouts.settings import RolloutSettings
    from vistill.training.settings import TrainSettings

    overrides = {key: int(value) for key, value in (text.split("=") for text in QUICK)}
    overrides |= {"run": str(tmp_path / "x"), "stages": {"opd": {}}}
    run = package.train(REPO / "recipes" / "demo.yaml", overrides)
    assert len(run.metrics) == 2
    assert run.report().is_file()

    student, teacher = package.load("vistill:student"), package.load("vistill:teacher", frozen=True)
    prompts = diagram_prompts("train", 4, 0)
    run = package.distill(
        student,
        teacher,
        prompts,
        package.VAOPD(high_share=0.3),
        out=tmp_path / "mine",
        train=TrainSettings(prompts_per_step=2, steps=2, lr=1e-4),
        rollout=RolloutSettings(per_prompt=2, max_new_tokens=8),
        evaluation=EvalSettings(every=0),
    )
    assert [r["step"] for r in run.metrics] == [1, 2]
    assert run.student.is_dir()

    va = package.visual_advantage(teacher, prompts[:2], [p.response for p in prompts[:2]])
    assert len(va[0].tokens) == len(va[0].values)
    assert max(va[0].values) > 1.0
    assert "<span" in va[0]._repr_html_()
    with pytest.raises(package.VistillError):
        package.visual_advantage(teacher, ["no prompt"], ["text"])
    with pytest.raises(package.VistillError) as caught:
        package.distill(student, teacher, [], package.OPD(), out=tmp_path / "empty")
    assert caught.value.code == "D102"

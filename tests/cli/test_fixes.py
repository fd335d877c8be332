"""Common slips on the command line: the fix is what the user meant."""

import json
import shlex
from pathlib import Path

import pytest

from vistill.cli.main import entry
from vistill.config import load_recipe, load_stages
from vistill.errors import ConfigError, DataError

RECIPE = """\
run: runs/x
method: opd
student: {model: 'vistill:student'}
teacher: {model: 'vistill:teacher'}
data: {train: diagrams}
train: {lr: 1e-4}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a recipe, and the folder of a run."""
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)
    Path("runs/va_opd").mkdir(parents=True)
    Path("runs/va_opd/metrics.jsonl").touch()
    Path("runs/va_opd/recipe.json").write_text(json.dumps({"run": "runs/va_opd"}))
    return tmp_path


def shown(capsys, *words):
    with pytest.raises(SystemExit):
        entry(list(words))
    return capsys.readouterr().err


SLIPS = {
    "a missing model": (["eval", "runs/nope"], 'target "runs/nope" not found',
                        "TARGET   in place of runs/nope"),
    "a misspelt run": (["eval", "runs/va-opd"], "not found",
                       "runs/va_opd   in place of runs/va-opd"),
    "a run to replay": (["replay", "runs/va-opd"], "runs/va-opd does not exist",
                        "runs/va_opd   in place of runs/va-opd"),
    "a run to report": (["report", "runs/va-opd"], "does not exist",
                        "runs/va_opd   in place of runs/va-opd"),
    "a run folder": (["train", "runs/va_opd"], "is a folder, not a recipe",
                     "runs/va_opd/recipe.json   in place of runs/va_opd"),
    "a folder of runs": (["check", "runs"], "is a folder",
                         "runs/va_opd/recipe.json   in place of runs"),
    "a space": (["train", "r.yaml", "train.lr", "1e-5"], "a space in place of =", "train.lr=1e-5"),
    "two spaces": (["check", "r.yaml", "train.lr", "=", "1e-5"], "a space", "train.lr=1e-5"),
    "a method": (["check", "r.yaml", "method=minillm"], 'did you mean "distillm"?',
                 "method=distillm"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(SLIPS))
def test_the_fix_is_what_was_meant(name, folder, capsys):
    words, what, fix = SLIPS[name]
    err = shown(capsys, *words)
    assert what in err
    assert f"fix   {fix}" in err
    assert "student.model" not in err


def test_a_tab_is_answered_with_spaces(folder):
    Path("r.yaml").write_text(RECIPE.replace("train: {lr: 1e-4}", "train:\n\tlr: 1e-4"))
    with pytest.raises(ConfigError) as caught:
        load_recipe("r.yaml")
    assert (caught.value.code, caught.value.where) == ("C003", "r.yaml:7")
    assert caught.value.what == "a tab where YAML wants spaces"
    assert caught.value.fix.startswith("use spaces")


OVERRIDES = {
    "a value": "train.lr=abc",
    "a key": "train.lrr=1e-5",
    "a method": "method=minillm",
    "a name": "rollout.engine=nothing",
    "a reward": "reward.extra.nothing=1",
    "a group": "train={lr: abc}",
}


@pytest.mark.parametrize("name", list(OVERRIDES))
def test_an_error_of_an_override_points_at_the_command_line(name, folder):
    text = OVERRIDES[name]
    for overrides, where in (([text], "command line"), (dict([text.split("=")]), "overrides")):
        if "{" in text and where == "overrides":
            continue
        with pytest.raises(ConfigError) as caught:
            load_recipe("r.yaml", overrides)
        assert caught.value.where == where
    with pytest.raises(ConfigError) as caught:
        load_recipe("r.yaml", ["rollout.per_prompt=4", "data.train=diagrams", "data.diagram=1"])
    assert caught.value.where == "command line"


def test_an_error_of_the_file_points_at_its_line_and_of_a_stage_at_the_stage(folder):
    Path("r.yaml").write_text(RECIPE.replace("1e-4", "abc"))
    with pytest.raises(ConfigError) as caught:
        load_recipe("r.yaml", ["rollout.per_prompt=4"])
    assert caught.value.where == "r.yaml:6"
    Path("r.yaml").write_text(RECIPE + "stages: {a: {}, b: {train.epochs: 2}}\n")
    with pytest.raises(ConfigError) as caught:
        load_stages("r.yaml", ["stages.b.train.lr=abc"])
    assert caught.value.where == "command line, stage b"


def test_the_template_of_the_fix_fills_in_the_answer(folder):
    from vistill.data.rows import fill_template
    from vistill.training.response_source import check_response
    from vistill.types import Prompt

    with pytest.raises(DataError) as caught:
        check_response(Prompt("a", ("Why?",), answer="7"))
    (setting,) = [word for word in shlex.split(caught.value.fix) if "template=" in word]
    template = load_recipe("r.yaml", [setting]).data.response_template
    assert fill_template(template, answer="7") == r"The answer is \boxed{7}."


def test_a_hub_that_does_not_answer_is_asked_once_and_its_model_is_not_proposed(monkeypatch):
    from vistill.runs import hub
    from vistill.runs.model_not_found import model_not_found_error

    assert hub.hub_answers(f"file://{__file__}")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.warns(UserWarning, match="does not answer"):
        hub.ask_hub()
    assert hub.is_offline()
    error = model_not_found_error("Qwen/Qwen3-VL-8B-Instruct", "teacher")
    assert error.fix.startswith("teacher.model=FOLDER   or, with a network,   hf download Qwen/")
    assert "it does not answer" in error.why

"""`--profile` of `vistill train` and `vistill check`: the settings of `vistill plan --profile`."""

import json
from pathlib import Path

import pytest

from vistill.cli.main import entry
from vistill.cli.verbs import with_profile
from vistill.planning.gpus import PROFILES

RECIPE = """\
run: run
student: {model: 'vistill:student'}
teacher: {model: 'vistill:teacher'}
method: opd
data: {train: diagrams, diagrams: {train: 8, eval: 4}, text_only: plain}
rollout: {per_prompt: 2, max_new_tokens: 6, all_truncated: go_on, rows_per_call: 64}
train: {prompts_per_step: 2, steps: 1}
eval: {every: 0}
save: {every: 1, keep: 2}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)
    return tmp_path


def run_verb(*words):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        entry(list(words))
    return stop.value.code or 0


def test_settings_of_a_profile_are_over_the_recipe_and_under_the_command_line(capsys):
    settings = [s for s in PROFILES["24gb"].settings if not s.startswith("eval.")]
    words = with_profile("24gb", ["eval.rows_per_call=7"])
    assert words == [*settings, "eval.rows_per_call=7"]
    assert f"--profile 24gb: {' '.join(settings)}\n" in capsys.readouterr().err
    assert with_profile(None, ["train.steps=1"]) == ["train.steps=1"]


@pytest.mark.parametrize("verb", ["train", "check", "plan"])
def test_an_unknown_profile_is_refused(place, capsys, verb):
    assert run_verb(verb, "r.yaml", "--profile", "25gb") != 0
    err = capsys.readouterr().err
    assert "C132" in err
    assert "--profile 24gb" in err
    assert not Path("run").exists()


def test_check_takes_a_profile_and_its_json_stays_json(place, capsys):
    assert run_verb("check", "r.yaml", "--fast", "--profile", "48gb", "--json") == 0
    shown = capsys.readouterr()
    assert f"--profile 48gb: {' '.join(PROFILES['48gb'].settings)}" in shown.err
    json.loads(shown.out)


@pytest.mark.more
def test_a_run_with_a_profile_stores_its_settings_and_the_same_command_resumes(place, capsys):
    words = ["train", "r.yaml", "--profile", "24gb"]
    assert run_verb(*words) == 0
    stored = json.loads(Path("run/recipe.json").read_text())
    assert stored["train"]["offload_teacher"] is True
    assert (stored["rollout"]["rows_per_call"], stored["eval"]["rows_per_call"]) == (4, 4)
    before = Path("run/metrics.jsonl").read_text()
    more = ["train.steps=2", "--accept", "train.steps"]
    assert run_verb(*words, *more) == 0
    after = Path("run/metrics.jsonl").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == 2
    starts = json.loads(Path("run/run.lock.json").read_text())["accepted"]
    assert starts == ["train.steps"]

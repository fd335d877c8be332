"""Mistakes in plug-ins end in a coded message that names the plug-in, not in a bare traceback."""

import json

import pytest

from vistill.batch import undeclared_pass
from vistill.config import build_recipe, load_recipe
from vistill.data.math_judge import MathJudge
from vistill.errors import ConfigError
from vistill.registry import forget_plugins, load_plugins
from vistill.training.rewards import Rewards
from vistill.training.settings import RewardSettings
from vistill.types import Prompt

REWARDS = """
from vistill.registry import rewards


@rewards.register("word")
def word(response, prompt, settings, math):
    return "good"


@rewards.register("zero")
def zero(response, prompt, settings, math):
    return 1 / len(response)


@rewards.register("endless")
def endless(response, prompt, settings, math):
    return float("inf")


@rewards.register("whole")
def whole(response, prompt, settings, math):
    return 2
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(REWARDS)
    load_plugins(["mine.py"])
    yield tmp_path
    forget_plugins()


def reward_of(name):
    settings = RewardSettings(accuracy=0.0, format=0.0, extra={name: 0.5})
    prompt = Prompt("p", ("?",), answer="1")
    return Rewards(settings, None, MathJudge()).value_of(name, "", prompt)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("word", "'good'"), ("zero", "ZeroDivisionError"), ("endless", "no finite number")],
)
def test_a_reward_that_fails_is_named_with_its_file(name, reason, plugin):
    with pytest.raises(ConfigError) as caught:
        reward_of(name)
    assert caught.value.code == "C106"
    assert caught.value.where == "file mine.py"
    assert f"the reward {name} failed" in caught.value.what
    assert reason in caught.value.why


def test_a_reward_may_be_a_whole_number(plugin):
    assert reward_of("whole") == 2.0


def recipe_of(run, reward):
    return {
        "run": str(run),
        "student": {"model": "vistill:student"},
        "method": "grpo",
        "reward": {"extra": {reward: 0.5}},
    }


def test_a_run_without_its_plugin_names_the_file_to_give(plugin):
    code = {"rewards.word": {"from": "file mine.py", "sha256": "0"}}
    run = plugin / "run"
    run.mkdir()
    (run / "run.lock.json").write_text(json.dumps({"code": code}))
    assert build_recipe(recipe_of(run, "word")).reward.extra == {"word": 0.5}
    forget_plugins()
    with pytest.raises(ConfigError) as caught:
        build_recipe(recipe_of(run, "word"))
    assert caught.value.code == "C105"
    assert caught.value.fix == 'plugins=["mine.py"]'
    with pytest.raises(ConfigError) as caught:
        build_recipe(recipe_of(plugin / "other", "word"))
    assert caught.value.fix == "reward.extra={}"


def test_a_pass_that_is_not_declared_is_named():
    error = undeclared_pass("teacher.full", ["student.full", "teacher.text_only"])
    assert error.code == "C106"
    assert "teacher.full" in error.what
    assert "student.full, teacher.text_only" in error.why
    assert 'Pass(Reader.TEACHER, "full")' in error.fix


def test_the_fix_of_a_missing_plugin_works(plugin):
    (plugin / "r.yaml").write_text(json.dumps(recipe_of(plugin / "run", "word")))
    forget_plugins()
    assert load_recipe("r.yaml", {}, plugins=["mine.py"]).reward.extra == {"word": 0.5}

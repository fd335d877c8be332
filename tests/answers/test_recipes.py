"""Recipes name checkers: the old name, the column of a row, and limits in the metrics."""

from dataclasses import replace

import pytest

from vistill.answers.checkers import auto
from vistill.answers.math_process import MathJudge
from vistill.data.judging import judge_response
from vistill.data.rows import RowReader
from vistill.data.settings import Columns, DataSettings
from vistill.errors import ConfigError, DataError
from vistill.evaluation.runner import protocol_number
from vistill.evaluation.settings import EvalSettings
from vistill.registry import checkers
from vistill.runs.recipe_changes import compare_recipes, differences
from vistill.training.rewards import Rewards
from vistill.training.settings import RewardSettings
from vistill.types import Finish, Prompt, Rollout, RolloutGroup


def test_the_name_of_earlier_versions_is_auto():
    assert EvalSettings(checker="answers") == EvalSettings()
    assert RewardSettings(checker="answers") == RewardSettings()
    assert protocol_number(EvalSettings(checker="answers")) == protocol_number(EvalSettings())
    assert protocol_number(EvalSettings(checker="number")) != protocol_number(EvalSettings())


def test_a_run_of_an_earlier_version_continues():
    old = {"run": "r", "reward": {"checker": "answers"}, "eval": {"checker": "answers"}}
    new = {"run": "r", "reward": {"checker": "auto"}, "eval": {"checker": "auto"}}
    assert differences(old, new) == {}
    assert compare_recipes(old, new) == []
    with pytest.raises(ConfigError, match="C201"):
        compare_recipes(old, {**new, "reward": {"checker": "number"}})


def test_an_unknown_checker_is_named():
    with pytest.raises(ConfigError) as error:
        EvalSettings(checker="nmber")
    assert error.value.code == "C105"
    assert "number" in str(error.value)


def read(row, tmp_path):
    settings = DataSettings(columns=Columns(checker="by"))
    return RowReader(settings, "rows.jsonl", tmp_path).prompt(row, 1)


def test_a_row_names_its_own_checker(tmp_path):
    row = {"question": "how many?", "answer": "100", "by": "relaxed"}
    prompts = [read(row, tmp_path), read({**row, "by": ""}, tmp_path)]
    with MathJudge() as math:
        correct = [judge_response("104", p, EvalSettings(), math).correct for p in prompts]
    assert correct == [True, False]
    assert prompts[0].content != prompts[1].content
    with pytest.raises(DataError) as error:
        read({**row, "by": "relaxd"}, tmp_path)
    assert error.value.code == "D104"


def test_limits_are_counted_once_per_step():
    rewards = Rewards(RewardSettings(), None, MathJudge())
    rewards.math._ask = lambda *question: "time"
    prompt = Prompt("a", ("x?",), answer="2\\sqrt{3}")
    assert not judge_response("\\boxed{\\sqrt{13}}", prompt, rewards.settings, rewards.math).correct
    rewards = replace(rewards, settings=replace(rewards.settings, accuracy=0.0))
    assert rewards.metrics() == {"judge/time": 1.0}
    assert rewards.metrics() == {}


@pytest.mark.usefixtures("clean_registry")
def test_responses_without_an_answer_are_counted_and_each_is_judged_once(teacher):
    judged = []

    @checkers.register("counting")
    def count(response, answer, choices, take, math):
        judged.append(response)
        return auto.check(response, answer, choices, take, math)

    replies = ["\\boxed{12}", "\\boxed{12", "I see a triangle and a square."]
    rollouts = [
        Rollout(teacher.response_ids(text), i, Finish.STOP) for i, text in enumerate(replies)
    ]
    group = RolloutGroup(Prompt("a", ("x?",), answer="12"), tuple(rollouts))
    with MathJudge() as math:
        rewards = Rewards(RewardSettings(checker="counting"), teacher, math)
        assert rewards.of([group]) == [1.0, 0.0, 0.0]
        assert rewards.metrics() == {"reward/unparsed_share": pytest.approx(2 / 3)}
        assert rewards.of([group]) == [1.0, 0.0, 0.0]  # a step that is done again
        assert rewards.metrics() == {"reward/unparsed_share": pytest.approx(2 / 3)}
    assert judged == 2 * replies

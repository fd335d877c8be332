"""Responses that never end, are all the same, or have no visual advantage: warn, count, stop."""

from dataclasses import replace

import pytest
from training.test_loop import make_plan

from vistill.errors import RolloutError
from vistill.objectives import VAOPD
from vistill.rollouts.scripted import ScriptedEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.folder import RunFolder
from vistill.training.loop import run
from vistill.training.rollout_health import RolloutHealth, always_truncated_error

pytestmark = pytest.mark.usefixtures("without_canary")


def scripted_plan(tokenizer, teacher, script, **changes):
    """A plan whose engine writes what the script says."""
    plan = make_plan(tokenizer, teacher, eval_prompts=[], num_steps=5, **changes)
    stop = plan.models.student.stop_ids[0]
    engine = ScriptedEngine(lambda key, sibling: script(sibling, stop), stop)
    changes = {"models": plan.models, "engine": engine, **changes}
    return make_plan(tokenizer, teacher, eval_prompts=[], num_steps=5, **changes)


def stop_if_all_truncated(plan):
    """The plan with the default of users: stop if no response ends by itself."""
    return replace(plan, rollout=replace(plan.rollout, all_truncated="stop"))


def test_three_steps_without_one_response_that_ends_stop_the_run(tokenizer, teacher, tmp_path):
    plan = stop_if_all_truncated(
        scripted_plan(tokenizer, teacher, lambda sibling, stop: (20, 21 + sibling))
    )
    folder = RunFolder(tmp_path)
    with pytest.raises(RolloutError) as caught:
        run(plan, folder)
    assert caught.value.code == "R401"
    assert len(folder.read(folder.metrics)) == 3
    assert "rollout.all_truncated=go_on" in caught.value.note


def test_one_response_that_ends_is_enough_and_many_truncated_ones_give_one_warning(
    tokenizer, teacher, tmp_path
):
    plan = stop_if_all_truncated(
        scripted_plan(tokenizer, teacher, lambda sibling, stop: (20, stop) if sibling else (20, 21))
    )
    folder = RunFolder(tmp_path)
    assert run(plan, folder).step == 5
    warning = "50.0 % of the responses were cut off at rollout.max_new_tokens="
    assert folder.events.read_text().count(warning) == 1


def test_identical_siblings_give_one_warning_and_equal_weights(tokenizer, teacher, tmp_path):
    plan = scripted_plan(tokenizer, teacher, lambda sibling, stop: (20, 21, stop))
    folder = RunFolder(tmp_path)
    run(plan, folder)
    assert folder.events.read_text().count("all siblings of every prompt are the same") == 1
    assert {(r["weight/min"], r["weight/max"]) for r in folder.read(folder.metrics)} == {(0.5, 0.5)}


def test_responses_of_one_token_have_finite_losses(tokenizer, teacher, tmp_path):
    plan = scripted_plan(tokenizer, teacher, lambda sibling, stop: (stop,))
    folder = RunFolder(tmp_path)
    run(plan, folder)
    records = folder.read(folder.metrics)
    assert len(records) == plan.num_steps
    assert all(r["finite"] == 1.0 and r["rollout/length_mean"] == 1.0 for r in records)


def test_steps_without_visual_advantage_give_one_warning():
    health, warnings = RolloutHealth(), []
    for share in (0.4, 1.0, 1.0):
        metrics = {"rollout/truncated_share": 0.0, "va/zero_share": share}
        warnings.append(health.update(metrics, [], RolloutSettings(), VAOPD().warnings(metrics)))
    assert [len(new) for new in warnings] == [0, 1, 0]
    assert "no token of this step" in warnings[1][0]
    assert health.warned == ["blind"]


def test_many_rewarded_responses_without_an_answer_give_one_warning():
    health, warnings = RolloutHealth(), []
    for share in (0.1, 0.5, 0.5):
        metrics = {"rollout/truncated_share": 0.0, "reward/unparsed_share": share}
        warnings.append(health.update(metrics, [], RolloutSettings()))
    assert [len(new) for new in warnings] == [0, 1, 0]
    assert "50.0 % of the responses contain no answer" in warnings[1][0]


def test_a_response_that_ends_resets_the_count_of_truncated_steps():
    health, rollout = RolloutHealth(), RolloutSettings()
    counts, stops = [], []
    for share in (1.0, 1.0, 0.5, 1.0, 1.0, 1.0):
        health.update({"rollout/truncated_share": share}, [], rollout)
        counts.append(health.all_truncated_in_a_row)
        stops.append(health.never_ends(rollout))
    assert counts == [1, 2, 0, 1, 2, 3]
    assert stops == [False] * 5 + [True]
    assert not health.never_ends(replace(rollout, all_truncated="go_on"))


@pytest.mark.parametrize(
    ("most", "fix"),
    [
        (900, "rollout.max_new_tokens=24 run="),
        (20, "rollout.max_new_tokens=20 run="),
        (12, "rollout.all_truncated=go_on"),
    ],
)
def test_a_longer_response_is_proposed_only_where_the_positions_hold_it(most, fix, tmp_path):
    rollout = RolloutSettings(max_new_tokens=12)
    error = always_truncated_error(RolloutHealth(3), rollout, 3, str(tmp_path), most)
    assert error.fix.startswith(fix)

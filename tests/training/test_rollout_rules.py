"""Responses that never end, are all the same, or hold nothing: said, counted, stopped."""

import pytest
from training.test_loop import make_plan

from vistill.errors import RolloutError
from vistill.rollouts.scripted import ScriptedEngine
from vistill.runs.folder import RunFolder
from vistill.training.loop import run
from vistill.training.rollout_health import rollout_warnings
from vistill.training.run_state import RunState
from vistill.training.step import StepResult

pytestmark = pytest.mark.usefixtures("without_canary")


def scripted(tokenizer, teacher, script, **changes):
    """A plan whose student says what the script says."""
    plan = make_plan(tokenizer, teacher, eval_prompts=[], num_steps=5, **changes)
    stop = plan.models.student.stop_ids[0]
    engine = ScriptedEngine(lambda key, sibling: script(sibling, stop), stop)
    changes = {"models": plan.models, "engine": engine, **changes}
    return make_plan(tokenizer, teacher, eval_prompts=[], num_steps=5, **changes)


def without_switch(plan):
    """The rollout settings of users: stop where nothing ever ends."""
    from dataclasses import replace

    return replace(plan, rollout=replace(plan.rollout, all_truncated="stop"))


def test_three_steps_without_one_response_that_ends_stop_the_run(tokenizer, teacher, tmp_path):
    plan = without_switch(scripted(tokenizer, teacher, lambda sibling, stop: (20, 21 + sibling)))
    folder = RunFolder(tmp_path)
    with pytest.raises(RolloutError) as caught:
        run(plan, folder)
    assert caught.value.code == "R401"
    assert len(folder.read(folder.metrics)) == 3
    assert "rollout.all_truncated=go_on" in caught.value.note


def test_one_response_in_three_steps_that_ends_is_enough_and_many_cut_off_ones_are_said_once(
    tokenizer, teacher, tmp_path
):
    plan = without_switch(
        scripted(tokenizer, teacher, lambda sibling, stop: (20, stop) if sibling else (20, 21))
    )
    folder = RunFolder(tmp_path)
    assert run(plan, folder).step == 5
    assert folder.events.read_text().count("50% of the responses were cut off") == 1


def test_siblings_that_are_all_the_same_are_said_once_and_their_weights_are_equal(
    tokenizer, teacher, tmp_path
):
    plan = scripted(tokenizer, teacher, lambda sibling, stop: (20, 21, stop))
    folder = RunFolder(tmp_path)
    run(plan, folder)
    assert folder.events.read_text().count("all siblings of every prompt are the same") == 1
    assert {(r["weight/min"], r["weight/max"]) for r in folder.read(folder.metrics)} == {(0.5, 0.5)}


def test_responses_of_one_token_have_finite_losses(tokenizer, teacher, tmp_path):
    plan = scripted(tokenizer, teacher, lambda sibling, stop: (stop,))
    folder = RunFolder(tmp_path)
    run(plan, folder)
    assert all(r["finite"] == 1.0 for r in folder.read(folder.metrics))


def test_a_step_in_which_no_token_has_visual_advantage_is_said_once(tokenizer, teacher):
    plan, state, said = make_plan(tokenizer, teacher), RunState(step=1), []
    for zero in (0.4, 1.0, 1.0):
        metrics = {"rollout/truncated_share": 0.0, "va/zero_share": zero}
        said.append(
            rollout_warnings(
                plan.rollout, state, StepResult(metrics, [], None, {}, {}, True, 1), "run"
            )
        )
    assert [len(warnings) for warnings in said] == [0, 1, 0]
    assert "no token of this step" in said[1][0]

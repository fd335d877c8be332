"""What a progress callback receives: phases, steps, evaluations, and how much is left."""

import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from plans import prepare_run
from test_loop import make_plan

from vistill import phases
from vistill.data.diagrams import diagram_prompts
from vistill.evaluation.responses import JudgedResponse, pick_response
from vistill.evaluation.runner import num_responses
from vistill.evaluation.settings import EvalSettings
from vistill.phases import report_phases
from vistill.runs.folder import RunFolder
from vistill.training.interrupt import Interrupted, preempted_error
from vistill.training.loop import run
from vistill.training.progress_records import steps_due
from vistill.training.settings import SaveSettings, TrainSettings
from vistill.types import Finish, Rollout, View

pytestmark = pytest.mark.usefixtures("without_canary")


@pytest.fixture(scope="module")
def records(tokenizer, teacher, tmp_path_factory, without_canary):
    """The records of a run of four steps, without its checks, during which no time passes.

    So nothing but the places that send records limits their number.
    """
    collected = []
    plan = make_plan(
        tokenizer,
        teacher,
        train=TrainSettings(prompts_per_step=2, steps=4, lr=3e-3),
        evaluation=EvalSettings(every=2, limit=3, max_new_tokens=5, blind=False, greedy=False),
        save=SaveSettings(every=3, keep_best="none"),
        progress=collected.append,
        num_steps=4,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: 1.0)  # events are limited by time
        run(plan, RunFolder(tmp_path_factory.mktemp("run")))
    return collected


def kind_of(record):
    """The phase of a record, or what else it is."""
    kinds = ("event", "loss", "eval/accuracy")
    return record.get("phase") or next(kind for kind in kinds if kind in record)


STEP = ["writing responses", "scoring", "learning", "loss"]
EVALUATION = ["evaluating", "evaluating", "evaluating tokens", "eval/accuracy"]


def test_a_step_sends_three_phases_and_one_record(records):
    """The number of records does not grow with tokens, responses or micro-batches."""
    kinds = [kind_of(record) for record in records if "event" not in record]
    saving = ["saving"]
    first, second = [*EVALUATION, *STEP, *STEP], [*EVALUATION, *STEP, *saving]
    assert kinds == [*first, *second, *STEP, *EVALUATION, *saving]


def test_a_step_says_how_much_is_left(records):
    steps = [record for record in records if "loss" in record]
    # three responses and two per diagram of none: an evaluation is due at steps 2 and 4
    assert [r["evaluation_responses_left"] for r in steps] == [6, 6, 3, 3]
    assert [r["saves_left"] for r in steps] == [2, 2, 2, 1]


@pytest.mark.more
def test_a_run_names_the_phases_of_its_start_checks(tokenizer, teacher, tmp_path):
    collected = []
    prepare_run(make_plan(tokenizer, teacher, progress=collected.append), RunFolder(tmp_path))
    names = list(map(kind_of, collected))
    assert names[0] == "checking code"
    assert {"checking rows", "loading models", "measuring memory"} <= set(names)


def test_an_evaluation_sends_one_response_with_its_verdict(records):
    evaluations = [record for record in records if "eval/accuracy" in record]
    assert [record["step"] for record in evaluations] == [0, 2, 4]
    response = evaluations[0]["response"]
    assert {*response} == {"question", "gold", "text", "extracted", "correct", "rule", "reason"}
    assert response["correct"] is False
    assert response["reason"]


def test_steps_at_which_something_is_due_are_counted_from_the_current_one():
    def by_hand(step, every, last):
        return sum(s % every == 0 for s in range(step, last)) if every else 0

    for every in (0, 1, 3, 7):
        for step in range(1, 20):
            assert steps_due(step, every, 19) == (by_hand(step, every, 19), 19)


def test_the_size_of_an_evaluation_is_the_number_of_its_responses():
    settings = EvalSettings(limit=100, extra_limit=20, samples=2)
    assert num_responses(settings, 1000) == 100 * 2 + 20 + 3 * 20 * 2
    assert num_responses(settings, 1000, diagrams=500) == 340 + 2 * 128
    assert num_responses(replace(settings, limit=None, blind=False, greedy=False), 7) == 14


def test_the_response_that_is_shown_is_sampled_judged_and_picked_by_a_key():
    prompts = [replace(p, answer="1") for p in diagram_prompts("test", 8, 0)]
    rollout = Rollout((1,), 0, Finish.STOP)
    responses = [
        JudgedResponse(p, view, mode, rollout, "text", None, False, "", "why")
        for p in prompts
        for view, mode in (
            (View.FULL, "sampled"),
            (View.FULL, "greedy"),
            (View.PIXELATED, "sampled"),
        )
    ]
    picked = [pick_response(responses, 0, step)["question"] for step in range(40)]
    assert len(set(picked)) > 3
    assert picked == [pick_response(responses, 0, step)["question"] for step in range(40)]
    assert pick_response(responses[1:3], 0, 0) is None
    assert pick_response([], 0, 0) is None


def test_a_stop_by_a_signal_says_what_is_saved():
    stop = preempted_error(Interrupted(signal.SIGINT), 3, 12, Path("runs/a/checkpoint-000003"))
    assert stop.what == "stopped by Ctrl-C after step 3 of 12; saved: runs/a/checkpoint-000003"
    assert stop.exit_code == 130
    stop = preempted_error(Interrupted(signal.SIGTERM), None)
    assert stop.what == "stopped by SIGTERM before the first step; files written so far are kept"
    assert stop.exit_code == 75


def test_a_callback_of_one_run_gets_no_record_of_another():
    inner, outer = [], []
    with report_phases(outer.append):
        with report_phases(inner.append), phases.open_phase("saving"):
            pass
        with phases.open_phase("canary", 2):
            pass
    assert [r["phase"] for r in inner] == ["saving"]
    assert [r["phase"] for r in outer] == ["canary"]

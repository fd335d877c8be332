"""A teacher that rests between its readings: same numbers, no device copy left behind, its head always there."""

from dataclasses import replace

import pytest
import torch
from poisoned import with_nan_offload

from vistill.models.scoring import EncodedGroup, response_states
from vistill.objectives import METHODS, VAOPD
from vistill.rollouts.settings import RolloutSettings
from vistill.rollouts.shared import SharedEngine
from vistill.training.context import StepContext
from vistill.training.optim import make_optimizer
from vistill.training.response_source import ResponseSource
from vistill.training.run_state import RunState
from vistill.training.settings import TrainSettings
from vistill.training.step import train_step
from vistill.training.step_inputs import Models

TRAIN = TrainSettings(prompts_per_step=2, lr=1e-3)


@pytest.fixture
def resting(tokenizer):
    from conftest import build_model

    return build_model(tokenizer, 1, hidden=48).freeze().offloaded()


def pointers(vlm):
    return [p.data_ptr() for p in vlm.model.parameters()]


def test_weights_are_copies_inside_and_the_hosts_own_outside(resting):
    host = {x.data_ptr() for x in resting.offload.host}
    head = resting.head(10).weight.data_ptr()
    outside = pointers(resting)
    assert set(outside) - host == {head}
    with resting.on_device(), resting.on_device():
        inside = pointers(resting)
        assert not host & set(inside)
        assert resting.head(10).weight.data_ptr() == head
    assert pointers(resting) == outside


def test_an_error_while_it_reads_still_sends_it_back(resting):
    outside = pointers(resting)
    with pytest.raises(RuntimeError, match="boom"), resting.on_device():
        raise RuntimeError("boom")
    assert pointers(resting) == outside


def test_a_model_that_learns_cannot_rest(student):
    with pytest.raises(AssertionError, match="cannot rest"):
        student.offloaded()


def test_a_reading_outside_is_seen_where_resting_weights_are_poisoned(tokenizer, prompts):
    from conftest import build_model

    never, sometimes = (build_model(tokenizer, 1, hidden=48).freeze() for _ in range(2))
    sometimes = with_nan_offload(sometimes)
    groups = [EncodedGroup(never.encode(prompts[0]), ((40, 41, 42),))]
    with torch.no_grad():
        assert bool(response_states(sometimes, groups).isnan().all())
        with sometimes.on_device():
            inside = response_states(sometimes, groups)
        assert torch.equal(inside, response_states(never, groups))
        assert bool(response_states(sometimes, groups).isnan().all())
        assert not bool(sometimes.head(10).weight.isnan().any())


@pytest.mark.parametrize("away", ["at the host", "poisoned"])
@pytest.mark.parametrize("method", ["va_opd", "vgs", "opd"])
def test_a_step_with_a_resting_teacher_is_bit_for_bit_the_same(
    method, away, tokenizer, teacher, resting, prompts
):
    from conftest import build_model

    if away == "poisoned":
        resting = with_nan_offload(build_model(tokenizer, 1, hidden=48).freeze())
    found = []
    for other in (teacher, resting):
        own = build_model(tokenizer, 0)
        objective = METHODS[method]()
        context = StepContext(
            models=Models(own, other, own.vocabulary_size),
            response_source=ResponseSource(SharedEngine(own), objective, 2),
            optimizer=make_optimizer(own.model, TRAIN),
            train=TRAIN,
            rollout=RolloutSettings(max_new_tokens=6, all_truncated="go_on"),
            seed=0,
            num_steps=4,
        )
        metrics = train_step(context, prompts[:2], RunState()).metrics
        found.append((metrics, torch.cat([p.detach().flatten() for p in own.model.parameters()])))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_it_comes_once_a_step_for_all_its_readings_and_is_away_while_the_student_writes_and_learns(
    student, resting, prompts, monkeypatch
):
    seen = []
    here, arrivals = type(resting.offload).on_device, []

    def counted(self):
        arrivals.append(self.depth)
        return here(self)

    monkeypatch.setattr(type(resting.offload), "on_device", counted)
    objective = VAOPD()
    engine = SharedEngine(student, lambda: seen.append(("writing", resting.offload.depth)))
    context = StepContext(
        models=Models(student, resting, student.vocabulary_size),
        response_source=ResponseSource(engine, objective, 2),
        optimizer=make_optimizer(student.model, TRAIN),
        train=TRAIN,
        rollout=RolloutSettings(max_new_tokens=4, all_truncated="go_on"),
        seed=0,
        num_steps=4,
    )
    watched = replace(
        context,
        response_source=replace(
            context.response_source, objective=watching(objective, resting, seen)
        ),
    )
    train_step(watched, prompts[:2], RunState())
    assert arrivals == [0]
    assert {depth for what, depth in seen if what == "writing"} == {0}
    assert {depth for what, depth in seen if what == "learning"} == {0}


def watching(objective, resting, seen):
    """The same method, noting whether the teacher is there when its terms are asked for."""

    class Watching(type(objective)):
        def terms(self, batch, signals):
            seen.append(("learning", resting.offload.depth))
            return super().terms(batch, signals)

    return Watching()

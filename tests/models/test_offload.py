"""An offloaded teacher: same numbers, no device copy left, its head always on the device."""

from dataclasses import replace

import pytest
import torch
from poisoned import TwoDevices, with_nan_offload
from tiers import few

from vistill.models.scoring import EncodedGroup, response_states
from vistill.objectives import METHODS, VAOPD
from vistill.rollouts.settings import RolloutSettings
from vistill.rollouts.shared import SharedEngine
from vistill.runs.folder import RunFolder
from vistill.training.build import START_CHECKS
from vistill.training.context import StepContext
from vistill.training.loop import run
from vistill.training.models_of_run import Models
from vistill.training.optim import make_optimizer
from vistill.training.response_source import ResponseSource
from vistill.training.run_state import RunState
from vistill.training.settings import TrainSettings
from vistill.training.step import train_step

TRAIN = TrainSettings(prompts_per_step=2, lr=1e-3)


@pytest.fixture
def offloaded(tokenizer):
    from conftest import build_model

    return build_model(tokenizer, 1, hidden=48).freeze().offloaded()


def pointers(vlm):
    return [p.data_ptr() for p in vlm.model.parameters()]


def test_weights_are_device_copies_inside_and_host_copies_outside(offloaded):
    host = {x.data_ptr() for x in offloaded.offload.host}
    head = offloaded.head(10).weight.data_ptr()
    outside = pointers(offloaded)
    assert set(outside) - host == {head}
    with offloaded.on_device(), offloaded.on_device():
        inside = pointers(offloaded)
        assert not host & set(inside)
        assert offloaded.head(10).weight.data_ptr() == head
    assert pointers(offloaded) == outside


def test_after_an_error_the_weights_are_on_the_host_again(offloaded):
    outside = pointers(offloaded)
    with pytest.raises(RuntimeError, match="failed"), offloaded.on_device():
        raise RuntimeError("failed")
    assert pointers(offloaded) == outside


def test_a_trained_model_cannot_be_offloaded(student):
    with pytest.raises(AssertionError, match="cannot be offloaded"):
        student.offloaded()


def test_a_reading_outside_gives_nan_with_a_poisoned_model(tokenizer, prompts):
    from conftest import build_model

    reference, offloaded = (build_model(tokenizer, 1, hidden=48).freeze() for _ in range(2))
    offloaded = with_nan_offload(offloaded)
    groups = [EncodedGroup(reference.encode(prompts[0]), ((40, 41, 42),))]
    with torch.no_grad():
        assert bool(response_states(offloaded, groups).isnan().all())
        with offloaded.on_device():
            inside = response_states(offloaded, groups)
        assert torch.equal(inside, response_states(reference, groups))
        assert bool(response_states(offloaded, groups).isnan().all())
        assert not bool(offloaded.head(10).weight.isnan().any())


@pytest.mark.parametrize("kind", ["host copies", "poisoned"])
@pytest.mark.parametrize("method", few(["va_opd", "vgs", "opd"], 0))
def test_a_step_with_an_offloaded_teacher_is_bit_for_bit_the_same(
    method, kind, tokenizer, teacher, offloaded, prompts
):
    from conftest import build_model

    if kind == "poisoned":
        offloaded = with_nan_offload(build_model(tokenizer, 1, hidden=48).freeze())
    results = []
    for other in (teacher, offloaded):
        student = build_model(tokenizer, 0)
        objective = METHODS[method]()
        context = StepContext(
            models=Models(student, other, student.vocabulary_size),
            response_source=ResponseSource(SharedEngine(student), objective, 2),
            optimizer=make_optimizer(student.model, TRAIN),
            train=TRAIN,
            rollout=RolloutSettings(max_new_tokens=6, all_truncated="go_on"),
            seed=0,
            num_steps=4,
        )
        metrics = train_step(context, prompts[:2], RunState()).metrics
        weights = torch.cat([p.detach().flatten() for p in student.model.parameters()])
        results.append((metrics, weights))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_the_weights_move_once_per_step_and_are_away_during_rollouts_and_backward(
    student, offloaded, prompts, monkeypatch
):
    depths = []
    on_device, calls = type(offloaded.offload).on_device, []

    def counted(self):
        calls.append(self.depth)
        return on_device(self)

    # nothing else shows how often weights are copied to the device
    monkeypatch.setattr(type(offloaded.offload), "on_device", counted)
    objective = VAOPD()
    engine = SharedEngine(student, lambda: depths.append(("rollouts", offloaded.offload.depth)))
    context = StepContext(
        models=Models(student, offloaded, student.vocabulary_size),
        response_source=ResponseSource(engine, objective, 2),
        optimizer=make_optimizer(student.model, TRAIN),
        train=TRAIN,
        rollout=RolloutSettings(max_new_tokens=4, all_truncated="go_on"),
        seed=0,
        num_steps=4,
    )
    recorded = replace(
        context,
        response_source=replace(
            context.response_source, objective=record_depth(objective, offloaded, depths)
        ),
    )
    train_step(recorded, prompts[:2], RunState())
    assert calls == [0]
    assert {depth for phase, depth in depths if phase == "rollouts"} == {0}
    assert {depth for phase, depth in depths if phase == "terms"} == {0}


@pytest.mark.parametrize("settings", few([{}, {"gradient_checkpointing": True}], 1))
def test_a_run_with_an_offloaded_teacher_starts_and_learns_on_a_simulated_device(
    settings, tokenizer, tmp_path
):
    """Checks with the loaded models, the canary, an evaluation and two steps; the same logs."""
    from conftest import build_model
    from plans import make_setup_from
    from training.test_loop import logged_text, make_plan

    names = [one.name for one in START_CHECKS]
    loaded = names.index("models") + 1
    folders = []
    for is_offloaded in (False, True):
        teacher = build_model(tokenizer, 1, hidden=48).freeze()
        plan = make_plan(tokenizer, teacher.offloaded() if is_offloaded else teacher)
        train = replace(plan.train, steps=2, offload_teacher=is_offloaded, **settings)
        folders.append(RunFolder(tmp_path / str(is_offloaded)))
        setup = make_setup_from(replace(plan, train=train), folders[-1])
        for one in START_CHECKS[:loaded]:
            one.run(setup)
        mode = TwoDevices()
        if is_offloaded:
            mode.add_host_copies(setup.models.teacher.offload)
        with mode:
            for one in START_CHECKS[loaded:]:
                one.run(setup)
            run(setup.plan(), folders[-1])
    assert logged_text(folders[0]) == logged_text(folders[1])


def test_the_simulated_device_refuses_a_reading_by_weights_on_the_host(offloaded, prompts):
    groups = [EncodedGroup(offloaded.encode(prompts[0]), ((40, 41, 42),))]
    mode = TwoDevices()
    mode.add_host_copies(offloaded.offload)
    with torch.no_grad(), mode:
        with pytest.raises(RuntimeError, match="same device"):
            response_states(offloaded, groups)
        with offloaded.on_device():
            response_states(offloaded, groups)


def record_depth(objective, offloaded, depths):
    """The same method, which records whether the teacher is on the device for its terms."""

    class Recording(type(objective)):
        def terms(self, batch, signals):
            depths.append(("terms", offloaded.offload.depth))
            return super().terms(batch, signals)

    return Recording()

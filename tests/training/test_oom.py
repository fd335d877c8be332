"""Out of memory changes the size of a phase, never the update."""

import itertools

import pytest
import torch
from doubles import before_each_update, break_at, gradients_of
from tiers import few
from training.test_loop import EVAL, make_plan, run_plan

from vistill.errors import RolloutError
from vistill.models.checkpointing import set_checkpointing
from vistill.objectives import METHODS
from vistill.objectives.va_opd import VAOPD
from vistill.runs.folder import RunFolder
from vistill.training import step as step_module
from vistill.training.micro_batches import halve_micro_batches
from vistill.training.oom import (
    MemoryRetry,
    is_out_of_memory,
    memory_savings,
    out_of_memory_error,
)
from vistill.training.settings import SaveSettings, TrainSettings

pytestmark = pytest.mark.usefixtures("without_canary")


@pytest.fixture
def gradients():
    """The gradient of every update. (Weights differ more: AdamW normalises tiny gradients.)"""
    seen = []

    def record(optimizer):
        seen.append(torch.cat([g.flatten() for g in gradients_of(optimizer)]))

    with before_each_update(record):
        yield seen


def run_four_steps(tokenizer, teacher, folder, objective=None, **changes):
    """Four steps of four prompts."""
    # the recorded gradients are not clipped
    train = TrainSettings(prompts_per_step=4, lr=3e-4, steps=4, clip_norm=1e6)
    settings = {"train": train, "eval_prompts": []}
    plan = make_plan(tokenizer, teacher, objective or VAOPD(), **(settings | changes))
    run_plan(plan, RunFolder(folder))
    return plan


@pytest.mark.parametrize("point", few(["rollout.begin", "score.begin", "learn.part"], 2))
@pytest.mark.parametrize("method", few(["va_opd", "vgs_dynamic", "grpo_two_updates"], 0))
def test_out_of_memory_once_in_any_phase_does_not_change_the_update(
    tokenizer, teacher, tmp_path, monkeypatch, gradients, point, method
):
    objective = {
        "va_opd": VAOPD(),
        "vgs_dynamic": METHODS["vgs"](scope="running", eta="dynamic", eta_every=2),
        "grpo_two_updates": METHODS["grpo"](updates=2),
    }[method]
    run_four_steps(tokenizer, teacher, tmp_path / "plain", objective, stop_after=1)
    first = gradients[0]
    gradients.clear()
    break_at(monkeypatch, f"{point}:oom@1")
    folder = RunFolder(tmp_path / "short")
    run_four_steps(tokenizer, teacher, folder.path, objective, stop_after=1)
    assert float((first - gradients[0]).abs().max()) < 1e-6
    assert "out of memory while" in folder.events.read_text()


@pytest.mark.parametrize("fits", few([1, 2], 0))
def test_a_phase_is_halved_until_it_fits_and_a_resumed_run_knows_it(
    tokenizer, teacher, tmp_path, monkeypatch, gradients, fits
):
    run_four_steps(tokenizer, teacher, tmp_path / "plain", stop_after=1)
    first = gradients.pop()
    original, sizes = step_module.score_without_gradient, []

    def small(models, inputs, *rest):
        sizes.append(max(len(part) for part in inputs.micro_batches))
        if sizes[-1] > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return original(models, inputs, *rest)

    # memory depends on the size of the inputs, which a fault point does not know
    monkeypatch.setattr(step_module, "score_without_gradient", small)
    save = SaveSettings(every=2, keep=1)
    run_four_steps(tokenizer, teacher, tmp_path / "short", save=save, stop_after=3)
    before_resume = list(sizes)
    run_four_steps(tokenizer, teacher, tmp_path / "short", save=save)
    assert before_resume[: 2 if fits == 2 else 3] == ([4, 2] if fits == 2 else [4, 2, 1])
    assert set(sizes[len(before_resume) :]) == {fits}, "a resumed run starts with this size"
    assert float((first - gradients[0]).abs().max()) < 1e-6


@pytest.mark.more
def test_an_evaluation_that_does_not_fit_is_halved_and_gives_the_same_answers(
    tokenizer, teacher, tmp_path, monkeypatch
):
    run_four_steps(tokenizer, teacher, tmp_path / "plain", eval_prompts=EVAL)
    break_at(monkeypatch, "evaluate.attempt:oom@1")
    run_four_steps(tokenizer, teacher, tmp_path / "short", eval_prompts=EVAL)
    plain, short = (RunFolder(tmp_path / name) for name in ("plain", "short"))
    (event,) = [line for line in short.events.read_text().splitlines() if "out of memory" in line]
    assert "while evaluating: trying again with 0.5" in event  # one row at a time instead of three
    assert plain.evaluations.read_text() == short.evaluations.read_text()


@pytest.mark.more
@pytest.mark.parametrize("point", few(["rollout.begin", "score.begin", "learn.part"], 2))
def test_if_one_prompt_at_a_time_does_not_fit_the_run_stops_with_r501(
    tokenizer, teacher, tmp_path, monkeypatch, point
):
    break_at(monkeypatch, f"{point}:oom@every")
    with pytest.raises(RolloutError) as caught:
        run_four_steps(tokenizer, teacher, tmp_path)
    assert caught.value.code == "R501"
    assert len(caught.value.render().splitlines()) <= 12


@pytest.mark.more
def test_the_fix_of_r501_names_what_saves_memory_in_its_phase_and_is_not_on(
    tokenizer, teacher, tmp_path, monkeypatch
):
    """It always named off-loading the teacher: of no use on a CPU, and never checkpointing."""
    checkpointing = "train.gradient_checkpointing=true"

    def fix_of(phase, gpu=False, again=False):
        plan = make_plan(tokenizer, teacher, VAOPD())
        models = plan.models
        if gpu:
            # no GPU here
            monkeypatch.setattr(type(teacher), "device", torch.device("cuda"))
        set_checkpointing(models.student, again)
        try:
            return out_of_memory_error(phase, 1, "no more", memory_savings(models, phase)).fix
        finally:
            monkeypatch.undo()
            set_checkpointing(models.student, False)

    shorter = "in a new run: rollout.max_new_tokens=SMALLER run=NEW"
    assert fix_of("learn") == f"{checkpointing}   or {shorter}"
    assert fix_of("learn", again=True) == fix_of("rollout") == fix_of("score", gpu=True) == shorter
    assert fix_of("rollout", gpu=True) == f"train.offload_teacher=true   or {shorter}"
    assert fix_of("learn", gpu=True) == (
        f"train.offload_teacher=true   or {checkpointing}   or {shorter}"
    )
    # as a run raises it: pasted, the run goes on with the bits that it would have had
    break_at(monkeypatch, "learn.part:oom@every")
    with pytest.raises(RolloutError, match="R501") as caught:
        run_four_steps(tokenizer, teacher, tmp_path)
    assert checkpointing in caught.value.fix


def test_another_error_is_not_out_of_memory():
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert is_out_of_memory(
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    )
    calls = []

    def fail(times):
        calls.append(times)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        MemoryRetry().run_halving("score", lambda times: times, fail)
    assert calls == [0]


def test_halving_keeps_every_prompt_in_order():
    parts = [[0, 1, 2, 3, 4], [5]]
    for times in range(5):
        cut = halve_micro_batches(parts, times)
        assert list(itertools.chain(*cut)) == [0, 1, 2, 3, 4, 5]
    assert halve_micro_batches(parts, 1) == [[0, 1, 2], [3, 4], [5]]
    assert halve_micro_batches(parts, 3) == halve_micro_batches(parts, 4) == [[i] for i in range(6)]

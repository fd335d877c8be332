"""Out of memory changes what is taken at a time, never the update; where nothing is left to halve, it is said."""

import itertools

import pytest
import torch
from training.test_loop import EVAL, go, make_plan

from vistill.errors import RolloutError
from vistill.faults import VARIABLE, reset_visits
from vistill.objectives import METHODS
from vistill.objectives.va_opd import VAOPD
from vistill.runs.folder import RunFolder
from vistill.training import step as step_module
from vistill.training.oom import MemoryRetry, halve_micro_batches, is_out_of_memory
from vistill.training.settings import SaveSettings, TrainSettings

pytestmark = pytest.mark.usefixtures("without_canary")


@pytest.fixture
def gradients(monkeypatch):
    """What every update is made of. (Not the weights: where a gradient is nearly 0, AdamW divides noise by noise.)"""
    honest, seen = step_module.apply_update, []

    def watched(update, loss, lr):
        found = [
            p.grad
            for group in update.optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        seen.append(torch.cat([g.flatten() for g in found]).clone())
        return honest(update, loss, lr)

    monkeypatch.setattr(step_module, "apply_update", watched)
    return seen


def a_run(tokenizer, teacher, folder, objective=None, **changes):
    """Four steps of four prompts."""
    settings = {"train": TrainSettings(prompts_per_step=4, lr=3e-4, steps=4), "eval_prompts": []}
    plan = make_plan(tokenizer, teacher, objective or VAOPD(), **(settings | changes))
    go(plan, RunFolder(folder))
    return plan


@pytest.mark.parametrize("point", ["rollout.begin", "score.begin", "learn.part"])
@pytest.mark.parametrize("method", ["va_opd", "vgs_dynamic", "grpo_two_updates"])
def test_memory_that_runs_out_once_in_any_phase_leaves_the_update(
    tokenizer, teacher, tmp_path, monkeypatch, gradients, point, method
):
    objective = {
        "va_opd": VAOPD(),
        "vgs_dynamic": METHODS["vgs"](scope="running", eta="dynamic", eta_every=2),
        "grpo_two_updates": METHODS["grpo"](updates=2),
    }[method]
    a_run(tokenizer, teacher, tmp_path / "plain", objective, stop_after=1)
    first = gradients[0]
    gradients.clear()
    reset_visits()
    monkeypatch.setenv(VARIABLE, f"{point}:oom@1")
    folder = RunFolder(tmp_path / "short")
    a_run(tokenizer, teacher, folder.path, objective, stop_after=1)
    reset_visits()
    assert float((first - gradients[0]).abs().max()) < 1e-6
    assert "out of memory while" in folder.events.read_text()


@pytest.mark.parametrize("fits", [1, 2])
def test_a_phase_is_halved_until_it_fits_and_the_run_remembers_it(
    tokenizer, teacher, tmp_path, monkeypatch, gradients, fits
):
    a_run(tokenizer, teacher, tmp_path / "plain", stop_after=1)
    first = gradients.pop()
    honest, asked = step_module.read_without_gradient, []

    def small(models, reading, *rest):
        asked.append(max(len(part) for part in reading.micro_batches))
        if asked[-1] > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return honest(models, reading, *rest)

    monkeypatch.setattr(step_module, "score_without_gradient", small)
    save = SaveSettings(every=2, keep=1)
    a_run(tokenizer, teacher, tmp_path / "short", save=save, stop_after=3)
    tried = list(asked)
    a_run(tokenizer, teacher, tmp_path / "short", save=save)
    assert tried[: 2 if fits == 2 else 3] == ([4, 2] if fits == 2 else [4, 2, 1])
    assert set(asked[len(tried) :]) == {fits}, "a resumed run starts where it got to"
    assert float((first - gradients[0]).abs().max()) < 1e-6


def test_an_evaluation_that_does_not_fit_is_done_in_smaller_parts_with_the_same_answers(
    tokenizer, teacher, tmp_path, monkeypatch
):
    from vistill.training import loop

    a_run(tokenizer, teacher, tmp_path / "plain", eval_prompts=EVAL)
    honest, asked = loop.evaluate, []

    def small(models, prompts, settings, *rest):
        asked.append(settings.rows_per_call)
        if settings.rows_per_call > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(models, prompts, settings, *rest)

    monkeypatch.setattr(loop, "evaluate", small)
    a_run(tokenizer, teacher, tmp_path / "short", eval_prompts=EVAL)
    assert asked[-1] == 1
    plain, short = (RunFolder(tmp_path / name) for name in ("plain", "short"))
    assert plain.evaluations.read_text() == short.evaluations.read_text()


@pytest.mark.parametrize("phase", ["rollout", "score", "learn"])
def test_where_one_prompt_at_a_time_does_not_fit_the_run_says_so_and_keeps_its_checkpoint(
    tokenizer, teacher, tmp_path, monkeypatch, phase
):
    name = {"rollout": "write_groups", "score": "read_without_gradient", "learn": "learning_parts"}[
        phase
    ]

    def never(*rest):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step_module, name, never)
    with pytest.raises(RolloutError) as caught:
        a_run(tokenizer, teacher, tmp_path)
    assert caught.value.code == "R501"
    assert len(caught.value.render().splitlines()) <= 12


def test_another_error_is_not_taken_for_a_lack_of_memory():
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert is_out_of_memory(
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    )
    calls = []

    def wrong(times):
        calls.append(times)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        MemoryRetry().run_halving("score", lambda times: times, wrong)
    assert calls == [0]


def test_halving_keeps_every_prompt_in_its_order():
    parts = [[0, 1, 2, 3, 4], [5]]
    for times in range(5):
        cut = halve_micro_batches(parts, times)
        assert list(itertools.chain(*cut)) == [0, 1, 2, 3, 4, 5]
    assert halve_micro_batches(parts, 1) == [[0, 1, 2], [3, 4], [5]]
    assert halve_micro_batches(parts, 3) == halve_micro_batches(parts, 4) == [[i] for i in range(6)]

"""Learning rates as a function of the step, and the settings of the optimizer."""

import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from training.test_loop import make_plan, run_plan

from vistill.errors import ConfigError
from vistill.objectives import OPD
from vistill.runs.folder import RunFolder
from vistill.training.optim import lr_factor, make_optimizer
from vistill.training.settings import ScheduleSettings, TrainSettings

pytestmark = pytest.mark.usefixtures("without_canary")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.floats(0, 1),
    st.integers(1, 400),
    st.sampled_from(["cosine", "linear", "constant"]),
    st.floats(0, 1),
)
@example(0.05, 21, "cosine", 0.0)
@example(0.05, 64, "cosine", 0.0)
@example(0.29, 100, "linear", 0.0)
@example(1.0, 7, "cosine", 0.5)
def test_the_rate_rises_to_the_peak_and_never_above_it_and_then_falls(share, steps, kind, floor):
    schedule = ScheduleSettings(kind, share)
    factors = [lr_factor(s, steps, schedule, floor) for s in range(steps)]
    warmup = math.floor(share * steps + 1e-9)
    up, down = factors[:warmup], factors[warmup:]
    assert all(0 < f <= 1 for f in up)
    assert up == sorted(up)
    assert up == [pytest.approx((s + 1) / warmup) for s in range(warmup)]
    assert max(factors) == 1.0
    assert not down or down[0] == 1.0
    assert all(floor - 1e-12 <= f <= 1 for f in down)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(down))
    if down:  # one step after the last
        ends_at = 1.0 if kind == "constant" else floor
        assert lr_factor(steps, steps, schedule, floor) == pytest.approx(ends_at)


def test_the_first_rate_is_not_zero():
    assert lr_factor(0, 1000, ScheduleSettings("cosine", 0.2)) == 1 / 200
    assert lr_factor(0, 1000, ScheduleSettings("cosine", 0.0)) == 1.0


def test_no_step_of_a_run_has_a_rate_above_the_recipes(tokenizer, teacher, tmp_path):
    """A warm-up of 1.8 steps: the second step once had 1.11 times the rate of the recipe."""
    folder = RunFolder(tmp_path)
    train = TrainSettings(
        prompts_per_step=2, lr=3e-3, steps=9, schedule=ScheduleSettings("cosine", 0.2)
    )
    run_plan(make_plan(tokenizer, teacher, OPD(), train=train, eval_prompts=[]), folder)
    rates = [r["lr"] for r in folder.read(folder.metrics)]
    assert max(rates) == rates[0] == rates[1] == 3e-3
    assert rates[1:] == sorted(rates[1:], reverse=True)


@pytest.mark.more
def test_a_decay_ends_at_min_lr_and_the_warm_up_may_begin_below_it(tokenizer, teacher, tmp_path):
    """Visual-OPSD: 1e-5 to 1e-7 with a warm-up of a fifth of the steps."""
    folder = RunFolder(tmp_path)
    schedule = ScheduleSettings("cosine", 0.5, min_lr=1e-4)
    train = TrainSettings(prompts_per_step=2, lr=3e-4, steps=8, schedule=schedule)
    run_plan(make_plan(tokenizer, teacher, OPD(), train=train, eval_prompts=[]), folder)
    rates = [r["lr"] for r in folder.read(folder.metrics)]
    assert rates[0] == pytest.approx(3e-4 / 4)
    after = [1e-4 + 2e-4 * 0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    assert rates[4:] == [pytest.approx(rate) for rate in after]


def test_a_min_lr_above_the_peak_is_refused():
    with pytest.raises(ConfigError) as caught:
        TrainSettings(lr=1e-6, schedule=ScheduleSettings(min_lr=1e-5))
    assert caught.value.code == "C002"
    fix = "vistill.TrainSettings(schedule=vistill.ScheduleSettings(min_lr=0))"
    assert caught.value.fix == fix


@pytest.mark.parametrize("eps", [0.0, -1e-8, 2.0])
def test_an_epsilon_out_of_range_is_refused(eps):
    with pytest.raises(ConfigError):
        TrainSettings(eps=eps)


def test_the_optimizer_is_what_the_recipe_says():
    model = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(model, TrainSettings(eps=1e-15, betas=(0.8, 0.9), weight_decay=0.3))
    assert {g["eps"] for g in optimizer.param_groups} == {1e-15}
    assert {g["betas"] for g in optimizer.param_groups} == {(0.8, 0.9)}
    decays = {p.ndim: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays == {2: 0.3, 1: 0.0}
    assert {g["eps"] for g in make_optimizer(model, TrainSettings()).param_groups} == {1e-8}

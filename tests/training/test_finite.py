"""Values that are not finite skip the step of every method: weights and memory stay."""

import json
import math
from dataclasses import dataclass

import pytest
import torch
from doubles import break_at
from tiers import few
from training.test_loop import make_plan, run_plan

from vistill.batch import LossTerm, Need, Objective, Requirements
from vistill.errors import NonFiniteError
from vistill.objectives import METHODS, OPD
from vistill.objectives.shared import STUDENT, TEACHER, per_response, reverse_kl_to_teacher
from vistill.runs.folder import RunFolder
from vistill.training.checkpoint import list_checkpoints, weights_hash
from vistill.training.loop import run
from vistill.training.settings import SaveSettings, TrainSettings

pytestmark = pytest.mark.usefixtures("without_canary")

#: Every method, and the options that keep a memory or read other passes.
OBJECTIVES = {n: METHODS[n]() for n in METHODS if n != "visual_opsd"} | {
    "visual_opsd": METHODS["visual_opsd"](gate=False, ema_decay=0.7),
    "va_opd_distribution": METHODS["va_opd"](score="distribution"),
    "vgs_with_memory": METHODS["vgs"](scope="running", eta="dynamic", eta_every=1),
    "vgs_no_preservation": METHODS["vgs"](preserve=0.0),
    "grpo_two_updates": METHODS["grpo"](updates=2),
}
PASSES = {n: [p.name for p in m.passes() if not p.gradient] for n, m in OBJECTIVES.items()}
#: These differ in what a step keeps: a memory, a moving average, several updates.
FIRST_TIER = ("vgs_with_memory", "visual_opsd", "grpo_two_updates")
#: Save a checkpoint after every step and keep all.
EVERY_STEP = SaveSettings(every=1, keep=99)


def put_nan_into_passes(monkeypatch, objective, by_step):
    """In these steps (from 1), one row of a pass becomes NaN, as after an overflow in the model."""
    names = [p.name for p in objective.passes() if not p.gradient]
    visits = [(step - 1) * len(names) + names.index(name) + 1 for step, name in by_step.items()]
    break_at(monkeypatch, f"score.pass:nan@{','.join(map(str, visits))}")


def read_states(folder):
    """Read the weights of the student, those of its copies and the memory after every step."""
    states = []
    for path in list_checkpoints(RunFolder(folder)):
        weights = {f.parent.name: f.read_bytes() for f in path.glob("*/model.safetensors")}
        memory = json.loads((path / "state.json").read_text())["memory"]
        states.append((weights.pop("student"), weights, memory))
    return states


def train(tokenizer, teacher, folder, objective, steps, **changes):
    settings = TrainSettings(prompts_per_step=2, lr=3e-3, steps=steps)
    run_plan(
        make_plan(tokenizer, teacher, objective, train=settings, eval_prompts=[], **changes),
        RunFolder(folder),
    )
    return RunFolder(folder).read(RunFolder(folder).metrics)


@pytest.mark.parametrize(
    "name",
    [
        n if n in FIRST_TIER else pytest.param(n, marks=pytest.mark.more)
        for n in OBJECTIVES
        if PASSES[n]
    ],
)
def test_a_nan_in_any_pass_skips_the_step_of_every_method(
    tokenizer, teacher, tmp_path, monkeypatch, name
):
    objective, bad = OBJECTIVES[name], {2 * i + 2: one for i, one in enumerate(PASSES[name])}
    put_nan_into_passes(monkeypatch, objective, bad)
    records = train(tokenizer, teacher, tmp_path, objective, 2 * len(bad) + 1, save=EVERY_STEP)
    states = read_states(tmp_path)
    for record in records:
        number = record["step"]
        assert record["finite"] == float(number not in bad)
        assert all(math.isfinite(v) for k, v in record.items() if k.startswith("memory/"))
        if number in bad:
            assert states[number - 1] == states[number - 2]
            assert record["loss"] is None
            assert record[f"non_finite/reading/{bad[number]}"] == 1.0
            assert record["rollout/tokens"] > 0
            folder = tmp_path / "nonfinite" / f"step-{number:06d}"
            lines = [
                json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()
            ]
            assert sum(sum(line[f"reading/{bad[number]}"]) for line in lines) == 1.0
        elif number > 1:
            assert states[number - 1][0] != states[number - 2][0]
            assert math.isfinite(record["loss"])


def test_three_steps_with_nan_in_a_row_stop_va_opd_with_n701(
    tokenizer, teacher, tmp_path, monkeypatch
):
    objective = METHODS["va_opd"]()
    put_nan_into_passes(monkeypatch, objective, dict.fromkeys((2, 3, 4), "teacher.pixelated"))
    with pytest.raises(NonFiniteError) as caught:
        train(tokenizer, teacher, tmp_path, objective, 6)
    assert caught.value.code == "N701"


def test_a_nan_in_a_pass_leaves_running_thresholds_and_later_steps_have_a_gate(
    tokenizer, teacher, tmp_path, monkeypatch
):
    objective = METHODS["vgs"](scope="running", quantile=0.5)
    put_nan_into_passes(monkeypatch, objective, {2: "teacher.text_only"})
    records = train(tokenizer, teacher, tmp_path, objective, 4)
    assert [r["finite"] for r in records] == [1.0, 0.0, 1.0, 1.0]
    assert all(r["vds/gated_share"] > 0 for r in records if r["finite"])
    assert all(math.isfinite(r["memory/threshold/0.5"]) for r in records[1:])


def test_a_probe_that_is_not_finite_leaves_eta_and_the_run_can_resume(
    tokenizer, teacher, tmp_path, monkeypatch
):
    break_at(monkeypatch, "learn.probe:nan@5")
    objective = METHODS["vgs"](eta="dynamic", eta_every=2)
    train(tokenizer, teacher, tmp_path, objective, 6, stop_after=5, save=EVERY_STEP)
    records = train(tokenizer, teacher, tmp_path, objective, 6, save=EVERY_STEP)
    states = read_states(tmp_path)
    assert [r["finite"] for r in records] == [1.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    assert records[4]["non_finite/gradient_probe"] == 1.0
    assert states[4] == states[3]
    assert all(math.isfinite(r["memory/eta"]) for r in records)


@pytest.mark.more
def test_a_first_probe_that_is_not_finite_writes_no_eta_at_all(
    tokenizer, teacher, tmp_path, monkeypatch
):
    break_at(monkeypatch, "learn.probe:nan@1")
    objective = METHODS["vgs"](eta="dynamic", eta_every=2)
    train(tokenizer, teacher, tmp_path, objective, 4, stop_after=1, save=SaveSettings(every=1))
    records = train(tokenizer, teacher, tmp_path, objective, 4)
    assert [r["finite"] for r in records] == [0.0, 1.0, 1.0, 1.0]
    assert ["memory/eta" in r for r in records] == [False, False, True, True]


def test_a_gradient_of_zero_has_no_ratio_and_leaves_eta():
    method = METHODS["vgs"](eta="dynamic")
    for norms in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]):
        assert method.learn_norms(norms, {}) == {}
        assert method.learn_norms(norms, {"eta": 0.4}) == {"eta": 0.4}


@dataclass(frozen=True)
class Counting(OPD):
    """`opd` that counts its steps in its memory, with two updates per step."""

    updates: int = 2
    infinite_signal: bool = False
    nan_memory: bool = False

    @property
    def requirements(self):
        return Requirements(updates=self.updates)

    def signals(self, batch):
        return {
            **super().signals(batch),
            "extra": torch.full(
                (batch.responses.num_tokens,), math.inf if self.infinite_signal else 1.0
            ),
        }

    def remember(self, batch, signals):
        return {"steps": batch.memory.get("steps", 0.0) + (math.nan if self.nan_memory else 1.0)}


@pytest.mark.parametrize("bad", few([3, 4], 0))
def test_memory_is_kept_only_if_every_update_of_the_step_was_finite(
    tokenizer, teacher, tmp_path, monkeypatch, bad
):
    """Visits 3 and 4 are the two updates of step 2; one of them is skipped, the other is made."""
    break_at(monkeypatch, f"learn.loss:nan@{bad}")
    records = train(tokenizer, teacher, tmp_path, Counting(), 3, save=EVERY_STEP)
    states = read_states(tmp_path)
    assert [r["finite"] for r in records] == [1.0, 0.0, 1.0]
    assert [memory for _, _, memory in states] == [{"steps": 1.0}, {"steps": 1.0}, {"steps": 2.0}]
    assert states[1][0] != states[0][0]  # the other update was made
    (event,) = [
        text for text in RunFolder(tmp_path).events.read_text().splitlines() if "skipped" in text
    ]
    assert "the other updates of the step were made: 1" in event


@pytest.mark.parametrize(
    ("objective", "name"),
    [(Counting(infinite_signal=True), "signal/extra"), (Counting(nan_memory=True), "memory/steps")],
)
def test_signals_and_memory_that_are_not_finite_skip_the_step(
    tokenizer, teacher, tmp_path, objective, name
):
    plan = make_plan(tokenizer, teacher, objective, num_steps=1, eval_prompts=[])
    before = weights_hash(plan.models.student)
    state = run(plan, RunFolder(tmp_path))
    (record,) = RunFolder(tmp_path).read(RunFolder(tmp_path).metrics)
    assert record["finite"] == 0.0
    assert record[f"non_finite/{name}"] > 0
    assert state.skipped == 1
    assert state.memory == {}
    assert weights_hash(plan.models.student) == before


def test_a_method_may_use_any_names_for_its_signals(tokenizer, teacher, tmp_path):
    """The step knows no names of signals; these three once implied that other signals exist."""

    @dataclass(frozen=True)
    class Mine(Objective):
        """A user's method."""

        requirements = Requirements(needs={Need.REWARD})

        def passes(self):
            return (STUDENT, TEACHER)

        def signals(self, batch):
            ones = torch.ones(batch.responses.num_tokens)
            return {
                "visual_advantage": ones,
                "visual_dependency": ones,
                "weights": per_response(batch.responses),
            }

        def terms(self, batch, signals):
            kl = reverse_kl_to_teacher(batch, signals["weights"])
            return (kl, LossTerm("watched", kl.values.detach(), kl.weights, minimised=False))

        def metrics(self, batch, signals):
            return {"mine/tokens": float(len(signals["weights"]))}

    (record,) = train(tokenizer, teacher, tmp_path, Mine(), 1)
    assert record["finite"] == 1.0
    assert record["mine/tokens"] == record["rollout/tokens"]
    assert "reward/mean" in record
    assert not any(name.startswith(("va/", "vds/", "weight/")) for name in record)


@pytest.mark.parametrize(
    "name", few(["vgs_with_memory", "grpo_vgs", "papo", "grpo_two_updates", "va_opd"], 0)
)
def test_the_log_has_terms_without_their_coefficients_and_the_coefficients(
    tokenizer, teacher, tmp_path, name
):
    for record in train(tokenizer, teacher, tmp_path, OBJECTIVES[name], 2):
        factors = {
            key.split("/")[1]: value
            for key, value in record.items()
            if key.startswith("coefficient/")
        }
        total = sum(factor * record[f"loss/{term}"] for term, factor in factors.items())
        assert record["loss"] == pytest.approx(total, rel=1e-5, abs=1e-7)


@pytest.mark.more
def test_the_metrics_of_the_shipped_methods_keep_their_names(tokenizer, teacher, tmp_path):
    names = {
        "va_opd": {
            *(f"va/{name}" for name in ("mean", "mean_of_rollouts", "top10_share", "zero_share")),
            *("va/high_group_zero_share", "va/high_group_va_share"),
            *("weight/min", "weight/max", "weight/entropy"),
        },
        "grpo_vgs": {
            *("vds/mean", "vds/top10_share", "vds/gated_share"),
            *("reward/mean", "reward/no_advantage_share", "reward/unparsed_share"),
        },
        "grpo_va_opd": {
            *(f"va/{name}" for name in ("mean", "mean_of_rollouts", "top10_share", "zero_share")),
            *("va/high_group_zero_share", "va/high_group_va_share"),
            *("weight/min", "weight/max", "weight/entropy"),
            *("reward/mean", "reward/no_advantage_share", "reward/unparsed_share"),
        },
        "vgs_language": {"vds/mean", "vds/top10_share", "vds/gated_share"},
        "opd": set(),
    }
    for name, expected in names.items():
        (record,) = train(tokenizer, teacher, tmp_path / name, METHODS[name](), 1)
        logged = {key for key in record if key.split("/")[0] in ("va", "vds", "weight", "reward")}
        assert logged == expected

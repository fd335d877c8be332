"""How each method differs from the most similar one, and the knob value where both agree."""

from dataclasses import replace

import pytest
import torch
from batches import loss_of, method_batch

from vistill.batch import ScoredBatch
from vistill.errors import ConfigError
from vistill.flops_counter import counting
from vistill.objectives import METHODS
from vistill.types import Reader, View, Writer

LENGTHS, GROUP = [4, 7, 2, 5, 9, 3], [0, 0, 0, 1, 1, 1]


def make(name, **knobs):
    return METHODS[name](**knobs)


def both(first, second, seed=0, rename=None):
    """The two losses on one batch with the passes of both; `rename` replaces a pass by another."""
    batch, _ = method_batch(first, LENGTHS, GROUP, seed=seed)
    other, _ = method_batch(second, LENGTHS, GROUP, seed=seed + 100)
    passes = {**other.passes, **batch.passes}
    for name, source in (rename or {}).items():
        passes[name] = batch.passes[source]
    shared = ScoredBatch(batch.responses, passes)
    return float(loss_of(first, shared)), float(loss_of(second, shared))


SAME = {
    "gkd at beta 1 is opd": (make("opd"), make("gkd", beta=1.0, off_policy_share=0.0)),
    "gkd at beta 0 is kd's loss": (make("kd"), make("gkd", beta=0.0)),
    "distillm without skew is kd's loss": (make("kd"), make("distillm", skew=0.0)),
    "reverse distillm without skew is opd": (
        make("opd"), make("distillm", direction="reverse", skew=0.0)
    ),
    "kd turned round is opd's loss": (make("opd"), make("kd", loss="reverse_kl")),
    "vgs without steering is opd": (make("opd"), make("vgs", gamma=0.0, preserve=0.0, eta="none")),
    "language steering of strength 0 is opd": (
        make("opd"), make("vgs_language", gamma=0.0, preserve=0.0, eta="none")
    ),
    "adaptive vgs with both steps at the bottom": (
        make("vgs", gamma=1.0, preserve=0.0),
        make("vgs", gamma=1.0, preserve=0.0, adaptive=True, quantile=0.0, low_quantile=0.0),
    ),
    "eopd that never gates is sampled opd": (
        make("opd", estimator="sampled"), make("eopd", entropy_above=99.0)
    ),
    "iw_opd of strength 0 is sampled opd": (
        make("opd", estimator="sampled"), make("iw_opd", strength=0.0)
    ),
    "full iw_opd of strength 0 is opd": (
        make("opd"), make("iw_opd", strength=0.0, estimator="full")
    ),
    "papo without its terms is grpo": (
        make("grpo"),
        make("papo", perception_weight=0.0, entropy_weight=0.0, masked_entropy_weight=0.0),
    ),
    "vppo that keeps all tokens and scales none is grpo": (
        make("grpo", reference_weight=0.0, clip_high=0.28),
        make("vppo", token_share=1.0, scale_low=1.0, entropy_weight=0.0),
    ),
    "a hybrid of share 0 is grpo": (
        make("grpo", reference_weight=0.0), make("grpo_opd", distillation_share=0.0)
    ),
    "a hybrid of share 1 is opd": (make("opd"), make("grpo_opd", distillation_share=1.0)),
    "a steered hybrid of share 1 is vgs without eta": (
        make("vgs", eta="none"), make("grpo_vgs", distillation_share=1.0)
    ),
    "a hybrid with visual advantage of share 0 is grpo": (
        make("grpo", reference_weight=0.0), make("grpo_va_opd", distillation_share=0.0)
    ),
    "a hybrid with visual advantage of share 1 is va_opd": (
        make("va_opd"), make("grpo_va_opd", distillation_share=1.0)
    ),
    "grounded_opd that keeps what follows a misread is opd": (
        make("opd"), make("grounded_opd", factor_after=1.0)
    ),
    "grounded_opd without a misread is opd": (
        make("opd"), make("grounded_opd", misread_threshold=-100.0)
    ),
    "the same, divided by the kept tokens": (
        make("opd"), make("grounded_opd", misread_threshold=-100.0, normaliser="kept")
    ),
    "grounded_opd that keeps all, with weights of rollouts, is va_opd without groups": (
        make("va_opd", token_groups=False),
        make("grounded_opd", factor_after=1.0, rollout_weights=True),
    ),
    "va_opd that stops, without its weights, is grounded_opd": (
        make("grounded_opd"),
        make("va_opd", rollout_weights=False, token_groups=False, stop_at_misread=True),
    ),
    "a hybrid of share 1 that stops is grounded_opd": (
        make("grounded_opd"), make("grpo_opd", distillation_share=1.0, stop_at_misread=True)
    ),
    "a hybrid without weights is grpo_opd": (
        make("grpo_opd"), make("grpo_va_opd", rollout_weights=False, token_groups=False)
    ),
    "visual_opsd on the whole vocabulary, unclipped, self-taught": (
        make("visual_opsd", top_k=None, clip_mode="none"),
        make("visual_opsd", top_k=7, clip_mode="entry", clip=99.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(SAME))
def test_two_methods_meet_where_their_difference_is_switched_off(name):
    first, second = SAME[name]
    ours, theirs = both(first, second)
    if (
        "both steps at the bottom" in name
    ):  # the strict gate leaves out the one token at the very bottom
        assert ours != theirs
        assert ours == pytest.approx(theirs, rel=0.1)
    else:
        assert ours == pytest.approx(theirs, abs=1e-6)


DIFFERENT = {
    "sampled opd and opd": (make("opd"), make("opd", estimator="sampled")),
    "gkd and opd": (make("opd"), make("gkd")),
    "gkd and kd": (make("kd"), make("gkd")),
    "distillm and kd": (make("kd"), make("distillm")),
    "the two directions of distillm": (make("distillm"), make("distillm", direction="reverse")),
    "distillm and gkd": (make("gkd"), make("distillm")),
    "grounded_opd and opd": (make("opd"), make("grounded_opd")),
    "the two normalisers of grounded_opd": (
        make("grounded_opd"),
        make("grounded_opd", normaliser="kept"),
    ),
    "vgs that stops and vgs": (make("vgs"), make("vgs", stop_at_misread=True)),
    "vgs and opd": (make("opd"), make("vgs", eta="none")),
    "adaptive vgs and vgs": (make("vgs"), make("vgs", adaptive=True)),
    "vgs_language and vgs": (make("vgs", eta="none"), make("vgs_language", eta="none")),
    "kd and seqkd": (make("kd"), make("kd", loss="cross_entropy")),
    "sft (all tokens) and seqkd (responses)": (make("sft"), make("kd", loss="cross_entropy")),
    "vision_opd (tail bucket) and visual_opsd (renormalised)": (
        make("visual_opsd", top_k=3, clip_mode="none"),
        make("visual_opsd", top_k=3, clip_mode="none", tail_bucket=True),
    ),
    "eopd and sampled opd": (make("opd", estimator="sampled"), make("eopd")),
    "iw_opd and sampled opd": (make("opd", estimator="sampled"), make("iw_opd")),
    "papo and grpo": (make("grpo"), make("papo")),
    "vppo and grpo": (
        make("grpo", reference_weight=0.0, clip_high=0.28),
        make("vppo", entropy_weight=0.0),
    ),
    "grpo's two averages": (make("grpo"), make("grpo", averaging="response")),
    "grpo_opd and grpo": (make("grpo", reference_weight=0.0), make("grpo_opd")),
    "grpo_vgs and grpo_opd": (make("grpo_opd"), make("grpo_vgs")),
    "grpo_va_opd and grpo_opd": (make("grpo_opd"), make("grpo_va_opd")),
}


@pytest.mark.parametrize("name", list(DIFFERENT))
def test_neighbours_differ_by_default(name):
    ours, theirs = both(*DIFFERENT[name])
    assert abs(ours - theirs) > 1e-4


def test_s2vopd_degrades_the_student_where_visual_opsd_informs_the_teacher():
    s2v, opsd = make("s2vopd"), make("visual_opsd", top_k=None, clip_mode="none")
    assert (s2v.requirements.writer_view, opsd.requirements.writer_view) == (
        View.DEGRADED,
        View.FULL,
    )
    assert [(p.reader, p.view) for p in s2v.passes()] == [
        (Reader.STUDENT, View.DEGRADED),
        (Reader.EMA, View.FULL),
    ]
    assert [(p.reader, p.view) for p in opsd.passes()] == [
        (Reader.STUDENT, View.FULL),
        (Reader.EMA, View.PRIVILEGED),
    ]
    rename = {"student.degraded": "student.full", "ema.full": "ema.privileged"}
    ours, theirs = both(opsd, s2v, rename=rename)
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_vcsd_without_contrast_support_and_temperature_is_plain_self_distillation():
    vcsd, kd = make("vcsd", strength=0.0, support=0.0, temperature=1.0), make("kd")
    ours, theirs = both(kd, vcsd, rename={"ema.full": "teacher.full"})
    assert ours == pytest.approx(theirs, abs=1e-6)
    ours, theirs = both(kd, make("vcsd"), rename={"ema.full": "teacher.full"})
    assert abs(ours - theirs) > 1e-3


@pytest.mark.parametrize(
    "options", [{}, {"adaptive": True}, {"preserve": 0.0, "eta": "none"}, {"preserve": 1.0}]
)
def test_merged_vgs_has_the_gradient_of_vgs_from_one_teacher_projection(options):
    gradients, losses, rows = [], [], []
    for merged in (False, True):
        method = make("vgs", merged=merged, **options)
        batch, leaves = method_batch(method, LENGTHS, GROUP)
        with counting() as counted:
            loss = loss_of(method, batch)
        loss.backward()
        gradients.append(
            [None if leaf.grad is None else leaf.grad.clone() for leaf in leaves.values()]
        )
        losses.append(float(loss))
        rows.append(counted["head_rows"])
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        assert a is None or float((a - b).abs().max()) <= 1e-6 * max(1.0, float(a.abs().max()))
    assert rows[0] - rows[1] >= sum(LENGTHS)  # each response row once less through a head
    assert losses[1] < losses[0] - 1e-3


def test_merged_vgs_differs_from_vgs_by_what_no_student_changes():
    apart, merged = (
        make("vgs", preserve=0.0, eta="none"),
        make("vgs", preserve=0.0, eta="none", merged=True),
    )
    batch, _ = method_batch(apart, LENGTHS, GROUP)
    gaps = []
    for shift in (0.0, 0.7):
        own = batch["student.full"]
        moved = replace(own, hidden=own.states().detach() + shift)
        other = ScoredBatch(batch.responses, {**batch.passes, "student.full": moved})
        gaps.append(float(loss_of(apart, other)) - float(loss_of(merged, other)))
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-6)


@pytest.mark.parametrize("options", [{"ratio_clamp": 1.0}, {"support": 0.1}, {"eta": "dynamic"}])
def test_merged_vgs_refuses_what_needs_its_terms_apart(options):
    with pytest.raises(ConfigError) as caught:
        make("vgs", merged=True, **options)
    assert caught.value.code == "C002"
    assert caught.value.fix == "vgs.merged=false"


def test_merged_vgs_refuses_a_head_whose_logits_are_not_linear_in_the_states():
    method = make("vgs", merged=True)
    batch, _ = method_batch(method, LENGTHS, GROUP)
    capped = {n: replace(s, head=replace(s.head, softcap=5.0)) for n, s in batch.passes.items()}
    with pytest.raises(ConfigError, match="softcap"):
        method.terms(replace(batch, passes=capped), method.signals(batch))


def test_papos_masked_entropy_is_a_constant_unless_its_gradient_is_asked_for():
    for masked_gradient in (False, True):
        method = make("papo", masked_gradient=masked_gradient, masked_entropy_weight=1.0)
        batch, leaves = method_batch(method, LENGTHS, GROUP)
        loss_of(method, batch).backward()
        grad = leaves[method.masked().name].grad
        assert (grad is not None and float(grad.abs().sum()) > 0) == masked_gradient


def test_papos_annealing_takes_all_perception_terms_to_nothing():
    method, grpo = make("papo", annealed=True), make("grpo")
    batch, _ = method_batch(method, LENGTHS, GROUP)
    assert float(loss_of(method, replace(batch, progress=1.0))) == pytest.approx(
        float(loss_of(grpo, batch)), abs=1e-6
    )
    assert float(loss_of(method, batch)) == pytest.approx(
        float(loss_of(make("papo"), batch)), abs=1e-6
    )


def test_equal_rewards_teach_nothing():
    method = make("grpo", reference_weight=0.0)
    batch, leaves = method_batch(method, LENGTHS, GROUP)
    batch = replace(batch, responses=replace(batch.responses, reward=torch.ones(6)))
    loss_of(method, batch).backward()
    assert float(leaves["student.full"].grad.abs().max()) == 0.0


def test_running_thresholds_average_over_steps_and_the_others_forget():
    running = make("vgs", scope="running")
    batch, _ = method_batch(running, LENGTHS, GROUP, seed=0)
    first = running.remember(batch, running.signals(batch))
    assert set(first) == {"threshold/0.7", "threshold/0.4"}
    second, _ = method_batch(running, LENGTHS, GROUP, seed=9)
    second = replace(second, memory=first)
    of_step = float(make("vgs").signals(second)["gate_threshold"][0])
    averaged = float(running.signals(second)["gate_threshold"][0])
    assert averaged == pytest.approx(0.9 * first["threshold/0.7"] + 0.1 * of_step, rel=1e-5)
    assert make("vgs").remember(batch, make("vgs").signals(batch)) == {}


@pytest.mark.parametrize(("scope", "pools"), [("response", 6), ("micro_batch", 2), ("batch", 1)])
def test_quantile_scopes_use_their_own_tokens(scope, pools):
    method = make("vgs", scope=scope)
    batch, _ = method_batch(method, LENGTHS, GROUP, seed=1)
    assert len(set(method.signals(batch)["gate_threshold"].tolist())) == pools


def test_the_method_decides_who_writes_the_responses():
    assert make("kd").requirements.writer is Writer.TEACHER
    assert make("kd").requirements.teacher_share == 1.0
    assert make("gkd").requirements.teacher_share == 0.5
    assert make("sft").requirements.writer is Writer.DATA
    assert make("sft", responses="teacher").requirements.keep_correct
    assert make("opd").requirements.teacher_share == 0.0

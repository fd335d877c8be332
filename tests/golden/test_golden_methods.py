"""Golden numbers of the methods besides opd and va_opd (method specification, section 9)."""

import math
from dataclasses import replace

import pytest
import torch
from batches import logits_pass, responses

from vistill.batch import ScoredBatch
from vistill.functional.divergences import (
    forward_kl,
    jensen_shannon,
    k3,
    keep_top,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
)
from vistill.functional.policy import clipped_surrogate, group_advantage
from vistill.functional.targets import contrastive_target, steered_target
from vistill.objectives import METHODS
from vistill.objectives.iw_opd import position_weight
from vistill.objectives.vppo import trajectory_scale

P, P_X, Q, Q_X = [0.3, 0.5, 0.2], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.4, 0.4, 0.2]


def log(row):
    return torch.tensor([row], dtype=torch.float64).log()


def test_the_vgs_row():
    target = torch.softmax(steered_target(log(Q), log(Q_X), log(P_X)), -1)
    assert target[0].tolist() == pytest.approx([0.1515, 0.7273, 0.1212], abs=5e-5)
    unnormalised = sum(px * q / qx for px, q, qx in zip(P_X, Q, Q_X, strict=True))
    assert unnormalised == pytest.approx(0.825)
    to_teacher, to_target = reverse_kl(log(P), log(Q)), reverse_kl(log(P), target.log())
    assert float(to_teacher) == pytest.approx(0.233211, abs=5e-7)
    assert float(to_target) == pytest.approx(0.117737, abs=5e-7)
    assert float(reverse_kl(log(P_X), log(Q_X))) == pytest.approx(0.025267, abs=5e-7)
    assert float(reverse_kl(log(Q), log(Q_X))) == pytest.approx(0.346574, abs=5e-7)
    assert float(to_teacher - to_target) == pytest.approx(0.115474, abs=5e-7)


def log_rows(*distributions):
    return torch.tensor(distributions).log()


def test_the_gated_vgs_loss_is_0_468938():
    """The golden row passes the gate. A row without visual dependency does not."""
    r = responses([2], [0], vocabulary=3)
    uniform = [1 / 3] * 3
    batch = ScoredBatch(
        r,
        {
            "student.full": logits_pass(log_rows(P, uniform)),
            "teacher.full": logits_pass(log_rows(Q, uniform)),
            "teacher.text_only": logits_pass(log_rows(Q_X, uniform)),
            "student.text_only": logits_pass(log_rows(P_X, uniform)),
        },
    )
    method = METHODS["vgs"](eta="none")
    signals = method.signals(batch)
    assert signals["gate"].tolist() == [True, False]
    terms = {t.name: t for t in method.terms(batch, signals)}
    total = sum(t.coefficient * float((t.weights * t.values).sum()) for t in terms.values())
    assert 2 * total == pytest.approx(0.468938, abs=2e-6)
    assert {n: t.coefficient for n, t in terms.items()} == {
        "reverse_kl": 1.0,
        "visual_kl": 2.0,
        "language_preservation": 0.01,
    }
    assert float(terms["language_preservation"].weights[0]) == pytest.approx(1 / 2)


def test_one_valid_token_alone_never_passes_the_strict_gate():
    r = responses([1], [0], vocabulary=3)
    passes = {
        "teacher.full": logits_pass(log_rows(Q)),
        "teacher.text_only": logits_pass(log_rows(Q_X)),
    }
    assert METHODS["vgs"]().signals(ScoredBatch(r, passes))["gate"].tolist() == [False]


@pytest.mark.parametrize(
    ("teacher", "student", "total", "clamped"),
    [
        ([0.9, 0.05, 0.05], [0.1, 0.6, 0.3], 0.3707, 0.1495),
        ([0.6, 0.3, 0.1], [0.5, 0.3, 0.2], 0.0108, 0.0108),
    ],
)
def test_jensen_shannon_and_its_entry_clip(teacher, student, total, clamped):
    assert float(jensen_shannon(log(student), log(teacher))) == pytest.approx(total, abs=5e-5)
    assert float(jensen_shannon(log(student), log(teacher), clip=0.05)) == pytest.approx(
        clamped, abs=5e-5
    )
    as_token = float(jensen_shannon(log(student), log(teacher), clip=0.05, clip_mode="token"))
    assert as_token == pytest.approx(min(0.05, total), abs=5e-5)


def test_entries_of_jensen_shannon():
    teacher, student = torch.tensor([0.9, 0.05, 0.05]), torch.tensor([0.1, 0.6, 0.3])
    m = (teacher + student) / 2
    entries = 0.5 * teacher * (teacher / m).log() + 0.5 * student * (student / m).log()
    assert entries.tolist() == pytest.approx([0.1840, 0.1371, 0.0495], abs=5e-5)


def test_a_clipped_entry_has_no_gradient():
    student = log([1e-9, 1 - 1e-9]).requires_grad_()
    jensen_shannon(student, log([1 - 1e-9, 1e-9]), clip=0.05).sum().backward()
    assert float(student.grad.abs().max()) < 1e-9


def test_the_ends_of_beta_are_the_two_kls_not_zero():
    p, q = log(P), log(Q)
    assert torch.equal(jensen_shannon(p, q, beta=0.0), forward_kl(p, q))
    assert torch.equal(jensen_shannon(p, q, beta=1.0), reverse_kl(p, q))
    assert float(jensen_shannon(p, q, beta=1e-9)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("log_prob", "masked_log_prob", "value", "grad"),
    [(-1.0, -2.0, 0.36788, 0.63212), (-2.0, -1.0, 0.71828, -1.71828)],
)
def test_papos_k_and_its_gradient(log_prob, masked_log_prob, value, grad):
    x = torch.tensor([log_prob], requires_grad=True)
    k = k3(x, torch.tensor([masked_log_prob]))
    k.backward(torch.ones(1))
    assert float(k) == pytest.approx(value, abs=5e-6)
    assert float(x.grad) == pytest.approx(grad, abs=5e-6)


def test_a_clamped_k_has_no_gradient():
    x = torch.tensor([-5.0], requires_grad=True)
    k = k3(x, torch.tensor([-1.0]))
    k.backward(torch.ones(1))
    assert float(k) == 10.0
    assert float(x.grad) == 0.0


@pytest.mark.parametrize(("visual", "eta", "rotation"), [(0.801, 0.41, 26.1), (0.976, 0.36, 28.1)])
def test_eta_from_norms(visual, eta, rotation):
    angle = math.radians(42)
    std = torch.tensor([1.0, 0.0])
    vis = visual * torch.tensor([math.cos(angle), math.sin(angle)])
    steered = std + 2 * vis
    method = METHODS["vgs"](eta="dynamic")
    memory = method.learn_norms([float(std.norm()), float(steered.norm())], {})
    assert memory["eta"] == pytest.approx(eta, abs=5e-3)
    assert method.norm_correction(memory) == memory["eta"]
    assert math.degrees(math.atan2(float(steered[1]), float(steered[0]))) == pytest.approx(
        rotation, abs=0.06
    )


def test_group_advantage_uses_the_unbiased_deviation():
    reward, group = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0]), torch.tensor([0, 0, 0, 0, 1, 1])
    expected = 0.5 / math.sqrt(1 / 3)
    assert group_advantage(reward, group).tolist() == pytest.approx(
        [expected, -expected, -expected, expected, 0, 0], abs=1e-5
    )
    assert group_advantage(torch.ones(1), torch.zeros(1, dtype=torch.long)).tolist() == [0.0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [
        (1.0, 2.0, -2.0),
        (1.5, 1.0, -1.3),
        (0.5, 1.0, -0.5),
        (0.5, -1.0, 0.8),
        (1.2, -1.0, 1.2),
        (5.0, -1.0, 3.0),
    ],
)
def test_clipped_surrogate_with_dual_clip(ratio, advantage, loss):
    out = clipped_surrogate(torch.tensor([ratio]), torch.tensor([advantage]))
    assert float(out) == pytest.approx(loss)


def test_skewed_kls():
    p, q = log(P), log(Q)
    mix = 0.1 * torch.tensor(Q) + 0.9 * torch.tensor(P)
    forward = sum(b * math.log(b / m) for b, m in zip(Q, mix.tolist(), strict=True))
    assert (
        float(skewed_forward_kl(p, q, 0.1))
        == pytest.approx(forward, abs=1e-6)
        == pytest.approx(0.162240, abs=5e-6)
    )
    mix = 0.1 * torch.tensor(P) + 0.9 * torch.tensor(Q)
    reverse = sum(a * math.log(a / m) for a, m in zip(P, mix.tolist(), strict=True))
    assert (
        float(skewed_reverse_kl(p, q, 0.1))
        == pytest.approx(reverse, abs=1e-6)
        == pytest.approx(0.178563, abs=5e-6)
    )
    assert float(skewed_forward_kl(p, q, 0.0)) == pytest.approx(float(forward_kl(p, q)))
    assert float(skewed_reverse_kl(p, q, 0.0)) == pytest.approx(float(reverse_kl(p, q)))
    assert float(skewed_forward_kl(p, q, 1.0)) == pytest.approx(0)


def test_the_contrastive_target_drops_unlikely_tokens_and_sharpens_the_rest():
    logits = contrastive_target(log([0.6, 0.35, 0.05]), log([0.3, 0.4, 0.3]), 1.0, 0.1)
    assert torch.softmax(logits, -1)[0].tolist() == pytest.approx(
        [0.796680, 0.203320, 0.0], abs=5e-6
    )
    assert math.isfinite(float(forward_kl(log(P), logits)))


def test_position_weights_start_at_one_plus_gamma_and_fall_with_the_disagreement_so_far():
    gap = torch.tensor([1.0, 0.0, 3.0, 2.0, 2.0])
    weights = position_weight(gap, responses([3, 2], [0, 0]), 0.5)
    assert weights.tolist() == pytest.approx([1.5, 1.375, 1.375, 1.5, 1.25])


def test_trajectory_scales_start_at_beta_min_and_average_one():
    scale = trajectory_scale(torch.tensor([1.0, 2.0, 5.0]), 0.9)
    assert scale.tolist() == pytest.approx([0.9, 0.96, 1.14])
    assert trajectory_scale(torch.tensor([2.0, 2.0]), 0.9).tolist() == [1.0, 1.0]


def test_a_tail_bucket_shows_the_students_probability_outside_the_top_k():
    teacher, inside, outside = log([0.6, 0.3, 0.1]), log([0.6, 0.3, 0.1]), log([0.06, 0.03, 0.91])

    def loss(student, tail):
        return float(jensen_shannon(*keep_top(student, teacher, 2, tail)))

    assert loss(inside, False) == pytest.approx(0, abs=1e-12)
    assert loss(outside, False) == pytest.approx(0, abs=1e-12)
    coarse = float(jensen_shannon(log([0.06, 0.03, 0.91]), teacher))
    assert loss(outside, True) == pytest.approx(coarse)
    assert coarse > 0.3


def test_the_entropy_gate_opens_only_at_high_teacher_entropy():
    r = responses([2], [0], vocabulary=3)
    batch = ScoredBatch(r, {"teacher.full": logits_pass(log_rows([0.4, 0.3, 0.3], Q), r.ids)})
    signals = METHODS["eopd"]().signals(batch)
    assert signals["teacher_entropy"].tolist() == pytest.approx([1.0889, 0.6390], abs=5e-5)
    assert signals["gate"].tolist() == [True, False]


def loss_of_one_token(name, passes, **knobs):
    """The loss of a method on one response of one token, from the distributions of its passes."""
    r = replace(responses([1], [0], vocabulary=3), ids=torch.tensor([1]))
    batch = ScoredBatch(r, {key: logits_pass(log_rows(row), r.ids) for key, row in passes.items()})
    method = METHODS[name](**knobs)
    terms = method.terms(batch, method.signals(batch))
    return sum(t.coefficient * float((t.weights * t.values).sum()) for t in terms if t.minimised)


@pytest.mark.parametrize(
    ("name", "knobs", "passes", "expected"),
    [
        # (log 0.5 - log 0.8) log 0.5
        ("opd", {"estimator": "sampled"}, {"student.full": P, "teacher.full": Q}, 0.325782),
        (
            "va_opd",
            {"estimator": "sampled"},
            {"student.full": P, "teacher.full": Q, "teacher.pixelated": P},
            0.325782,
        ),
        # sum q (log q - log p)
        ("kd", {}, {"student.full": P, "teacher.full": Q}, 0.196827),
        # -log 0.5
        ("sft", {}, {"student.full": P}, 0.693147),
        # 1/2 KL(q||m) + 1/2 KL(p||m)
        ("gkd", {}, {"student.full": P, "teacher.full": Q}, 0.052122),
        (
            "s2vopd",
            {},
            {"student.degraded": [0.1, 0.6, 0.3], "ema.full": [0.9, 0.05, 0.05]},
            0.370699,
        ),
        (
            "visual_opsd",
            {},
            {"student.full": [0.1, 0.6, 0.3], "ema.privileged": [0.9, 0.05, 0.05]},
            0.149530,
        ),
        # the sampled estimate times 1 + 0.5
        ("iw_opd", {}, {"student.full": P, "teacher.full": Q, "old.full": P}, 0.488673),
        # teacher entropy 0.6390 < 0.8: the sampled estimate alone
        ("eopd", {}, {"student.full": P, "teacher.full": Q}, 0.325782),
    ],
)
def test_the_loss_of_one_token(name, knobs, passes, expected):
    assert loss_of_one_token(name, passes, **knobs) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "vgs",
            {
                "gamma": 2.0,
                "preserve": 0.01,
                "quantile": 0.7,
                "eta_value": 0.41,
                "low_quantile": 0.4,
            },
        ),
        (
            "visual_opsd",
            {
                "beta": 0.5,
                "top_k": 256,
                "clip": 0.05,
                "clip_mode": "entry",
                "ema_decay": 0.995,
                "teacher": "ema",
                "tail_bucket": False,
            },
        ),
        (
            "grpo",
            {
                "clip_low": 0.2,
                "clip_high": 0.3,
                "reference_weight": 0.01,
                "dual_clip": 3.0,
                "averaging": "token",
            },
        ),
        (
            "papo",
            {
                "perception_weight": 0.02,
                "entropy_weight": 0.03,
                "masked_entropy_weight": 0.03,
                "masked_gradient": False,
            },
        ),
        (
            "grpo_vgs",
            {
                "distillation_share": 0.3,
                "gamma": 2.0,
                "preserve": 0.01,
                "reference_weight": 0.0,
            },
        ),
        (
            "grpo_va_opd",
            {
                "distillation_share": 0.3,
                "high_share": 0.2,
                "high_weight": 0.5,
                "rollout_temperature": 1.0,
                "reference_weight": 0.0,
            },
        ),
        (
            "gkd",
            {
                "beta": 0.5,
                "off_policy_share": 0.5,
            },
        ),
        (
            "distillm",
            {
                "skew": 0.1,
            },
        ),
        (
            "vcsd",
            {
                "strength": 1.0,
                "support": 0.1,
                "temperature": 2.0,
                "ema_decay": 0.95,
            },
        ),
        (
            "eopd",
            {
                "entropy_above": 0.8,
            },
        ),
        (
            "iw_opd",
            {
                "strength": 0.5,
            },
        ),
        (
            "vppo",
            {
                "token_share": 0.4,
                "scale_low": 0.9,
                "entropy_weight": 0.06,
                "clip_high": 0.28,
            },
        ),
    ],
)
def test_class_defaults_are_the_papers_settings(name, expected):
    method = METHODS[name]()
    assert {key: getattr(method, key) for key in expected} == expected

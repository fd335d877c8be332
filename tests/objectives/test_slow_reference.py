"""Each objective against a dense float64 reference that shares no code with the package."""

import math

import pytest
import torch
from batches import loss_of, random_batch
from dense import kl, log_softmax

from vistill.objectives import OPD, SFT, VAOPD

LENGTHS, GROUP = [4, 7, 1, 5, 12, 3], [0, 0, 0, 1, 1, 1]


def dense(batch):
    """Rollouts as lists: (group, ids, student rows, teacher rows, degraded rows)."""
    r, out, start = batch.responses, [], 0
    for n, length in enumerate(r.lengths.tolist()):
        rows = slice(start, start + length)
        passes = ("student.full", "teacher.full", "teacher.pixelated")
        hidden = [batch[name].hidden[rows].double().tolist() for name in passes]
        out.append((int(r.group[n]), r.ids[rows].tolist(), *hidden))
        start += length
    return out


def reference_opd(batch):
    rollouts = dense(batch)
    return sum(
        sum(kl(log_softmax(s), log_softmax(t)) for s, t in zip(S, T, strict=True)) / len(S)
        for _, _, S, T, _ in rollouts
    ) / len(rollouts)


def reference_va_opd(batch, method, advantage_of):
    rollouts = dense(batch)
    advantage = [
        [
            advantage_of(log_softmax(t)[i] - log_softmax(d)[i])
            for i, t, d in zip(ids, T, D, strict=True)
        ]
        for _, ids, _, T, D in rollouts
    ]
    total = 0.0
    groups = sorted({g for g, *_ in rollouts})
    for g in groups:
        members = [n for n, r in enumerate(rollouts) if r[0] == g]
        means = [sum(advantage[n]) / len(advantage[n]) for n in members]
        mu = sum(means) / len(means)
        sigma = math.sqrt(sum((m - mu) ** 2 for m in means) / len(means))
        exp = [math.exp((m - mu) / (sigma + 1e-6) / method.rollout_temperature) for m in means]
        weights = (
            [e / sum(exp) for e in exp]
            if method.rollout_weights
            else [1 / len(members)] * len(members)
        )
        for n, w in zip(members, weights, strict=True):
            _, _, S, T, _ = rollouts[n]
            length = len(S)
            m = max(1, math.ceil(method.high_share * length - 1e-9))
            order = sorted(range(length), key=lambda t: (-advantage[n][t], t))
            high = set(order[:m])
            for t in range(length):
                if not method.token_groups or m == length:
                    c = w / length
                else:
                    c = (
                        w * method.high_weight / m
                        if t in high
                        else w * (1 - method.high_weight) / (length - m)
                    )
                total += c * kl(log_softmax(S[t]), log_softmax(T[t]))
    return total / len(groups)


def check(objective, batch, student, expected, reference_gradient):
    loss = loss_of(objective, batch)
    assert float(loss) == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert torch.allclose(student.grad.double(), reference_gradient, atol=1e-6)


def numeric_gradient(student, value, rows=((0, 1), (5, 3), (12, 0), (20, 4))):
    """Central differences at some entries."""
    out = {}
    for r, v in rows:
        eps = 1e-3
        with torch.no_grad():
            student[r, v] += eps
            up = value()
            student[r, v] -= 2 * eps
            down = value()
            student[r, v] += eps
        out[(r, v)] = (up - down) / (2 * eps)
    return out


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_opd_agrees_with_the_definition_in_value_and_gradient(seed):
    batch, student = random_batch(LENGTHS, GROUP, seed=seed)
    loss = loss_of(OPD(), batch)
    assert float(loss) == pytest.approx(reference_opd(batch), abs=1e-6)
    loss.backward()
    for (r, v), slope in numeric_gradient(student, lambda: reference_opd(batch)).items():
        assert float(student.grad[r, v]) == pytest.approx(slope, abs=2e-6)


@pytest.mark.parametrize("score", ["rectified", "signed", "absolute"])
@pytest.mark.parametrize(
    "method",
    [
        VAOPD(),
        VAOPD(rollout_weights=False),
        VAOPD(token_groups=False),
        VAOPD(high_share=0.5, high_weight=0.9, rollout_temperature=2.0),
        VAOPD(high_share=1.0),
    ],
)
def test_va_opd_agrees_with_the_definition(method, score):
    from dataclasses import replace

    method = replace(method, score=score)
    rule = {"rectified": lambda d: max(d, 0.0), "signed": lambda d: d, "absolute": abs}[score]
    batch, student = random_batch(LENGTHS, GROUP, seed=3)
    loss = loss_of(method, batch)
    assert float(loss) == pytest.approx(reference_va_opd(batch, method, rule), abs=1e-6)
    loss.backward()
    for (r, v), slope in numeric_gradient(
        student, lambda: reference_va_opd(batch, method, rule)
    ).items():
        assert float(student.grad[r, v]) == pytest.approx(slope, abs=2e-6)


def test_sft_is_the_mean_over_all_response_tokens():
    batch, student = random_batch(LENGTHS, GROUP, seed=4)
    rollouts = dense(batch)
    terms = [
        -log_softmax(s)[i] for _, ids, S, _, _ in rollouts for i, s in zip(ids, S, strict=True)
    ]
    loss = loss_of(SFT(), batch)
    assert float(loss) == pytest.approx(sum(terms) / len(terms), abs=1e-6)
    loss.backward()
    assert student.grad.abs().sum() > 0


def test_the_distribution_level_score_ranks_by_kl_between_the_teachers_two_views():
    batch, _ = random_batch(LENGTHS, GROUP, seed=5)
    expected = [
        kl(log_softmax(t), log_softmax(d))
        for _, _, _, T, D in dense(batch)
        for t, d in zip(T, D, strict=True)
    ]
    assert VAOPD(score="distribution").signals(batch)["visual_advantage"].tolist() == pytest.approx(
        expected, abs=1e-5
    )

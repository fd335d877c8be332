"""Golden numbers of sft, opd and va_opd (method specification, section 9)."""

import math

import pytest
import torch
from batches import logits_pass, responses

from vistill.batch import ScoredBatch
from vistill.functional.divergences import reverse_kl
from vistill.functional.segments import top_share
from vistill.functional.siblings import sibling_softmax, token_group_coefficients
from vistill.objectives import VAOPD


def test_rollout_weights_of_the_papers_worked_example_use_the_population_deviation():
    weights = sibling_softmax(
        torch.tensor([0.045, 0.030, 0.020, 0.010], dtype=torch.float64),
        torch.zeros(4, dtype=torch.long),
    )
    assert weights.tolist() == pytest.approx([0.6558, 0.2056, 0.0949, 0.0438], abs=5e-5)
    assert weights.tolist() != pytest.approx([0.6062, 0.2220, 0.1136, 0.0582], abs=5e-3)


@pytest.mark.parametrize(
    ("k", "largest", "smallest"),
    [(2, 0.881, 0.119), (3, 0.807, 0.057), (4, 0.770, 0.032), (8, 0.746, 0.007)],
)
def test_extremes_of_rollout_weights(k, largest, smallest):
    group = torch.zeros(k, dtype=torch.long)
    one_high = torch.zeros(k, dtype=torch.float64)
    one_high[0] = 1.0
    one_low = -one_high
    assert float(sibling_softmax(one_high, group).max()) == pytest.approx(largest, abs=1.5e-3)
    assert float(sibling_softmax(one_low, group).min()) == pytest.approx(smallest, abs=1e-3)


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [
        ([0.0, 2.0, 0.0, 1.0, 0.0], [0.125, 0.5, 0.125, 0.125, 0.125]),
        ([0.0, 2.0, 0.0, 1.0, 0.0, 0.0], [0.125, 0.25, 0.125, 0.25, 0.125, 0.125]),
        ([0.7], [1.0]),
        ([0.0] * 5, [0.5, 0.125, 0.125, 0.125, 0.125]),
    ],
)
def test_group_coefficients(advantage, expected):
    values = torch.tensor(advantage)
    rollout = torch.zeros(len(values), dtype=torch.long)
    high = top_share(values, rollout, torch.tensor([len(values)]), 0.2)
    assert token_group_coefficients(torch.ones(1), high, rollout, 0.5).tolist() == pytest.approx(
        expected
    )


def test_reverse_kl_of_the_vgs_row():
    p = torch.tensor([[0.3, 0.5, 0.2]], dtype=torch.float64).log()
    q = torch.tensor([[0.1, 0.8, 0.1]], dtype=torch.float64).log()
    assert float(reverse_kl(p, q)) == pytest.approx(0.233211, abs=5e-7)
    p_x, q_x = (
        torch.tensor([row], dtype=torch.float64).log() for row in ([0.5, 0.3, 0.2], [0.4, 0.4, 0.2])
    )
    assert float(reverse_kl(p_x, q_x)) == pytest.approx(0.025267, abs=5e-7)
    assert float(reverse_kl(q, q_x)) == pytest.approx(0.346574, abs=5e-7)


def test_a_token_of_the_high_group_has_four_times_the_weight():
    r = responses([10], [0])
    full, blurred = torch.zeros(10, 5), torch.zeros(10, 5)
    full[3, r.ids[3]] = 3.0
    full[7, r.ids[7]] = 2.0
    batch = ScoredBatch(
        r,
        {
            "teacher.full": logits_pass(full, r.ids),
            "teacher.pixelated": logits_pass(blurred, r.ids),
        },
    )
    signals = VAOPD().signals(batch)
    weights = signals["token_weight"]
    assert float(weights[3]) == pytest.approx(2.5 / 10)
    assert float(weights[0]) == pytest.approx(0.625 / 10)
    assert signals["high_group"].tolist() == [i in (3, 7) for i in range(10)]


def test_class_defaults_are_the_papers_setting():
    method = VAOPD()
    assert (method.high_share, method.high_weight, method.rollout_temperature) == (0.2, 0.5, 1.0)
    assert (method.score, method.tie_rule, method.zero_va, method.drop) == (
        "rectified",
        "stable",
        "group",
        "none",
    )
    assert method.rollout_weights
    assert method.token_groups


def test_top_share_size_is_exact_up_to_8192_tokens():
    from vistill.functional.segments import top_share_size

    lengths = torch.arange(1, 8193)
    exact = [max(1, -(-t // 5)) for t in range(1, 8193)]
    assert top_share_size(lengths, 0.2).tolist() == exact
    assert math.ceil(0.2 * 5) == 1

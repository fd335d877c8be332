"""Signals and weights computed by hand: visual advantage, dependency, thresholds, siblings, eta."""

import pytest
import torch
from batches import logits_pass, responses

from vistill.functional.siblings import sibling_softmax
from vistill.objectives import METHODS
from vistill.signals.visual_advantage import visual_advantage
from vistill.signals.visual_dependency import quantile_threshold, visual_dependency


@pytest.mark.parametrize(
    ("score", "expected"),
    [("rectified", [0.5, 0.0, 0.0]), ("signed", [0.5, -1.0, 0.0]), ("absolute", [0.5, 1.0, 0.0])],
)
def test_visual_advantage_of_a_read_a_misread_and_an_independent_token(score, expected):
    full, degraded = torch.tensor([-0.5, -2.0, -1.0]), torch.tensor([-1.0, -1.0, -1.0])
    assert visual_advantage(full, degraded, score).tolist() == pytest.approx(expected)


def test_a_token_without_an_image_has_no_visual_dependency():
    r = responses([1, 1], [0, 1], vocabulary=3, has_image=[True, False])
    full = torch.tensor([[0.1, 0.8, 0.1]]).log().repeat(2, 1)
    blind = torch.tensor([[0.4, 0.4, 0.2]]).log().repeat(2, 1)
    dependency = visual_dependency(logits_pass(full), logits_pass(blind), r)
    assert dependency.tolist() == pytest.approx([0.346574, 0.0], abs=5e-7)


def test_thresholds_of_each_scope():
    """Three prompts with one response each. The median of all six values is 2.5."""
    r = responses([2, 2, 2], [0, 1, 2])
    values = torch.tensor([0.0, 1.0, 2.0, 3.0, 8.0, 10.0])

    def median(*scope, **memory):
        return quantile_threshold(values, r, 0.5, *scope, **memory).tolist()

    assert median("batch") == pytest.approx([2.5] * 6)
    assert median("response") == pytest.approx([0.5, 0.5, 2.5, 2.5, 9.0, 9.0])
    assert median("micro_batch", 2) == pytest.approx([1.5, 1.5, 1.5, 1.5, 9.0, 9.0])
    assert median("running") == pytest.approx([2.5] * 6)
    averaged = 0.9 * 1.5 + 0.1 * 2.5
    assert median("running", memory={"threshold/0.5": 1.5}) == pytest.approx([averaged] * 6)


def test_a_higher_temperature_makes_the_weights_of_siblings_more_equal():
    """z-scores 1 and -1: softmax of (1, -1) / temperature."""
    means, group = torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.long)
    assert sibling_softmax(means, group, 2.0).tolist() == pytest.approx(
        [0.73106, 0.26894], abs=1e-4
    )
    assert sibling_softmax(means, group, 0.5).tolist() == pytest.approx(
        [0.98201, 0.01799], abs=1e-4
    )


def test_a_dynamic_eta_starts_at_the_ratio_of_the_norms_and_then_moves_by_a_tenth():
    method = METHODS["vgs"](eta="dynamic")
    assert method.learn_norms([2.0, 4.0], {}) == {"eta": 0.5}
    assert method.learn_norms([2.0, 4.0], {"eta": 1.0})["eta"] == pytest.approx(0.95)

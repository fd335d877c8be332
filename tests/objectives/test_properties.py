"""What must hold for every method in the dict, and what separates va_opd from its neighbours."""

from dataclasses import replace

import pytest
import torch
from batches import loss_of, random_batch
from doubles import small_blocks
from hypothesis import given, settings
from hypothesis import strategies as st

from vistill.batch import LossTerm, ScoredBatch, reduce_terms
from vistill.functional.divergences import reverse_kl
from vistill.functional.heads import Head
from vistill.functional.rows import Target, reverse_kl_from_hidden
from vistill.objectives import OPD, VAOPD

lengths_and_groups = st.lists(
    st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4
)


def flat(groups):
    return [t for g in groups for t in g], [i for i, g in enumerate(groups) for _ in g]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(lengths_and_groups, st.integers(0, 100))
def test_token_weights_of_a_prompt_sum_to_one(groups, seed):
    batch, _ = random_batch(*flat(groups), seed=seed)
    for method in (
        OPD(),
        VAOPD(),
        VAOPD(tie_rule="random"),
        VAOPD(drop="high"),
        VAOPD(drop="random", drop_share=0.5),
    ):
        weight = method.signals(batch)["token_weight"]
        r = batch.responses
        total = torch.zeros(r.num_groups).index_add_(0, r.group[r.rollout], weight)
        assert torch.allclose(total, torch.ones(r.num_groups), atol=1e-5)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(lengths_and_groups, st.integers(0, 100))
def test_equal_distributions_give_zero_loss_and_zero_gradient(groups, seed):
    batch, student = random_batch(*flat(groups), seed=seed)
    with torch.no_grad():
        student.copy_(batch["teacher.full"].hidden)
    for method in (OPD(), VAOPD()):
        student.grad = None
        loss = loss_of(method, batch)
        loss.backward()
        assert float(loss) == pytest.approx(0, abs=1e-6)
        assert float(student.grad.abs().max()) < 1e-6


def test_va_opd_with_one_rollout_and_lambda_v_over_t_is_exactly_opd():
    batch, _ = random_batch([10], [0], seed=7)
    assert float(loss_of(VAOPD(high_weight=2 / 10), batch)) == pytest.approx(
        float(loss_of(OPD(), batch)), abs=1e-6
    )


def test_va_opd_with_both_parts_off_is_opd_and_with_both_on_is_not():
    batch, _ = random_batch([4, 7, 5, 6], [0, 0, 1, 1], seed=8)
    opd = float(loss_of(OPD(), batch))
    assert float(loss_of(VAOPD(rollout_weights=False, token_groups=False), batch)) == pytest.approx(
        opd, abs=1e-6
    )
    assert abs(float(loss_of(VAOPD(), batch)) - opd) > 1e-3


def test_equal_visual_advantage_still_gives_a_fifth_of_the_tokens_four_times_the_weight():
    batch, _ = random_batch([10, 10], [0, 0], seed=9)
    same = ScoredBatch(
        batch.responses, {**batch.passes, "teacher.pixelated": batch["teacher.full"]}
    )
    weight = VAOPD().signals(same)["token_weight"]
    assert float(weight.max() / weight.min()) == pytest.approx(4.0, abs=1e-4)
    assert weight[:2].tolist() == pytest.approx([0.125, 0.125])


def test_random_ties_do_not_favour_the_start_and_do_not_change_the_sum():
    batch, _ = random_batch([50], [0], seed=10)
    same = ScoredBatch(
        batch.responses, {**batch.passes, "teacher.pixelated": batch["teacher.full"]}
    )
    stable = VAOPD().signals(same)["high_group"]
    random = VAOPD(tie_rule="random").signals(same)["high_group"]
    assert stable.nonzero()[:, 0].tolist() == list(range(10))
    assert random.nonzero()[:, 0].tolist() != list(range(10))
    assert int(random.sum()) == 10


def test_a_response_without_visual_advantage_may_weigh_its_tokens_equally():
    batch, _ = random_batch([10, 10], [0, 0], seed=11)
    same = ScoredBatch(
        batch.responses, {**batch.passes, "teacher.pixelated": batch["teacher.full"]}
    )
    assert VAOPD(zero_va="uniform").signals(same)["token_weight"].tolist() == pytest.approx(
        [0.05] * 20
    )


def test_a_prompt_without_a_picture_is_plain_distillation():
    batch, _ = random_batch([4, 6, 5, 5], [0, 0, 1, 1], seed=12, has_image=[False, True])
    weight = VAOPD().signals(batch)["token_weight"]
    assert weight[:10].tolist() == pytest.approx([1 / 8] * 4 + [1 / 12] * 6)


@pytest.mark.parametrize(
    ("drop", "where"), [("high", "largest"), ("low", "smallest"), ("random", "any")]
)
def test_dropping_tokens_keeps_the_mean_over_the_kept_ones(drop, where):
    batch, _ = random_batch([20, 1], [0, 0], seed=13)
    signals = VAOPD(rollout_weights=False, token_groups=False, drop=drop, drop_share=0.1).signals(
        batch
    )
    weight, advantage = signals["token_weight"], signals["visual_advantage"]
    dropped = (weight[:20] == 0).nonzero()[:, 0]
    assert len(dropped) == 2
    assert float(weight[20]) == 0.5
    assert float(weight[:20].sum()) == pytest.approx(0.5)
    if where == "largest":
        assert set(advantage[:20].topk(2).indices.tolist()) == set(dropped.tolist())
    if where == "smallest":
        assert float(advantage[dropped].max()) <= float(advantage[:20].sort().values[1])


def test_values_under_weight_zero_never_enter_even_when_they_are_nan():
    values = torch.tensor([1.0, float("nan"), 3.0], requires_grad=True)
    term = LossTerm("x", values, torch.tensor([0.5, 0.0, 0.5]))
    batch, _ = random_batch([3], [0])
    total, _ = reduce_terms([term], batch.responses.counts())
    total.backward()
    assert float(total) == 2.0
    assert values.grad.tolist() == [0.5, 0.0, 0.5]


def test_a_score_that_is_not_finite_shows_in_the_signal():
    """The step looks at it there, and is skipped: tests/training/test_finite.py."""
    batch, _ = random_batch([3], [0])
    broken = batch["teacher.full"].log_prob.clone()
    broken[1] = float("nan")
    bad = replace(
        batch,
        passes={**batch.passes, "teacher.full": replace(batch["teacher.full"], log_prob=broken)},
    )
    assert VAOPD().signals(bad)["visual_advantage"].isnan().tolist() == [False, True, False]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(2, 9), st.integers(0, 99))
def test_reverse_kl_is_never_negative_and_ignores_shifts(rows, vocabulary, seed):
    g = torch.Generator().manual_seed(seed)
    p, q = (
        torch.randn(rows, vocabulary, generator=g) * 3,
        torch.randn(rows, vocabulary, generator=g) * 3,
    )
    values = reverse_kl(p, q)
    assert float(values.min()) > -1e-6
    shift = torch.randn(rows, 1, generator=g)
    assert torch.allclose(reverse_kl(p + shift, q - shift), values, atol=1e-4)


def test_chunks_of_rows_change_neither_value_nor_gradient(monkeypatch):
    g = torch.Generator().manual_seed(0)
    hidden, teacher = torch.randn(37, 6, generator=g), torch.randn(37, 8, generator=g)
    heads = Head(torch.randn(11, 6, generator=g)), Head(torch.randn(11, 8, generator=g))
    results = []
    for chunk, block in ((1 << 20, 1 << 20), (7 * 11 * 4 * 2, 3 * 11), (1, 1)):
        small_blocks(monkeypatch, chunk, block)
        h = hidden.clone().requires_grad_()
        out = reverse_kl_from_hidden(h, heads[0], [Target(1.0, teacher, heads[1])])
        out.sum().backward()
        results.append((out.detach(), h.grad))
    for values, gradient in results[1:]:
        assert torch.allclose(results[0][0], values, atol=1e-6)
        assert torch.allclose(results[0][1], gradient, atol=1e-6)


def test_a_target_may_be_a_linear_combination_of_logits():
    g = torch.Generator().manual_seed(0)
    h, a, b = (torch.randn(5, 4, generator=g) for _ in range(3))
    w = torch.randn(7, 4, generator=g)
    out = reverse_kl_from_hidden(h, Head(w), [Target(2.0, a, Head(w)), Target(-1.0, b, Head(w))])
    expected = reverse_kl(h @ w.T, 2 * a @ w.T - b @ w.T)
    assert torch.allclose(out, expected, atol=1e-6)

"""One loss entry: values and gradients equal a float64 reference for any chunk size."""

import math
from functools import partial

import pytest
import torch
from doubles import small_blocks
from torch.utils.flop_counter import FlopCounterMode

from vistill.functional import tiles
from vistill.functional.divergences import (
    forward_kl,
    jensen_shannon,
    keep_top,
    reverse_kl,
    skewed_forward_kl,
)
from vistill.functional.heads import Head
from vistill.functional.kernels import find_kernel
from vistill.functional.rows import (
    RowRule,
    States,
    Target,
    apply_row_rules,
    log_prob_from_hidden,
    per_row,
    reverse_kl_from_hidden,
)
from vistill.functional.targets import contrastive_target, reverse_kl_to_steered

N, V, HS, HT = 23, 37, 6, 9


def top_forward(own, other):
    return forward_kl(*keep_top(own, other, 5, tail_bucket=True))


def to_contrast(own, full, black):
    return forward_kl(own, contrastive_target(full, black, 0.5, 0.1))


RULES = {
    "reverse": (reverse_kl, 1),
    "forward": (forward_kl, 1),
    "jsd": (partial(jensen_shannon, beta=0.3), 1),
    "jsd_0": (partial(jensen_shannon, beta=0.0), 1),
    "jsd_1": (partial(jensen_shannon, beta=1.0), 1),
    "jsd_clipped": (partial(jensen_shannon, beta=0.5, clip=0.05), 1),
    "skewed": (partial(skewed_forward_kl, skew=0.1), 1),
    "top_k_with_tail": (top_forward, 1),
    "steered": (reverse_kl_to_steered, 3),
    "steered_with_options": (partial(reverse_kl_to_steered, ratio_clamp=None, support=0.0), 3),
    "steered_clamped": (partial(reverse_kl_to_steered, ratio_clamp=0.3), 3),
    "steered_supported": (partial(reverse_kl_to_steered, support=0.2), 3),
    "contrast": (to_contrast, 2),
}
HEADS = {"plain": {}, "scaled": {"scale": 0.5}, "softcap": {"softcap": 3.0}, "bias": {"bias": True}}


def make(seed, num_others=1, options=None, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    options = dict(options or {})
    bias = draw(V) if options.pop("bias", False) else None
    hidden, weight = draw(N, HS).requires_grad_(), draw(V, HS).requires_grad_()
    bias = None if bias is None else bias.requires_grad_()
    others = [
        States(draw(N, HT), Head(draw(V, HT), softcap=options.get("softcap")))
        for _ in range(num_others)
    ]
    return (
        hidden,
        weight,
        bias,
        others,
        options,
        torch.rand(N, generator=g, dtype=torch.float64).to(dtype),
    )


def plain(rule, hidden, weight, bias, others, options):
    z = Head(weight, bias, **options).logits(hidden)
    return rule(z, *(s.head.logits(s.hidden) for s in others))


def gradients(loss, leaves):
    return torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None])


def close(actual, expected, tolerance):
    assert float((actual - expected).abs().max()) <= tolerance * max(
        1.0, float(expected.abs().max())
    )


def agree(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        close(a, b, 1e-11)


@pytest.fixture(params=["whole", "pieces"])
def pieces(request, monkeypatch):
    """Everything at once, and seven rows a chunk in blocks of three."""
    if request.param == "pieces":
        small_blocks(monkeypatch, 7 * V * 8, 3 * V)
        monkeypatch.setattr(tiles, "CACHED_ELEMENTS", {"cpu": 3 * V})
        monkeypatch.setattr(tiles, "TILE_ROWS", 5)
        monkeypatch.setattr(tiles, "TILE_VOCABULARY", 8)


@pytest.fixture(params=["torch", pytest.param("triton", marks=pytest.mark.triton)])
def kernels(request, monkeypatch):
    """Both backends; Triton's run in its interpreter, several blocks a row."""
    if request.param == "triton":
        triton_rows = pytest.importorskip(
            "vistill.triton_kernels", reason="the extra `triton` is not installed"
        )
        monkeypatch.setattr(triton_rows, "BLOCK", 16)
    return request.param


@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("promised", [True, False])
@pytest.mark.parametrize("name", list(RULES))
def test_values_and_gradients_equal_autograd_on_all_logits_in_float64(
    name, promised, head, kernels, pieces
):
    rule, num = RULES[name]
    hidden, weight, bias, others, options, weights = make(1, num, HEADS[head])
    leaves = (hidden, weight, bias)
    expected = plain(rule, hidden, weight, bias, others, options)
    own = Head(weight, bias, **options, kernels=kernels)
    values = per_row(rule, hidden, own, others, weights if promised else None)
    close(values, expected, 1e-12)
    scale = -0.37  # a common factor of the promised weights
    agree(
        gradients((scale * weights * values).sum(), leaves),
        gradients((scale * weights * expected).sum(), leaves),
    )


@pytest.mark.parametrize("name", ["reverse", "forward", "jsd", "steered"])
def test_float32_stays_within_1e_5_of_float64(name, kernels):
    rule, num = RULES[name]
    hidden, weight, _, others, _, weights = make(2, num)
    expected = plain(rule, hidden, weight, None, others, {})
    reference = gradients((weights * expected).sum(), (hidden, weight))
    single = [States(s.hidden.float(), Head(s.head.weight.float())) for s in others]
    h, w = hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    values = per_row(rule, h, Head(w, kernels=kernels), single, weights.float())
    close(values.double(), expected, 1e-5)
    for a, b in zip(gradients((weights.float() * values).sum(), (h, w)), reference, strict=True):
        close(a.double(), b, 1e-5)


def test_a_broken_promise_costs_time_and_never_numbers(pieces):
    hidden, weight, _, others, _, weights = make(3)
    other = torch.rand(N, dtype=torch.float64) + 0.1
    values = per_row(reverse_kl, hidden, Head(weight), others, weights + 0.1)
    expected = plain(reverse_kl, hidden, weight, None, others, {})
    agree(
        gradients((other * values).sum(), (hidden, weight)),
        gradients((other * expected).sum(), (hidden, weight)),
    )


def test_a_frozen_head_serves_any_weights_without_a_second_projection():
    hidden, weight, _, others, _, weights = make(4)
    weight.requires_grad_(False)
    expected = plain(reverse_kl, hidden, weight, None, others, {})
    values = per_row(reverse_kl, hidden, Head(weight), others)
    with FlopCounterMode(display=False) as counter:
        (actual,) = torch.autograd.grad((weights * values).sum(), hidden, retain_graph=True)
    assert counter.get_total_flops() == 0
    close(actual, gradients((weights * expected).sum(), (hidden,))[0], 1e-11)


def test_rows_without_weight_are_not_projected_and_have_no_gradient(kernels, pieces):
    hidden, weight, _, others, _, weights = make(5)
    weights = weights * (torch.arange(N) % 3 == 0)
    with FlopCounterMode(display=False) as counter:
        values = per_row(reverse_kl, hidden, Head(weight, kernels=kernels), others, weights)
    kept = int((weights != 0).sum())
    assert counter.get_total_flops() == 2 * kept * V * (3 * HS + HT)
    expected = plain(reverse_kl, hidden, weight, None, others, {})
    close(values[weights != 0], expected[weights != 0], 1e-12)
    assert not values[weights == 0].any()
    agree(
        gradients((weights * values).sum(), (hidden, weight)),
        gradients((weights * expected).sum(), (hidden, weight)),
    )


def test_no_weights_at_all_is_no_gradient():
    hidden, weight, _, others, _, weights = make(6)
    values = per_row(reverse_kl, hidden, Head(weight), others, torch.zeros_like(weights))
    assert not any(g.any() for g in gradients((0 * values).sum(), (hidden, weight)))


def test_several_rules_share_every_projection(pieces):
    """Standard and steering of VGS, and a logged term: 3 passes and the student, each once."""
    hidden, weight, _, others, _, weights = make(7, 3)
    asked = [
        RowRule(reverse_kl, (0,), weights),
        RowRule(reverse_kl_to_steered, (0, 1, 2), 2 * weights),
        RowRule(forward_kl, (0,)),
    ]
    with FlopCounterMode(display=False) as counter:
        standard, visual, watched = apply_row_rules(hidden, Head(weight), others, asked)
        loss = (weights * standard).sum() + (2 * weights * visual).sum()
        actual = gradients(loss, (hidden, weight))
    assert counter.get_total_flops() == 2 * N * V * (3 * HS + 3 * HT)
    a = plain(reverse_kl, hidden, weight, None, others[:1], {})
    b = plain(reverse_kl_to_steered, hidden, weight, None, others, {})
    close(watched, plain(forward_kl, hidden, weight, None, others[:1], {}), 1e-12)
    for x, y in zip(
        actual,
        gradients((weights * a).sum() + (2 * weights * b).sum(), (hidden, weight)),
        strict=True,
    ):
        close(x, y, 1e-11)


def test_the_steered_target_of_one_teacher_takes_one_teacher_projection():
    """log q - log q_x is (h_full - h_text) W up to a constant of the row."""
    hidden, weight, _, others, _, weights = make(8, 2)
    own_blind = torch.randn(N, HS, dtype=torch.float64)
    full, blind = others[0].hidden, others[1].hidden
    teacher, student = others[0].head, Head(weight)
    targets = [
        Target(1.0, own_blind, student.detached()),
        Target(1.0, full, teacher),
        Target(-1.0, blind, teacher),
    ]
    with FlopCounterMode(display=False) as counter:
        values = reverse_kl_from_hidden(hidden, student, targets, weights)
        actual = gradients((weights * values).sum(), (hidden, weight))
    assert counter.get_total_flops() == 2 * N * V * (4 * HS + HT)
    z = [
        h @ w.T
        for h, w in ((full, teacher.weight), (blind, teacher.weight), (own_blind, weight.detach()))
    ]
    expected = reverse_kl_to_steered(hidden @ weight.T, *z)
    close(values, expected, 1e-11)
    for a, b in zip(actual, gradients((weights * expected).sum(), (hidden, weight)), strict=True):
        close(a, b, 1e-11)


@pytest.mark.parametrize("head", list(HEADS))
def test_sampled_log_probabilities_equal_log_softmax(head, kernels, pieces):
    hidden, weight, bias, _, options, weights = make(9, 0, HEADS[head])
    ids = torch.arange(N) * 5 % V

    def reference_log_probs():
        logits = Head(weight, bias, **options).logits(hidden)
        return torch.log_softmax(logits, -1).gather(1, ids[:, None])[:, 0]

    with torch.no_grad():
        actual = log_prob_from_hidden(hidden, Head(weight, bias, **options, kernels=kernels), ids)
        close(actual, reference_log_probs(), 1e-12)
    for promised in (weights, None):
        expected = reference_log_probs()
        values = log_prob_from_hidden(
            hidden, Head(weight, bias, **options, kernels=kernels), ids, promised
        )
        close(values, expected, 1e-12)
        leaves = (hidden, weight, bias)
        for a, b in zip(
            gradients((weights * values).sum(), leaves),
            gradients((weights * expected).sum(), leaves),
            strict=True,
        ):
            close(a, b, 1e-11)


def test_a_nearly_certain_token_keeps_its_digits(kernels, pieces):
    """log p = -1e-5 in float32 at large logits: visual advantage is a difference of such values."""
    hidden, weight = torch.zeros(2, HS), torch.zeros(V, HS)
    hidden[:, 0], weight[:, 0] = 1.0, 40.0 - torch.arange(V) / 10
    weight[7, 0] = 50.0
    exact = torch.log_softmax((hidden @ weight.T).double(), -1)[:, 7]
    actual = log_prob_from_hidden(hidden, Head(weight, kernels=kernels), torch.tensor([7, 7]))
    assert -1e-3 < float(exact[0]) < -1e-5
    assert float(((actual - exact) / exact).abs().max()) < 1e-3


@pytest.mark.filterwarnings(
    "ignore:(invalid value|divide by zero):RuntimeWarning"
)  # numpy, in Triton's interpreter
def test_a_target_without_support_somewhere_makes_no_nan(kernels):
    hidden, weight, _, others, _, weights = make(10)
    bias = torch.where(torch.arange(V) < 4, -math.inf, 0.0).double()
    gone = [States(others[0].hidden, Head(others[0].head.weight, bias))]
    kept = [States(others[0].hidden, Head(others[0].head.weight, bias.clamp_min(-200)))]
    for rule in (forward_kl, partial(jensen_shannon, beta=0.4)):
        assert find_kernel(rule) is not None
        values = per_row(rule, hidden, Head(weight, kernels=kernels), gone, weights)
        near = plain(rule, hidden, weight, None, kept, {})
        close(values, near, 1e-11)
        for x, y in zip(
            gradients((weights * values).sum(), (hidden, weight)),
            gradients((weights * near).sum(), (hidden, weight)),
            strict=True,
        ):
            close(x, y, 1e-10)


def test_a_second_backward_pass_through_the_same_values_gives_the_same_gradient():
    hidden, weight, _, others, _, weights = make(13)
    loss = (weights * per_row(reverse_kl, hidden, Head(weight), others, weights)).sum()
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    again = torch.autograd.grad(3 * loss, (hidden, weight))
    for a, b in zip(first, again, strict=True):
        close(3 * a, b, 1e-11)


def test_plain_steering_has_a_kernel_and_modified_steering_has_none():
    assert (
        find_kernel(RULES["steered"][0])
        is find_kernel(RULES["steered_with_options"][0])
        is not None
    )
    assert find_kernel(RULES["steered_clamped"][0]) is None
    assert find_kernel(RULES["steered_supported"][0]) is None


def test_no_rows_give_no_values():
    hidden, weight, _, others, _, _ = make(11)
    empty = [States(others[0].hidden[:0], others[0].head)]
    assert per_row(reverse_kl, hidden[:0], Head(weight), empty).shape == (0,)
    assert log_prob_from_hidden(
        hidden[:0].detach(), Head(weight.detach()), torch.zeros(0, dtype=torch.long)
    ).shape == (0,)


def test_a_gradient_takes_five_projections_of_the_head(kernels):
    """Student 1, teacher 1 (of its own width), gradient of the states 1, of the head 1."""
    hidden, weight, _, others, _, weights = make(12)
    with FlopCounterMode(display=False) as counter:
        values = per_row(reverse_kl, hidden, Head(weight, kernels=kernels), others, weights)
        gradients((weights * values).sum(), (hidden, weight))
    assert counter.get_total_flops() == 2 * N * V * (3 * HS + HT)

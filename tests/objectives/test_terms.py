"""Terms in the log: unscaled, with their coefficients, and also those outside the loss."""

import math
from dataclasses import replace

import pytest
import torch
from batches import cut_like_loop, loss_of, method_batch, passes_without_gradient, terms_of
from objectives.test_dense_references import Dense, k3_of, kl, quantile, steered
from objectives.test_every_method import VARIANTS

from vistill.batch import LossTerm, ScoredBatch, reduce_terms, term_coefficients
from vistill.functional.divergences import (
    forward_kl,
    jensen_shannon,
    keep_top,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
)
from vistill.functional.heads import Head
from vistill.functional.rows import States, per_row
from vistill.functional.targets import reverse_kl_to_steered
from vistill.objectives import METHODS
from vistill.objectives.vcsd import kl_to_contrast

LENGTHS, GROUP = [4, 7, 1, 5, 12, 3], [0, 0, 0, 1, 1, 1]
MEMORY = {"eta": 0.37}


def make(name, **knobs):
    return METHODS[name](**knobs)


def a_batch(method, seed=0):
    batch, leaves = method_batch(method, LENGTHS, GROUP, seed=seed, spread=0.7)
    return ScoredBatch(batch.responses, batch.passes, MEMORY, 0.25), leaves


def logged(method, batch):
    """The loss, every term, every coefficient."""
    terms = terms_of(method, batch)
    loss, parts = reduce_terms(terms, batch.responses.counts())
    return float(loss), {name: float(x) for name, x in parts.items()}, term_coefficients(terms)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_the_loss_is_the_sum_of_coefficient_times_term(name):
    method = VARIANTS[name]
    loss, parts, factors = logged(method, a_batch(method)[0])
    assert loss == pytest.approx(
        sum(factor * parts[name] for name, factor in factors.items()), abs=1e-6
    )


#: Two sets of knobs of a method that differ in coefficients alone.
SCALES = {
    "vgs": (
        make("vgs", gamma=1.0, preserve=1.0, eta="none"),
        make("vgs", gamma=3.0, preserve=0.01, eta="constant", eta_value=0.3),
    ),
    "vgs_left_out": (make("vgs"), make("vgs", gamma=0.0, preserve=0.0, eta="dynamic")),
    "vgs_adaptive": (make("vgs", adaptive=True), make("vgs", adaptive=True, gamma=0.5, eta="none")),
    "vgs_language": (
        make("vgs_language", eta="none", preserve=1.0),
        make("vgs_language", eta="dynamic", gamma=0.0, preserve=0.0),
    ),
    "grpo": (
        make("grpo", reference_weight=0.5),
        make("grpo", reference_weight=0.0, watch_reference=True),
    ),
    "papo": (
        make("papo"),
        make(
            "papo",
            perception_weight=0.0,
            entropy_weight=0.5,
            masked_entropy_weight=0.0,
            annealed=True,
        ),
    ),
    "vppo": (make("vppo"), make("vppo", entropy_weight=0.0)),
    "eopd": (make("eopd", entropy_above=1.5), make("eopd", entropy_above=1.5, forward_weight=0.0)),
    "grpo_opd": (make("grpo_opd"), make("grpo_opd", distillation_share=1.0)),
    "grpo_vgs": (
        make("grpo_vgs"),
        make("grpo_vgs", distillation_share=0.0, gamma=1.0, preserve=0.0),
    ),
    "grpo_va_opd": (make("grpo_va_opd"), make("grpo_va_opd", distillation_share=1.0)),
}


@pytest.mark.parametrize("name", list(SCALES))
def test_a_logged_term_does_not_depend_on_its_coefficient(name):
    first, second = SCALES[name]
    batch, _ = a_batch(first)
    other = replace(
        batch,
        passes={
            q.name: batch[p.name] for p, q in zip(first.passes(), second.passes(), strict=True)
        },
    )
    _, ours, our_factors = logged(first, batch)
    _, theirs, their_factors = logged(second, other)
    assert our_factors != their_factors
    assert theirs.keys() == ours.keys()
    for key, value in ours.items():
        assert theirs[key] == pytest.approx(value, rel=1e-5, abs=1e-7), key


def test_the_coefficients_of_vgs_are_eta_gamma_and_lambda():
    method = make("vgs", gamma=3.0, preserve=0.1, eta="dynamic")
    _, _, factors = logged(method, a_batch(method)[0])
    expected = {"reverse_kl": 0.37, "visual_kl": 0.37 * 3.0, "language_preservation": 0.37 * 0.1}
    assert factors == {name: pytest.approx(value) for name, value in expected.items()}


@pytest.mark.parametrize(
    "method",
    [
        make("vgs", watch_both=True),
        make("vgs", gamma=0.0, preserve=0.0, watch_both=True),
        make("vgs", merged=True, watch_both=True),
        make("vgs_language", watch_both=True),
        make("grpo_vgs", watch_both=True),
    ],
)
def test_every_steered_method_can_report_both_divergences_of_all_tokens(method):
    """L_Vis and L_Lang of VGS section 5.3 against the dense reference, for every loss."""
    batch, leaves = a_batch(method)
    _, parts, _ = logged(method, batch)
    d, steers = Dense(batch), method.distillation() if hasattr(method, "distillation") else method
    blind = steers.blind().name
    visual = d.mean(lambda n, t: kl(d.row("student.full", n, t), steered(d, n, t, blind)))
    language = d.mean(lambda n, t: kl(d.row(blind, n, t), d.row("teacher.text_only", n, t)))
    standard = d.mean(lambda n, t: kl(d.row("student.full", n, t), d.row("teacher.full", n, t)))
    assert parts["visual_kl"] == pytest.approx(visual, abs=1e-6)
    assert parts["language_kl"] == pytest.approx(language, abs=1e-6)
    assert parts.get("reverse_kl", standard) == pytest.approx(standard, abs=1e-6)
    loss_of(method, batch).backward()
    watched = [leaf.grad for leaf in leaves.values()]
    other = replace(method, watch_both=False)
    plain, leaves = a_batch(other)
    loss_of(other, plain).backward()
    for ours, theirs in zip(watched, [leaf.grad for leaf in leaves.values()], strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)


def test_gated_language_kl_is_reported_where_nothing_is_preserved_and_learns_nothing():
    method = make("vgs", preserve=0.0)
    batch, leaves = a_batch(method)
    loss, parts, factors = logged(method, batch)
    d, blind = Dense(batch), "old.text_only"
    vds = {
        (n, t): kl(d.row("teacher.full", n, t), d.row("teacher.text_only", n, t))
        for n, t in d.places()
    }
    limit = quantile(list(vds.values()), 0.7)

    def gated_language_kl(n, t):
        return (vds[n, t] > limit) * kl(d.row(blind, n, t), d.row("teacher.text_only", n, t))

    expected = d.mean(gated_language_kl)
    assert parts["language_preservation"] == pytest.approx(expected, abs=1e-6)
    assert factors["language_preservation"] == 0.0
    assert loss == pytest.approx(0.41 * (parts["reverse_kl"] + 2 * parts["visual_kl"]), rel=1e-5)
    loss_of(method, batch).backward()
    assert leaves[blind].grad is None


def test_a_watched_reference_costs_a_pass_and_no_gradient():
    plain, watched = (
        make("grpo", reference_weight=0.0),
        make("grpo", reference_weight=0.0, watch_reference=True),
    )
    assert [p.name for p in watched.passes()] == [
        *(p.name for p in plain.passes()),
        "reference.full",
    ]
    batch, _ = a_batch(watched)
    d = Dense(batch)
    gap = d.token_mean(
        lambda n, t: k3_of(d.sampled("student.full", n, t), d.sampled("reference.full", n, t))
    )
    assert logged(watched, batch)[1]["reference_k3"] == pytest.approx(gap, abs=1e-6)
    assert logged(watched, batch)[0] == logged(plain, batch)[0]
    assert "reference_k3" not in logged(plain, batch)[1]


def test_a_term_of_coefficient_zero_never_enters_even_when_it_is_nan():
    batch, _ = a_batch(make("opd"))
    values, weights = (
        torch.ones(batch.responses.num_tokens, requires_grad=True),
        torch.ones(batch.responses.num_tokens),
    )
    learnt = LossTerm("learnt", values, weights, coefficient=2.0)
    nothing = LossTerm("nothing", values * math.nan, weights, coefficient=0.0)
    loss, parts = reduce_terms((learnt, nothing), batch.responses.counts())
    loss.backward()
    assert float(loss) == 2.0 * float(parts["learnt"])
    assert math.isnan(float(parts["nothing"]))
    assert torch.isfinite(values.grad).all()


def test_a_loss_of_watched_terms_alone_is_zero_and_has_no_gradient():
    batch, _ = a_batch(make("opd"))
    values = torch.ones(batch.responses.num_tokens, requires_grad=True)
    term = LossTerm("watched", values, torch.ones_like(values).detach(), minimised=False)
    loss, _ = reduce_terms((term,), batch.responses.counts())
    loss.backward()
    assert float(loss) == 0.0
    assert values.grad is None


def top_divergence(own, other):
    return jensen_shannon(*keep_top(own, other, 3), clip=0.05)


RULES = {
    "reverse_kl": (reverse_kl, 1),
    "forward_kl": (forward_kl, 1),
    "jensen_shannon": (jensen_shannon, 1),
    "skewed_forward_kl": (lambda *z: skewed_forward_kl(*z, skew=0.1), 1),
    "skewed_reverse_kl": (lambda *z: skewed_reverse_kl(*z, skew=0.1), 1),
    "top_jensen_shannon": (top_divergence, 1),
    "steered": (reverse_kl_to_steered, 3),
    "steered_on_support": (lambda *z: reverse_kl_to_steered(*z, support=0.1), 3),
    "contrastive": (lambda *z: kl_to_contrast(*z, strength=1.0, support=0.1, temperature=2.0), 2),
}


@pytest.mark.parametrize(
    ("name", "place"), [(name, i) for name, (_, n) in RULES.items() for i in range(1 + n)]
)
def test_a_row_of_nan_logits_is_never_lost_by_a_divergence(name, place):
    """For any pass. A comparison with NaN is false: the token would count as certain."""
    rule, others = RULES[name]
    generator = torch.Generator().manual_seed(0)
    readings = [torch.randn(3, 7, generator=generator) for _ in range(1 + others)]
    readings[place][1] = math.nan
    assert rule(*readings).isnan().tolist() == [False, True, False]
    head = Head(torch.eye(7))
    values = per_row(rule, readings[0], head, [States(z, head) for z in readings[1:]])
    assert values.isnan().tolist() == [False, True, False]


def test_signals_are_what_terms_see_so_that_watching_changes_none():
    method = make("vgs", watch_both=True)
    batch, _ = a_batch(method)
    signals = method.signals(passes_without_gradient(method, batch))
    plain = replace(method, watch_both=False).signals(passes_without_gradient(method, batch))
    assert all(torch.equal(signals[name], plain[name]) for name in plain)
    assert len(method.terms(cut_like_loop(method, batch, signals), signals)) == 4

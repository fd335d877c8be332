"""What must hold for every method in `METHODS`. A new entry is covered without a new test."""

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from batches import (
    cut_like_loop,
    cut_signals,
    loss_of,
    method_batch,
    passes_without_gradient,
    terms_of,
)

import vistill.objectives
from vistill.batch import LossTerm, Objective, ScoredBatch, reduce_terms
from vistill.objectives import METHODS
from vistill.objectives.shared import STUDENT, TEACHER

#: Each method as shipped, and with the options that change its passes or its routes.
VARIANTS = {name: method() for name, method in METHODS.items()} | {
    "opd_sampled": METHODS["opd"](estimator="sampled"),
    "kd_cross_entropy": METHODS["kd"](loss="cross_entropy"),
    "kd_reverse": METHODS["kd"](loss="reverse_kl"),
    "va_opd_distribution": METHODS["va_opd"](score="distribution"),
    "va_opd_sampled": METHODS["va_opd"](estimator="sampled"),
    "va_opd_stopped": METHODS["va_opd"](
        score="distribution", stop_at_misread=True, misread_threshold=-0.5
    ),
    "grounded_opd_kept": METHODS["grounded_opd"](
        normaliser="kept", rollout_weights=True, detection="either", watch_after=True
    ),
    "grounded_opd_decayed": METHODS["grounded_opd"](factor_after=0.3, detection="argmax"),
    "vgs_stopped": METHODS["vgs"](stop_at_misread=True, misread_threshold=-0.5),
    "vgs_merged_stopped": METHODS["vgs"](merged=True, stop_at_misread=True),
    "grpo_opd_stopped": METHODS["grpo_opd"](stop_at_misread=True),
    "grpo_vgs_stopped": METHODS["grpo_vgs"](stop_at_misread=True, misread_threshold=-0.2),
    "vgs_no_preservation": METHODS["vgs"](preserve=0.0),
    "vgs_adaptive": METHODS["vgs"](adaptive=True, scope="response"),
    "vgs_clamped": METHODS["vgs"](ratio_clamp=1.0, support=0.1, scope="micro_batch"),
    "vgs_language_printed": METHODS["vgs_language"](vision_preserved="printed", preserve=1.0),
    "visual_opsd_self_tail": METHODS["visual_opsd"](
        teacher="self", top_k=3, tail_bucket=True, clip_mode="token"
    ),
    "visual_opsd_fixed_noise": METHODS["visual_opsd"](
        teacher="fixed", thoughts="noise", clip_mode="none", top_k=None
    ),
    "grpo_response": METHODS["grpo"](averaging="response", updates=2),
    "papo_gradient": METHODS["papo"](
        masked_gradient=True, perception_share=0.5, perception_clip=0.5
    ),
    "papo_annealed": METHODS["papo"](annealed=True, averaging="response"),
    "vgs_watched": METHODS["vgs"](preserve=0.0, gamma=0.5, watch_both=True),
    "vgs_language_watched": METHODS["vgs_language"](watch_both=True),
    "grpo_watched": METHODS["grpo"](reference_weight=0.0, watch_reference=True),
    "distillm_reverse": METHODS["distillm"](direction="reverse"),
}
LENGTHS, GROUP = [3, 5, 2, 8, 1, 4, 6, 6], [0, 0, 1, 1, 2, 2, 3, 3]
#: Methods whose loss is a divergence of two passes, with knobs for which both see the same.
DIVERGENCES = [
    n for n in VARIANTS if not n.startswith(("sft", "grpo", "papo", "vppo", "vcsd", "kd_cross"))
]


def gradients(leaves):
    return {
        name: torch.zeros_like(x) if x.grad is None else x.grad.clone()
        for name, x in leaves.items()
    }


@pytest.mark.parametrize("name", list(VARIANTS))
def test_parts_of_any_rollouts_add_up_to_the_whole_batch(name):
    method = VARIANTS[name]
    batch, leaves = method_batch(method, LENGTHS, GROUP, seed=1)
    signals = method.signals(passes_without_gradient(method, batch))
    counts = batch.responses.counts()
    whole, _ = reduce_terms(terms_of(method, batch, signals), counts)
    whole.backward()
    expected, total = gradients(leaves), float(whole)
    every = range(len(LENGTHS))
    for split in (
        [[n] for n in every],
        [list(every[:3]), list(every[3:])],
        [list(every[::2]), list(every[1::2])],
    ):
        for leaf in leaves.values():
            leaf.grad = None
        summed = 0.0
        for part in split:
            keep = torch.zeros(len(LENGTHS), dtype=torch.bool)
            keep[part] = True
            micro, rows = batch.take_rollouts(keep)
            loss, _ = reduce_terms(
                terms_of(method, micro, cut_signals(signals, batch, rows, keep)), counts
            )
            loss.backward()
            summed += float(loss)
        assert summed == pytest.approx(total, abs=1e-6)
        for key, value in gradients(leaves).items():
            assert torch.allclose(value, expected[key], atol=1e-7), key


@pytest.mark.parametrize("name", list(VARIANTS))
def test_gradient_reaches_exactly_the_passes_that_asked_for_it(name):
    method = VARIANTS[name]
    batch, leaves = method_batch(method, LENGTHS, GROUP, seed=2)
    loss_of(method, batch).backward()
    asked = {p.name for p in method.passes() if p.gradient}
    moved = {key for key, value in gradients(leaves).items() if float(value.abs().sum()) > 0}
    assert moved == asked


@pytest.mark.parametrize("name", [n for n in VARIANTS if any(p.rows for p in VARIANTS[n].passes())])
def test_gradient_limited_to_rows_never_reaches_another_row(name):
    method = VARIANTS[name]
    batch, leaves = method_batch(method, LENGTHS, GROUP, seed=3)
    signals = method.signals(passes_without_gradient(method, batch))
    reduce_terms(terms_of(method, batch, signals), batch.responses.counts())[0].backward()
    for p in method.passes():
        if p.rows:
            reached = leaves[p.name].grad.abs().sum(-1) > 0
            assert reached.tolist() == signals[p.rows].tolist()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_contexts_give_zero_loss_and_zero_gradient(name):
    method = VARIANTS[name]
    batch, leaves = method_batch(method, LENGTHS, GROUP, seed=4)
    same = next(iter(leaves.values())).detach()
    with torch.no_grad():
        for leaf in leaves.values():
            leaf.copy_(same)
    ids = batch.responses.ids
    log_prob = torch.log_softmax(same, -1).gather(-1, ids[:, None])[:, 0]
    batch = replace(
        batch, passes={k: replace(v, log_prob=log_prob) for k, v in batch.passes.items()}
    )
    loss = loss_of(method, batch)
    loss.backward()
    assert float(loss) == pytest.approx(0, abs=1e-6)
    for value in gradients(leaves).values():
        assert float(value.abs().max()) < 1e-6


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "vgs_clamped"])
def test_permuting_siblings_and_prompts_changes_nothing(name):
    method = VARIANTS[name]
    batch, _ = method_batch(method, LENGTHS, GROUP, seed=5)
    ends = torch.tensor(LENGTHS).cumsum(0).tolist()
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    order = list(range(len(LENGTHS)))[::-1]
    rows = torch.tensor([i for n in order for i in range(*spans[n])])
    r = batch.responses
    moved = replace(
        r,
        ids=r.ids[rows],
        rollout=torch.repeat_interleave(torch.arange(len(order)), r.lengths[order]),
        group=3 - r.group[order],
        lengths=r.lengths[order],
        tie_noise=r.tie_noise[rows],
        reward=r.reward[order],
    )
    other = ScoredBatch(moved, {k: v.take(rows) for k, v in batch.passes.items()})
    assert float(loss_of(method, other)) == pytest.approx(float(loss_of(method, batch)), abs=2e-6)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_prompt_without_an_image_is_trained_on_without_a_visual_part(name):
    """Its passes with and without the image are the same; nothing visual remains in the loss."""
    method = VARIANTS[name]
    batch, _ = method_batch(method, [4, 5, 3, 4], [0, 0, 1, 1], seed=6, has_image=[False, True])
    for term in terms_of(method, batch):
        assert torch.isfinite(term.values[term.weights != 0]).all()
    signals = method.signals(passes_without_gradient(method, batch))
    if "visual_dependency" in signals:
        assert float(signals["visual_dependency"][:9].abs().max()) == 0
        assert not signals["gate"][:9].any()


@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_knob_is_stated_with_a_sentence_and_no_state_is_kept_in_the_method(name):
    method = VARIANTS[name]
    assert dataclasses.is_dataclass(method)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.new = 1


def test_an_objective_file_stays_short():
    folder = Path(vistill.objectives.__file__).parent
    files = [file for file in folder.glob("*.py") if file.name != "schema.py"]  # no objective
    sizes = {file.name: len(file.read_text().splitlines()) for file in files}
    assert {name: size for name, size in sizes.items() if size >= 160} == {}  # at 100 columns


def test_adding_a_method_takes_a_class_and_a_line():
    @dataclass(frozen=True)
    class Toy(Objective):
        def passes(self):
            return (STUDENT, TEACHER)

        def signals(self, batch):
            return {"token_weight": torch.ones(batch.responses.num_tokens)}

        def terms(self, batch, signals):
            return (
                LossTerm(
                    "toy",
                    batch["student.full"].hidden.sum(-1),
                    signals["token_weight"],
                    per="token",
                ),
            )

    method = Toy()
    assert isinstance(method, Objective)
    batch, leaves = method_batch(method, [2, 2], [0, 0])
    read = cut_like_loop(method, batch, method.signals(batch))
    reduce_terms(method.terms(read, method.signals(batch)), batch.responses.counts())[0].backward()
    assert leaves["student.full"].grad is not None
    assert leaves["teacher.full"].grad is None

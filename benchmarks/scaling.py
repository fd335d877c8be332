"""Curves of `make bench`: what grows with what. Loss peak against tokens, loss time against vocabulary, the price of a
rollout against its siblings, a step against the length of its responses.
"""

import dataclasses

import torch
from limits import (
    alternate,
    head_inputs,
    loss_floor_of,
    loss_peak,
    middle_model,
    one_loss,
    our_step,
)

from vistill.data.diagrams import diagram_prompts
from vistill.objectives import VAOPD
from vistill.training.models_of_run import Models
from vistill.types import Finish, Rollout, RolloutGroup


def curve(name, x, values, unit, reference):
    """One curve; x is what it is drawn against."""
    return {"name": name, "x": x, "values": [[a, round(float(b), 4)] for a, b in values], "unit": unit, "reference": reference}  # fmt: skip


def peak_against_tokens(vocabulary, tokens):
    """Peak memory of one loss beyond inputs and gradients: flat."""
    ours = [(n, loss_peak("ours", vocabulary, n)) for n in tokens]
    naive = loss_peak("naive", vocabulary, tokens[0])
    return curve(
        "loss_peak",
        "tokens",
        ours,
        "MiB",
        f"naive at {tokens[0]:,} tokens: {naive:.0f} MiB; V={vocabulary:,}",
    )


def time_against_vocabulary(vocabularies, tokens, repeats):
    """Loss time over its bare products: level."""
    values = []
    for vocabulary in vocabularies:
        states, heads, weights = head_inputs(vocabulary, tokens)
        floor = loss_floor_of(states, heads)
        found = alternate(
            {
                "loss": lambda s=states, h=heads, w=weights: one_loss("ours", s, h, w),
                "floor": floor,
            },
            repeats,
        )
        values.append((vocabulary, found["loss"] / found["floor"]))
    return curve("loss_over_floor", "vocabulary", values, "ratio", f"bare products, N={tokens:,}")


def step_of(models, siblings, tokens, apart=False):
    """A VA-OPD step after the rollouts: one prompt, so many siblings of so many tokens; apart each has its own prompt."""
    g = torch.Generator().manual_seed(0)
    draw = lambda: tuple(torch.randint(20, models.vocabulary, (tokens,), generator=g).tolist())
    prompt = diagram_prompts("train", 1, 0)[0]
    rollouts = tuple(Rollout(draw(), k, Finish.LENGTH) for k in range(siblings))
    groups = (
        [RolloutGroup(prompt, (r,)) for r in rollouts]
        if apart
        else [RolloutGroup(prompt, rollouts)]
    )
    return lambda: our_step(models, VAOPD(), groups)


def step_curves(siblings, lengths, repeats):
    """The price of a rollout against K (it must fall), and of a step against T, beside a row for each rollout."""
    student, teacher = middle_model(), middle_model().freeze()
    shared = Models(student, teacher, student.vocabulary_size)
    apart = [dataclasses.replace(vlm, share_prompts=False) for vlm in (student, teacher)]
    separate = Models(*apart, student.vocabulary_size)
    length = len(student.encode(diagram_prompts("train", 1, 0)[0]).ids)
    by_k = {
        k: alternate(
            {"ours": step_of(shared, k, length), "rows": step_of(separate, k, length, True)},
            repeats,
        )
        for k in siblings
    }
    one = by_k[siblings[0]]["ours"] / siblings[0]
    price = [(k, found["ours"] / k / one) for k, found in by_k.items()]
    rows = ", ".join(f"K={k}: {found['rows'] / k / one:.2f}" for k, found in by_k.items())
    by_t = {
        t: alternate(
            {"ours": step_of(shared, 4, t), "rows": step_of(separate, 4, t, True)}, repeats
        )
        for t in lengths
    }
    return [
        curve("step_per_rollout", "siblings", price, "ratio", f"our own at K={siblings[0]}, T=P={length}; a row a rollout: {rows}"),
        curve("step_over_rows", "response tokens", [(t, f["ours"] / f["rows"]) for t, f in by_t.items()], "ratio", f"a row a rollout, K=4, P={length}"),
    ]  # fmt: skip


def curves(repeats, quick):
    """All of them."""
    large, small = (
        ((4096, 16_384), (512, 1024))
        if quick
        else ((8192, 32_768, 151_936), (1024, 2048, 4096, 8192))
    )
    return [
        peak_against_tokens(large[1], small),
        time_against_vocabulary(large, 512 if quick else 1024, min(repeats, 3)),
        *step_curves(
            (1, 4) if quick else (1, 2, 4, 8),
            (64, 256) if quick else (64, 128, 256, 512),
            min(repeats, 3),
        ),
    ]

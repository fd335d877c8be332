"""Curves of `make bench`: how cost grows.

Peak memory of the loss against tokens, time of the loss against vocabulary, cost of a rollout
against its siblings, cost of a step against the length of its responses.
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
    """Describe one curve; x names its horizontal axis."""
    points = [[a, round(float(b), 4)] for a, b in values]
    return {"name": name, "x": x, "values": points, "unit": unit, "reference": reference}


def peak_against_tokens(vocabulary, tokens):
    """Measure the peak memory of one loss beyond inputs and gradients: it must not grow."""
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
    """Measure loss time over its bare products: it must not grow."""
    values = []
    for vocabulary in vocabularies:
        states, heads, weights = head_inputs(vocabulary, tokens)
        floor = loss_floor_of(states, heads)
        seconds = alternate(
            {
                "loss": lambda s=states, h=heads, w=weights: one_loss("ours", s, h, w),
                "floor": floor,
            },
            repeats,
        )
        values.append((vocabulary, seconds["loss"] / seconds["floor"]))
    return curve("loss_over_floor", "vocabulary", values, "ratio", f"bare products, N={tokens:,}")


def make_step(models, siblings, tokens, separate=False):
    """Return a function for a VA-OPD step after the rollouts, with one prompt and its siblings.

    With `separate` each rollout has its own prompt.
    """
    g = torch.Generator().manual_seed(0)
    ids = [
        tuple(torch.randint(20, models.vocabulary, (tokens,), generator=g).tolist())
        for _ in range(siblings)
    ]
    prompt = diagram_prompts("train", 1, 0)[0]
    rollouts = tuple(Rollout(x, k, Finish.LENGTH) for k, x in enumerate(ids))
    groups = (
        [RolloutGroup(prompt, (r,)) for r in rollouts]
        if separate
        else [RolloutGroup(prompt, rollouts)]
    )
    return lambda: our_step(models, VAOPD(), groups)


def step_curves(siblings, lengths, repeats):
    """Measure the cost of a rollout against K (it must fall), and of a step against T.

    Both are compared with one row per rollout.
    """
    student, teacher = middle_model(), middle_model().freeze()
    shared = Models(student, teacher, student.vocabulary_size)
    unshared = [dataclasses.replace(vlm, share_prompts=False) for vlm in (student, teacher)]
    separate = Models(*unshared, student.vocabulary_size)
    length = len(student.encode(diagram_prompts("train", 1, 0)[0]).ids)
    by_k = {
        k: alternate(
            {"ours": make_step(shared, k, length), "rows": make_step(separate, k, length, True)},
            repeats,
        )
        for k in siblings
    }
    one = by_k[siblings[0]]["ours"] / siblings[0]
    costs = [(k, seconds["ours"] / k / one) for k, seconds in by_k.items()]
    rows = ", ".join(f"K={k}: {seconds['rows'] / k / one:.2f}" for k, seconds in by_k.items())
    by_t = {
        t: alternate(
            {"ours": make_step(shared, 4, t), "rows": make_step(separate, 4, t, True)}, repeats
        )
        for t in lengths
    }
    return [
        curve(
            "step_per_rollout",
            "siblings",
            costs,
            "ratio",
            f"ours at K={siblings[0]}, T=P={length}; one row per rollout: {rows}",
        ),
        curve(
            "step_over_rows",
            "response tokens",
            [(t, seconds["ours"] / seconds["rows"]) for t, seconds in by_t.items()],
            "ratio",
            f"one row per rollout, K=4, P={length}",
        ),
    ]


def curves(repeats, quick):
    """Measure all curves."""
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

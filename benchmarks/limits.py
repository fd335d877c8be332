"""Rows of `make bench` that compare with physical limits.

The loss and the log-probability are compared with their bare matrix products, siblings that share a
prompt with separate rows, and our engine with `generate` at a real spread of lengths.

One thread, processor seconds, alternating order, best of several, everything in one process.
"""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import torch

from vistill.batch import reduce_terms
from vistill.data.diagrams import diagram_prompts
from vistill.functional.divergences import reverse_kl
from vistill.functional.heads import Head
from vistill.functional.rows import (
    RowRule,
    States,
    Target,
    apply_row_rules,
    log_prob_from_hidden,
    per_row,
    reverse_kl_from_hidden,
)
from vistill.functional.targets import reverse_kl_to_steered
from vistill.models.scoring import EncodedGroup, all_responses, open_reading
from vistill.models.tiny import TinySize, build_tiny
from vistill.rollouts.engine import RolloutRequest, Sampling
from vistill.rollouts.hf import HFEngine
from vistill.rollouts.shared import SharedEngine
from vistill.studies.make_tiny_models import tiny_tokenizer
from vistill.training.step_inputs import (
    encode_step,
    flatten_responses,
    parts_with_gradient,
    score_without_gradient,
)

TOKENS, WIDTHS = 2048, (256, 512)
FLOOR_ROWS = 512


def alternate(functions, repeats):
    """Run the functions in turn; return the best processor seconds of each."""
    times = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.process_time()
            function()
            times[name].append(time.process_time() - start)
    return {name: min(values) for name, values in times.items()}


def head_inputs(vocabulary, tokens=TOKENS):
    """Make random states and heads of a student and a teacher."""
    g = torch.Generator().manual_seed(0)
    states = [torch.randn(tokens, width, generator=g) for width in WIDTHS]
    heads = [torch.randn(vocabulary, width, generator=g) * 0.05 for width in WIDTHS]
    return states, heads, torch.rand(tokens, generator=g)


def one_loss(kind, states, heads, weights):
    """Compute reverse KL with gradients: our way, or autograd on all logits at once."""
    h, w = states[0].clone().requires_grad_(), heads[0].requires_grad_()
    w.grad = None
    if kind == "ours":
        values = per_row(reverse_kl, h, Head(w), [States(states[1], Head(heads[1]))], weights)
    else:
        with torch.no_grad():
            log_q = torch.log_softmax(states[1] @ heads[1].T, -1)
        log_p = torch.log_softmax(h @ w.T, -1)
        values = (log_p.exp() * (log_p - log_q)).sum(-1)
    (weights * values).sum().backward()


def loss_floor_of(states, heads):
    """Return a function with only the matrix products that a loss with gradients needs."""
    (hs, ht), (ws, wt) = states, heads
    vocabulary, detached = len(ws), ws.detach()
    a, b = torch.empty(FLOOR_ROWS, vocabulary), torch.empty(FLOOR_ROWS, vocabulary)
    dh, dw = torch.empty(FLOOR_ROWS, WIDTHS[0]), torch.zeros(vocabulary, WIDTHS[0])

    @torch.no_grad()
    def floor():
        for s, t in zip(hs.split(FLOOR_ROWS), ht.split(FLOOR_ROWS), strict=True):
            torch.mm(s, detached.T, out=a)
            torch.mm(t, wt.T, out=b)
            torch.mm(a, detached, out=dh)
            torch.addmm(dw, a.T, s, out=dw)

    return floor


def loss_rows(vocabulary, repeats):
    """Measure loss and sampled log-probability over their bare matrix products."""
    (hs, ht), (ws, wt), weights = head_inputs(vocabulary)
    a, ids = torch.empty(FLOOR_ROWS, vocabulary), torch.arange(TOKENS) % vocabulary
    loss_floor = loss_floor_of((hs, ht), (ws, wt))

    @torch.no_grad()
    def log_prob_floor():
        for t in ht.split(FLOOR_ROWS):
            torch.mm(t, wt.T, out=a)

    @torch.no_grad()
    def log_prob():
        log_prob_from_hidden(ht, Head(wt), ids)

    seconds = alternate(
        {
            "loss": lambda: one_loss("ours", [hs, ht], [ws, wt], weights),
            "loss_floor": loss_floor,
            "log_prob": log_prob,
            "log_prob_floor": log_prob_floor,
        },
        repeats,
    )
    return seconds["loss"] / seconds["loss_floor"], seconds["log_prob"] / seconds["log_prob_floor"]


def vgs_inputs(vocabulary, tokens):
    """Make states of student and teacher, each with and without the image, and their heads."""
    (hs, ht), (ws, wt), weights = head_inputs(vocabulary, tokens)
    g = torch.Generator().manual_seed(1)
    without_image = [torch.randn(tokens, width, generator=g) for width in WIDTHS]
    return (hs, ht, *without_image), (ws, wt), weights


def vgs_loss(kind, inputs, gamma=2.0):
    """Compute standard and steering term of VGS with gradients.

    Kinds: ours, ours merged, or autograd on all logits at once.
    """
    (hs, ht, hx, htx), (ws, wt), weights = inputs
    h, w = hs.clone().requires_grad_(), ws.requires_grad_()
    w.grad, student, teacher = None, Head(w), Head(wt)
    if kind == "merged":
        share = gamma / (1 + gamma)
        targets = [
            Target(1.0, ht - share * htx, teacher),
            Target(1.0, share * hx, student.detached()),
        ]
        loss = (
            weights
            * (1 + gamma)
            * reverse_kl_from_hidden(h, student, targets, weights * (1 + gamma))
        ).sum()
    elif kind == "ours":
        others = [States(ht, teacher), States(htx, teacher), States(hx, student.detached())]
        rules = [
            RowRule(reverse_kl, (0,), weights),
            RowRule(reverse_kl_to_steered, (0, 1, 2), gamma * weights),
        ]
        standard, visual = apply_row_rules(h, student, others, rules)
        loss = (weights * (standard + gamma * visual)).sum()
    else:
        with torch.no_grad():
            z = [ht @ wt.T, htx @ wt.T, hx @ ws.T]
        logits = h @ w.T
        loss = (
            weights * (reverse_kl(logits, z[0]) + gamma * reverse_kl_to_steered(logits, *z))
        ).sum()
    loss.backward()


def vgs_rows(row, repeats, vocabulary, tokens=TOKENS // 2):
    """Measure time and peak memory of VGS's two terms over autograd on all logits."""
    inputs = vgs_inputs(vocabulary, tokens)
    seconds = alternate(
        {k: lambda k=k: vgs_loss(k, inputs) for k in ("ours", "merged", "naive")}, repeats
    )
    peaks = {k: loss_peak(f"vgs_{k}", vocabulary, tokens) for k in ("ours", "merged", "naive")}
    reference = f"autograd on all logits, N={tokens}, V={vocabulary}"
    return [
        row("vgs_loss_over_naive", seconds["ours"] / seconds["naive"], "ratio", reference),
        row(
            "vgs_merged_over_naive",
            seconds["merged"] / seconds["naive"],
            "ratio",
            f"{reference}; one teacher projection",
        ),
        row(
            "vgs_peak_over_naive",
            peaks["ours"] / peaks["naive"],
            "ratio",
            f"naive {peaks['naive']:.0f} MiB; {reference}",
        ),
        row("vgs_merged_peak_over_naive", peaks["merged"] / peaks["naive"], "ratio", reference),
    ]


def loss_peak(kind, vocabulary, tokens=TOKENS):
    """Measure the peak memory of one loss beyond inputs and gradients, MiB, in a fresh process."""
    command = [sys.executable, __file__, kind, str(vocabulary), str(tokens)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def one_peak(kind, vocabulary, tokens):
    """Print the peak resident memory above inputs and gradients.

    Writing 5 to clear_refs makes Linux reset the peak.
    """
    vgs = kind.startswith("vgs_")
    states, heads, weights = (vgs_inputs if vgs else head_inputs)(vocabulary, tokens)
    kind = kind.removeprefix("vgs_")

    def compute_loss(*inputs):
        if vgs:
            vgs_loss(kind, inputs)
        else:
            one_loss(kind, *inputs)

    compute_loss([s[:8] for s in states], [h[:64].clone() for h in heads], weights[:8])
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    compute_loss(states, heads, weights)
    gradients = 4 * (states[0].numel() + heads[0].numel()) / 2**20
    print(memory("VmHWM") - before - gradients)


def memory(name):
    """Read one line of this process's memory status, MiB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) / 1024


#: A model of some millions of weights; its prompts are about as long as its responses.
MIDDLE_SIZE = TinySize(
    hidden=256,
    layers=4,
    heads=4,
    feed_forward=768,
    vision_hidden=256,
    vision_depth=4,
    vision_heads=4,
    vision_feed_forward=512,
    side=256,
    min_pixels=256 * 256,
    max_pixels=256 * 256,
)


def middle_model():
    """Build a model of some millions of weights; its prompts are about as long as its responses."""
    return build_tiny(MIDDLE_SIZE, tiny_tokenizer(), 0)


def our_step(models, objective, groups):
    """Run everything after the rollouts; the gradient stays in the student."""
    models.student.model.zero_grad()
    responses = flatten_responses(groups, 0, 0, models.student.device)
    inputs = encode_step(models, groups, objective.passes(), responses)
    batch = score_without_gradient(models, inputs, objective.passes())
    for micro, cut in parts_with_gradient(
        models, inputs, batch, objective.passes(), objective.signals(batch)
    ):
        loss, _ = reduce_terms(objective.terms(micro, cut), responses.counts())
        loss.backward()


def sharing_row(vlm, repeats, siblings=4):
    """Measure forward and backward of separate rows, each with its own image, over ours; T = P."""
    encoded = vlm.encode(diagram_prompts("train", 1, 0)[0])
    length = len(encoded.ids)
    g = torch.Generator().manual_seed(0)
    responses = tuple(
        tuple(torch.randint(20, vlm.vocabulary_size, (length,), generator=g).tolist())
        for _ in range(siblings)
    )
    unshared = dataclasses.replace(vlm, share_prompts=False)

    def separate():
        vlm.model.zero_grad()
        for response in responses:
            reading = open_reading(unshared, [EncodedGroup(encoded, (response,))])
            reading.read([(0, 0)]).sum().backward()

    def shared():
        vlm.model.zero_grad()
        group = [EncodedGroup(encoded, responses)]
        reading = open_reading(vlm, group, cut=True)
        for place in all_responses(group):
            reading.read([place]).sum().backward()
        reading.close()

    seconds = alternate({"separate": separate, "shared": shared}, repeats)
    return seconds["separate"] / seconds["shared"]


def rollout_row(vlm, repeats, rows=64, longest=256):
    """Measure tokens per second of our engine over `generate`.

    A likely end-of-turn token gives lengths with the spread of a real model.
    """
    with torch.no_grad():
        vlm.model.get_output_embeddings().weight[vlm.stop_ids[0]] *= 1.9
    requests = [
        RolloutRequest(p.id, vlm.encode(p), tuple(range(4)))
        for p in diagram_prompts("train", rows // 4, 1)
    ]
    sampling = Sampling(0, 0, 1.0, 1.0, longest)
    rollouts = {}

    def generate(name, engine):
        rollouts[name] = engine.generate(requests, sampling)

    seconds = alternate(
        {
            "ours": lambda: generate("ours", SharedEngine(vlm)),
            "hf": lambda: generate("hf", HFEngine(vlm)),
        },
        repeats,
    )
    lengths = sorted(len(r.ids) for group in rollouts["ours"] for r in group)
    spread = f"{rows} rows, lengths {lengths[0]} to {lengths[-1]}, mean {sum(lengths) / rows:.0f}"
    return seconds["hf"] / seconds["ours"], rollouts["ours"] == rollouts["hf"], spread


def limit_rows(row, repeats, vocabulary=151_936):
    """Measure all rows of this file."""
    loss, log_prob = loss_rows(vocabulary, min(repeats, 3))
    ours, naive = (loss_peak(kind, vocabulary) for kind in ("ours", "naive"))
    steered = vgs_rows(row, min(repeats, 3), vocabulary)
    vlm = middle_model()
    speedup, (rollout, same, spread) = sharing_row(vlm, repeats), rollout_row(vlm, min(repeats, 3))
    size = f"N={TOKENS}, V={vocabulary}"
    return [
        row("loss_time_over_floor", loss, "ratio", f"bare products, {size}"),
        row("logprob_time_over_floor", log_prob, "ratio", f"bare product, {size}"),
        row(
            "loss_peak_over_naive",
            ours / naive,
            "ratio",
            f"naive {naive:.0f} MiB, ours {ours:.0f} MiB, {size}",
        ),
        *steered,
        row(
            "shared_prefix_speedup",
            speedup,
            "ratio",
            "separate rows, forward and backward, K=4, T=P",
        ),
        row("rollout_over_generate", rollout, "ratio", f"{spread}; same responses: {same}"),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    one_peak(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

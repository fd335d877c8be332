"""Every method against a dense float64 reference written from the specification.

The reference uses no function of the package: distributions are lists, sums are loops over tokens.
"""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from batches import loss_of, method_batch
from dense import kl, log_softmax

from vistill.batch import ScoredBatch
from vistill.objectives import METHODS

LENGTHS, GROUP = [4, 7, 1, 5, 12, 3], [0, 0, 0, 1, 1, 1]


class Dense:
    """A batch as lists: `rollouts[n]` has ids and, per pass, the log-distribution of each token."""

    def __init__(self, batch: ScoredBatch):
        r, start = batch.responses, 0
        self.group, self.reward = r.group.tolist(), r.reward.double().tolist()
        self.rollouts = []
        for length in r.lengths.tolist():
            rows = slice(start, start + length)
            item = {
                name: [log_softmax(row) for row in s.hidden[rows].double().tolist()]
                for name, s in batch.passes.items()
            }
            self.rollouts.append({"ids": r.ids[rows].tolist(), **item})
            start += length
        self.memory, self.progress = batch.memory, batch.progress

    def mean(self, value):
        """Tokens per response, responses per prompt, prompts: `value(n, t)`."""
        groups = sorted(set(self.group))
        total = 0.0
        for g in groups:
            members = [n for n, h in enumerate(self.group) if h == g]
            total += sum(self.response_mean(n, value) for n in members) / len(members)
        return total / len(groups)

    def response_mean(self, n, value):
        length = len(self.rollouts[n]["ids"])
        return sum(value(n, t) for t in range(length)) / length

    def token_mean(self, value):
        places = self.places()
        return sum(value(n, t) for n, t in places) / len(places)

    def places(self):
        return [(n, t) for n, r in enumerate(self.rollouts) for t in range(len(r["ids"]))]

    def row(self, name, n, t):
        return self.rollouts[n][name][t]

    def sampled(self, name, n, t):
        return self.row(name, n, t)[self.rollouts[n]["ids"][t]]

    def advantage(self, n):
        same = [self.reward[m] for m, g in enumerate(self.group) if g == self.group[n]]
        mean = sum(same) / len(same)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in same) / (len(same) - 1))
        return (self.reward[n] - mean) / (deviation + 1e-6)


def quantile(values, share):
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def normalised(row):
    return log_softmax(row)


def steered(d, n, t, blind="student.text_only", clamp=None):
    rows = zip(
        d.row(blind, n, t),
        d.row("teacher.full", n, t),
        d.row("teacher.text_only", n, t),
        strict=True,
    )

    def ratio(q, qx):
        return q - qx if clamp is None else max(-clamp, min(clamp, q - qx))

    return normalised([px + ratio(q, qx) for px, q, qx in rows])


def vgs_reference(d, m):
    vds = {
        (n, t): kl(d.row("teacher.full", n, t), d.row("teacher.text_only", n, t))
        for n, t in d.places()
    }
    pools = {
        (n, t): [v for (k, _), v in vds.items() if m.scope == "batch" or k == n] for n, t in vds
    }
    blind = m.blind().name

    def low_advantage(n, t):
        signed = signed_advantage(d, n, t, "teacher.text_only")
        return m.stop_at_misread and signed < m.misread_threshold

    def value(n, t):
        if t > first_misread(d, n, low_advantage):
            return 0.0
        high, low = quantile(pools[n, t], m.quantile), quantile(pools[n, t], m.low_quantile)
        p, q = d.row("student.full", n, t), d.row("teacher.full", n, t)
        gamma = m.gamma
        if m.adaptive:
            gamma = 0.0 if vds[n, t] <= low else gamma / 2 if vds[n, t] <= high else gamma
        gated = vds[n, t] > high
        to_target = kl(p, steered(d, n, t, blind, m.ratio_clamp))
        language = kl(d.row(blind, n, t), d.row("teacher.text_only", n, t))
        if "language" in type(m).__name__.lower():
            printed = kl(d.row(blind, n, t), steered(d, n, t, blind))
            kept = printed if m.vision_preserved == "printed" else to_target
            return kl(p, q) + gamma * language + m.preserve * gated * kept
        return kl(p, q) + gamma * to_target + m.preserve * gated * language

    eta = {"constant": m.eta_value, "none": 1.0, "dynamic": 1.0}[m.eta]
    return eta * d.mean(value)


def jsd_rows(p_t, p_s, beta, clip=None, mode="entry"):
    entries = []
    for a, b in zip(p_t, p_s, strict=True):
        m = math.log(beta * math.exp(a) + (1 - beta) * math.exp(b))
        e = beta * math.exp(a) * (a - m) + (1 - beta) * math.exp(b) * (b - m)
        entries.append(min(e, clip) if clip is not None and mode == "entry" else e)
    return min(sum(entries), clip) if clip is not None and mode == "token" else sum(entries)


def visual_opsd_reference(d, m):
    teacher = m.privileged().name

    def value(n, t):
        q, p = d.row(teacher, n, t), d.row("student.full", n, t)
        if m.top_k is not None and m.top_k < len(q):
            best = sorted(range(len(q)), key=lambda a: -q[a])[: m.top_k]
            rest = [a for a in range(len(q)) if a not in best]

            def top(row):
                tail = [math.log(sum(math.exp(row[a]) for a in rest))] if m.tail_bucket else []
                return normalised([row[a] for a in best] + tail)

            q, p = top(q), top(p)
        return jsd_rows(q, p, m.beta, None if m.clip_mode == "none" else m.clip, m.clip_mode)

    return d.mean(value)


def mean_of(d, m):
    return d.token_mean if m.averaging == "token" else d.mean


def k3_of(own, other):
    diff = max(-20.0, min(20.0, other - own))
    return max(-10.0, min(10.0, math.exp(diff) - diff - 1))


def surrogate(d, m, n, t, advantage):
    old = d.sampled("old.full", n, t) if m.updates > 1 else d.sampled("student.full", n, t)
    ratio = math.exp(max(-20, min(20, d.sampled("student.full", n, t) - old)))
    inner = min(ratio * advantage, max(1 - m.clip_low, min(1 + m.clip_high, ratio)) * advantage)
    return -(max(inner, m.dual_clip * advantage) if advantage < 0 else inner)


def grpo_reference(d, m, advantage=None):
    advantage = advantage or (lambda n, t: d.advantage(n))
    loss = mean_of(d, m)(lambda n, t: surrogate(d, m, n, t, advantage(n, t)))
    if m.reference_weight > 0:
        loss += m.reference_weight * mean_of(d, m)(
            lambda n, t: k3_of(d.sampled("student.full", n, t), d.sampled("reference.full", n, t))
        )
    return loss


def papo_reference(d, m):
    masked = m.masked().name
    left = 1 - d.progress if m.annealed else 1.0
    full_log_prob = partial(d.sampled, "student.full")
    masked_log_prob = partial(d.sampled, masked)
    k = {(n, t): k3_of(full_log_prob(n, t), masked_log_prob(n, t)) for n, t in d.places()}
    kept = set(k)
    if m.perception_share < 1:
        kept = set()
        for n, r in enumerate(d.rollouts):
            size = max(1, math.ceil(m.perception_share * len(r["ids"]) - 1e-9))
            kept |= set(
                sorted(((n, t) for t in range(len(r["ids"]))), key=lambda place: -k[place])[:size]
            )
    cap = math.inf if m.perception_clip is None else m.perception_clip
    average = mean_of(d, m)
    loss = grpo_reference(d, m)
    loss -= (
        left
        * m.perception_weight
        * average(lambda n, t: min(k[n, t], cap) if (n, t) in kept else 0.0)
    )
    loss += left * m.entropy_weight * average(lambda n, t: -full_log_prob(n, t))
    return loss + left * m.masked_entropy_weight * average(lambda n, t: -masked_log_prob(n, t))


def vppo_reference(d, m):
    dep = {
        (n, t): k3_of(d.sampled("old.full", n, t), d.sampled("old.masked", n, t))
        for n, t in d.places()
    }
    means = [d.response_mean(n, lambda n, t: dep[n, t]) for n in range(len(d.rollouts))]
    share = [(x - min(means)) / (max(means) - min(means)) for x in means]
    slope = (1 - m.scale_low) / (sum(share) / len(share))
    scale = [m.scale_low + slope * s for s in share]
    kept = set()
    for n, r in enumerate(d.rollouts):
        size = max(1, math.ceil(m.token_share * len(r["ids"]) - 1e-9))
        kept |= set(
            sorted(((n, t) for t in range(len(r["ids"]))), key=lambda place: -dep[place])[:size]
        )
    loss = grpo_reference(d, m, lambda n, t: scale[n] * d.advantage(n) if (n, t) in kept else 0.0)
    return loss + m.entropy_weight * mean_of(d, m)(lambda n, t: -d.sampled("student.full", n, t))


def opd_reference(d, m):
    if getattr(m, "estimator", "full") == "full":
        return d.mean(lambda n, t: kl(d.row("student.full", n, t), d.row("teacher.full", n, t)))
    own, other = (
        lambda n, t, name=name: d.sampled(name, n, t) for name in ("student.full", "teacher.full")
    )
    return d.mean(lambda n, t: (own(n, t) - other(n, t)) * own(n, t))


def kd_reference(d, m):
    own, other = "student.full", "teacher.full"
    if m.loss == "cross_entropy":
        return d.mean(lambda n, t: -d.sampled(own, n, t))
    pair = (other, own) if m.loss == "forward_kl" else (own, other)
    return d.mean(lambda n, t: kl(d.row(pair[0], n, t), d.row(pair[1], n, t)))


def va_opd_reference(d, m):
    """Rollouts weighed by the softmax of their standardised mean advantage, tokens by group."""
    full, degraded = "teacher.full", "teacher.pixelated"
    advantage = [
        [max(0.0, d.sampled(full, n, t) - d.sampled(degraded, n, t)) for t in range(len(r["ids"]))]
        for n, r in enumerate(d.rollouts)
    ]
    total = 0.0
    for g in sorted(set(d.group)):
        members = [n for n, h in enumerate(d.group) if h == g]
        means = [sum(advantage[n]) / len(advantage[n]) for n in members]
        centre = sum(means) / len(means)
        spread = math.sqrt(sum((x - centre) ** 2 for x in means) / len(means))
        powers = [math.exp((x - centre) / (spread + 1e-6) / m.rollout_temperature) for x in means]
        for n, power in zip(members, powers, strict=True):
            length = len(advantage[n])
            count = max(1, math.ceil(m.high_share * length - 1e-9))
            high = sorted(range(length), key=lambda t, n=n: (-advantage[n][t], t))[:count]
            for t in range(length):
                share = m.high_weight / count if t in high else 0.0
                if count == length:
                    share = 1 / length
                elif t not in high:
                    share = (1 - m.high_weight) / (length - count)
                value = kl(d.row("student.full", n, t), d.row(full, n, t))
                if getattr(m, "estimator", "full") == "sampled":
                    own = d.sampled("student.full", n, t)
                    value = (own - d.sampled(full, n, t)) * own
                stop = first_misread(
                    d, n, lambda n, t: signed_advantage(d, n, t) < m.misread_threshold
                )
                value *= not (m.stop_at_misread and t > stop)
                total += power / sum(powers) * share * value
    return total / len(set(d.group))


def first_misread(d, n, marked):
    """Index of the first marked token of a rollout; its length if none is."""
    length = len(d.rollouts[n]["ids"])
    return next((t for t in range(length) if marked(n, t)), length)


def signed_advantage(d, n, t, degraded="teacher.pixelated"):
    return d.sampled("teacher.full", n, t) - d.sampled(degraded, n, t)


def is_misread(d, m, n, t):
    full = d.row("teacher.full", n, t)
    low = signed_advantage(d, n, t) < m.misread_threshold
    other = d.rollouts[n]["ids"][t] != full.index(max(full))
    other = other and kl(full, d.row("teacher.pixelated", n, t)) > m.critical_nats
    return {"advantage": low, "argmax": other, "both": low and other, "either": low or other}[
        m.detection
    ]


def grounded_opd_reference(d, m):
    total = 0.0
    for g in sorted(set(d.group)):
        members = [n for n, h in enumerate(d.group) if h == g]
        weights = [1 / len(members)] * len(members)
        if m.rollout_weights:
            means = [d.response_mean(n, lambda n, t: max(0.0, signed_advantage(d, n, t)))
                     for n in members]  # fmt: skip
            centre = sum(means) / len(means)
            spread = math.sqrt(sum((x - centre) ** 2 for x in means) / len(means))
            powers = [
                math.exp((x - centre) / (spread + 1e-6) / m.rollout_temperature) for x in means
            ]
            weights = [x / sum(powers) for x in powers]
        for n, w in zip(members, weights, strict=True):
            length = len(d.rollouts[n]["ids"])
            stop = first_misread(d, n, partial(is_misread, d, m))
            factors = [1.0 if t <= stop else m.factor_after for t in range(length)]
            divisor = length if m.normaliser == "response" else sum(factors)
            for t in range(length):
                value = kl(d.row("student.full", n, t), d.row("teacher.full", n, t))
                total += w * factors[t] / divisor * value
    return total / len(set(d.group))


def hybrid_reference(d, m):
    references = {"OPD": opd_reference, "VGS": vgs_reference, "VAOPD": va_opd_reference,
                  "GroundedOPD": grounded_opd_reference}  # fmt: skip
    second = m.distillation()
    other = references[type(second).__name__](d, second)
    return (1 - m.distillation_share) * grpo_reference(d, m) + m.distillation_share * other


def distillm_reference(d, m):
    def value(n, t):
        p, q = d.row("student.full", n, t), d.row("teacher.full", n, t)
        first, second = (q, p) if m.direction == "forward" else (p, q)
        mix = [
            math.log(m.skew * math.exp(a) + (1 - m.skew) * math.exp(b))
            for a, b in zip(first, second, strict=True)
        ]
        return kl(first, mix)

    return d.mean(value)


def vcsd_reference(d, m):
    def value(n, t):
        p, q, black = (d.row(name, n, t) for name in ("student.full", "ema.full", "ema.black"))
        keep = [a for a in range(len(q)) if math.exp(q[a]) >= m.support * math.exp(max(q))]
        target = normalised(
            [((1 + m.strength) * q[a] - m.strength * black[a]) / m.temperature for a in keep]
        )
        flat = normalised([x / m.temperature for x in p])
        return kl(target, [flat[a] for a in keep])

    return d.mean(value)


def eopd_reference(d, m):
    def value(n, t):
        p, q = d.row("student.full", n, t), d.row("teacher.full", n, t)
        out = (d.sampled("student.full", n, t) - d.sampled("teacher.full", n, t)) * d.sampled(
            "student.full", n, t
        )
        if -sum(math.exp(x) * x for x in q) > m.entropy_above:
            best = sorted(range(len(q)), key=lambda a: -q[a])[: m.top_k]
            out += m.forward_weight * kl(
                normalised([q[a] for a in best]), normalised([p[a] for a in best])
            )
        return out

    return d.mean(value)


def iw_opd_reference(d, m):
    gap = {
        (n, t): abs(d.sampled("teacher.full", n, t) - d.sampled("old.full", n, t))
        for n, t in d.places()
    }

    def value(n, t):
        total = sum(v for (k, _), v in gap.items() if k == n)
        before = sum(v for (k, s), v in gap.items() if k == n and s < t)
        exact = kl(d.row("student.full", n, t), d.row("teacher.full", n, t))
        own = d.sampled("student.full", n, t)
        value = exact if m.estimator == "full" else (own - d.sampled("teacher.full", n, t)) * own
        return (1 + m.strength * (1 - before / total)) * value

    return d.mean(value)


def make(name, **knobs):
    return METHODS[name](**knobs)


STOP = {"stop_at_misread": True, "misread_threshold": -0.5}
CASES = {
    "sft": (make("sft"), lambda d, m: d.token_mean(lambda n, t: -d.sampled("student.full", n, t))),
    "opd": (make("opd"), opd_reference),
    "opd_sampled": (make("opd", estimator="sampled"), opd_reference),
    "kd": (make("kd"), kd_reference),
    "kd_cross_entropy": (make("kd", loss="cross_entropy"), kd_reference),
    "kd_reverse": (make("kd", loss="reverse_kl"), kd_reference),
    "vgs": (make("vgs"), vgs_reference),
    "vgs_strong_preservation": (make("vgs", preserve=1.0, eta="none", quantile=0.5), vgs_reference),
    "vgs_no_preservation": (make("vgs", preserve=0.0), vgs_reference),
    "vgs_adaptive": (make("vgs", adaptive=True, scope="response", preserve=1.0), vgs_reference),
    "vgs_clamped": (make("vgs", ratio_clamp=0.5), vgs_reference),
    "vgs_language": (make("vgs_language", preserve=1.0), vgs_reference),
    "vgs_language_printed": (
        make("vgs_language", preserve=1.0, vision_preserved="printed"), vgs_reference
    ),
    "vgs_stopped": (make("vgs", preserve=1.0, **STOP), vgs_reference),
    "vgs_language_stopped": (make("vgs_language", preserve=1.0, **STOP), vgs_reference),
    "grounded_opd": (make("grounded_opd", misread_threshold=-0.5), grounded_opd_reference),
    "grounded_opd_argmax": (
        make("grounded_opd", detection="argmax", critical_nats=0.3), grounded_opd_reference
    ),
    "grounded_opd_both": (
        make(
            "grounded_opd", detection="both", critical_nats=0.1, misread_threshold=-0.2,
            normaliser="kept",
        ),
        grounded_opd_reference,
    ),
    "grounded_opd_either": (
        make(
            "grounded_opd", detection="either", factor_after=0.3, normaliser="kept",
            rollout_weights=True, rollout_temperature=0.5,
        ),
        grounded_opd_reference,
    ),
    "visual_opsd": (make("visual_opsd"), visual_opsd_reference),
    "visual_opsd_top_k": (make("visual_opsd", top_k=3), visual_opsd_reference),
    "visual_opsd_tail": (
        make("visual_opsd", top_k=3, tail_bucket=True, clip_mode="none"), visual_opsd_reference
    ),
    "visual_opsd_token": (
        make("visual_opsd", clip_mode="token", beta=0.3, clip=0.2), visual_opsd_reference
    ),
    "s2vopd": (
        make("s2vopd"),
        lambda d, m: d.mean(
            lambda n, t: jsd_rows(d.row("ema.full", n, t), d.row("student.degraded", n, t), m.beta)
        ),
    ),
    "gkd": (
        make("gkd", beta=0.3),
        lambda d, m: d.mean(
            lambda n, t: jsd_rows(d.row("teacher.full", n, t), d.row("student.full", n, t), m.beta)
        ),
    ),
    "distillm": (make("distillm"), distillm_reference),
    "distillm_reverse": (make("distillm", direction="reverse", skew=0.3), distillm_reference),
    "vcsd": (make("vcsd"), vcsd_reference),
    "eopd": (make("eopd", entropy_above=1.5, top_k=4), eopd_reference),
    "iw_opd": (make("iw_opd"), iw_opd_reference),
    "iw_opd_full": (make("iw_opd", estimator="full"), iw_opd_reference),
    "grpo": (make("grpo"), grpo_reference),
    "grpo_response": (make("grpo", averaging="response", reference_weight=0.5), grpo_reference),
    "grpo_off_policy": (make("grpo", updates=2), grpo_reference),
    "papo": (make("papo"), papo_reference),
    "papo_options": (
        make(
            "papo", perception_weight=0.5, perception_share=0.4, perception_clip=0.3,
            masked_gradient=True, annealed=True,
        ),
        papo_reference,
    ),
    "vppo": (make("vppo"), vppo_reference),
    "grpo_opd": (make("grpo_opd"), hybrid_reference),
    "grpo_vgs": (make("grpo_vgs", preserve=1.0), hybrid_reference),
    "grpo_va_opd": (make("grpo_va_opd"), hybrid_reference),
    "grpo_va_opd_knobs": (
        make(
            "grpo_va_opd", high_share=0.4, high_weight=0.8, rollout_temperature=0.5,
            distillation_share=0.6, updates=2,
        ),
        hybrid_reference,
    ),
    "grpo_opd_stopped": (make("grpo_opd", **STOP), hybrid_reference),
    "grpo_vgs_stopped": (make("grpo_vgs", preserve=1.0, **STOP), hybrid_reference),
    "grpo_va_opd_stopped": (make("grpo_va_opd", **STOP), hybrid_reference),
    "va_opd_stopped": (make("va_opd", **STOP), va_opd_reference),
    "va_opd_sampled": (make("va_opd", estimator="sampled"), va_opd_reference),
    "va_opd_sampled_stopped": (make("va_opd", estimator="sampled", **STOP), va_opd_reference),
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", list(CASES))
def test_a_method_agrees_with_its_definition(name, seed):
    method, reference = CASES[name]
    batch, _ = method_batch(method, LENGTHS, GROUP, seed=seed, spread=0.7)
    batch = ScoredBatch(batch.responses, batch.passes, {}, 0.25)
    assert float(loss_of(method, batch)) == pytest.approx(reference(Dense(batch), method), abs=1e-6)


def test_every_method_has_a_reference_here():
    assert {type(method) for method, _ in CASES.values()} == set(METHODS.values())


#: Methods whose gradient is not the slope of their value, because a factor of it is data.
SCORE_FUNCTION = (
    "opd_sampled",
    "va_opd_sampled",
    "va_opd_sampled_stopped",
    "iw_opd",
    "eopd",
    "grpo",
    "grpo_response",
    "papo",
    "papo_options",
    "vppo",
    "grpo_opd",
    "grpo_vgs",
    "grpo_va_opd",
    "grpo_va_opd_knobs",
    "grpo_opd_stopped",
    "grpo_vgs_stopped",
    "grpo_va_opd_stopped",
)


@pytest.mark.parametrize("name", [name for name in CASES if name not in SCORE_FUNCTION])
def test_the_gradient_of_every_trained_pass_is_that_of_the_definition(name):
    """Central differences of the float64 reference; q* and gates are constants there too."""
    method, reference = CASES[name]
    batch, leaves = method_batch(method, LENGTHS, GROUP, seed=3, spread=0.7)
    loss_of(method, batch).backward()
    leaf = leaves["student.degraded" if name == "s2vopd" else "student.full"]
    for r, v in ((0, 1), (5, 3), (12, 0), (20, 4)):
        values = []
        for eps in (1e-5, -1e-5):
            moved = leaf.detach().double()
            moved[r, v] += eps
            key = next(k for k, x in leaves.items() if x is leaf)
            passes = {**batch.passes, key: replace(batch.passes[key], hidden=moved)}
            values.append(reference(Dense(replace(batch, passes=passes)), method))
        assert float(leaf.grad[r, v]) == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-6)


def test_the_sampled_estimate_has_the_reverse_kls_gradient_as_its_mean():
    """Averaged over every token the student could have sampled, weighted by its probability."""
    full, sampled = METHODS["opd"](), METHODS["opd"](estimator="sampled")
    batch, leaves = method_batch(full, [1], [0], seed=4)
    loss_of(full, batch).backward()
    exact, probability = (
        leaves["student.full"].grad.clone(),
        torch.softmax(leaves["student.full"].detach()[0], -1),
    )
    mean = torch.zeros_like(exact)
    for token, p in enumerate(probability.tolist()):
        leaves["student.full"].grad = None
        log_prob = torch.log_softmax(leaves["teacher.full"].detach(), -1)[:, token]
        passes = {
            **batch.passes,
            "teacher.full": replace(batch.passes["teacher.full"], log_prob=log_prob),
        }
        chosen = replace(
            batch, passes=passes, responses=replace(batch.responses, ids=torch.tensor([token]))
        )
        loss_of(sampled, chosen).backward()
        mean += p * leaves["student.full"].grad
    assert torch.allclose(mean, exact, atol=1e-6)

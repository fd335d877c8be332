"""Divergences between next-token distributions, per token, never reduced.

The direction is in the name. Arguments are always (student, target): `forward_kl` is
KL(target || student), `reverse_kl` is KL(student || target). Gradient flows through both arguments.
Detach the one that is data.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

ClipMode = Literal["entry", "token", "none"]


def reverse_kl(
    student_logits: Float[Tensor, "R V"], target_logits: Float[Tensor, "R V"]
) -> Float[Tensor, " R"]:
    """KL(student || target) of each row, natural log, whole vocabulary.

    `sum_a p(a) (log p(a) - log q(a))` with p the student. Zero at equality.
    Source: VA-OPD Eq. 5, Standard OPD Eq. 1.
    """
    log_p = torch.log_softmax(student_logits, -1)
    log_q = torch.log_softmax(target_logits, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def forward_kl(
    student_logits: Float[Tensor, "R V"], target_logits: Float[Tensor, "R V"]
) -> Float[Tensor, " R"]:
    """KL(target || student) of each row: `sum_a q(a) (log q(a) - log p(a))`.

    It includes the teacher's entropy, which has no gradient. A target logit of -inf takes its token
    out of the sum. Source: off-policy KD, methods 4.1.
    """
    log_p = torch.log_softmax(student_logits, -1)
    log_q = torch.log_softmax(target_logits, -1)
    return expected_difference(log_q, log_p)


def expected_difference(
    log_q: Float[Tensor, "R V"], log_p: Float[Tensor, "R V"]
) -> Float[Tensor, " R"]:
    """`sum_a q(a) (log q(a) - log p(a))`. Tokens without probability count 0. A NaN stays NaN."""
    inside = log_q != -torch.inf
    safe = torch.where(inside, log_q, torch.zeros_like(log_q))
    return torch.where(inside, safe.exp() * (safe - log_p), torch.zeros_like(log_q)).sum(-1)


def skewed_forward_kl(
    student_logits: Float[Tensor, "R V"], target_logits: Float[Tensor, "R V"], skew: float
) -> Float[Tensor, " R"]:
    """KL(q || skew q + (1 - skew) p) of each row, with p the student and q the target.

    Source: DistiLLM (`skew` = alpha).
    """
    log_p = torch.log_softmax(student_logits, -1)
    log_q = torch.log_softmax(target_logits, -1)
    return expected_difference(log_q, log_mix(log_q, log_p, skew))


def skewed_reverse_kl(
    student_logits: Float[Tensor, "R V"], target_logits: Float[Tensor, "R V"], skew: float
) -> Float[Tensor, " R"]:
    """KL(p || skew p + (1 - skew) q) of each row, with p the student and q the target.

    Source: DistiLLM (`skew` = alpha).
    """
    return skewed_forward_kl(target_logits, student_logits, skew)


def log_mix(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """`log(share a + (1 - share) b)` in log space. The ends of [0, 1] are exact."""
    if share in (0.0, 1.0):
        return log_a if share == 1.0 else log_b
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def jensen_shannon(
    student_logits: Float[Tensor, "R V"],
    target_logits: Float[Tensor, "R V"],
    beta: float = 0.5,
    clip: float | None = None,
    clip_mode: ClipMode = "entry",
) -> Float[Tensor, " R"]:
    """`beta KL(q || m) + (1 - beta) KL(p || m)` of each row, with `m = beta q + (1 - beta) p`.

    p is the student, q the target. The value is at most ln 2 for beta = 0.5. At the ends the
    formula would be 0, so they are defined as in the released code of GKD and Visual-OPSD:
    beta = 0 is KL(q || p), beta = 1 is KL(p || q).

    Args:
        student_logits: p.
        target_logits: q.
        beta: weight of the target in the mixture.
        clip: largest value of an entry or of a token.
        clip_mode: `entry` clamps each vocabulary entry **before** the sum, as Visual-OPSD's release
            does (a clamped entry has no gradient). `token` clamps the sum. `none` ignores `clip`.
    """
    log_p = torch.log_softmax(student_logits, -1)
    log_q = torch.log_softmax(target_logits, -1)
    if beta == 0.0:
        entries = log_q.exp() * (log_q - log_p)
    elif beta == 1.0:
        entries = log_p.exp() * (log_p - log_q)
    else:
        log_m = log_mix(log_q, log_p, beta)
        entries = beta * log_q.exp() * (log_q - log_m) + (1 - beta) * log_p.exp() * (log_p - log_m)
    if clip is not None and clip_mode == "entry":
        entries = entries.clamp_max(clip)
    total = entries.sum(-1)
    return total.clamp_max(clip) if clip is not None and clip_mode == "token" else total


def keep_top(
    student_logits: Float[Tensor, "R V"],
    target_logits: Float[Tensor, "R V"],
    top_k: int,
    tail_bucket: bool = False,
) -> tuple[Float[Tensor, "R K"], Float[Tensor, "R K"]]:
    """Both rows of logits at the **target's** `top_k` largest entries, in the target's order.

    Without a tail bucket a softmax over the result renormalizes within those entries, and the
    student's probability elsewhere is invisible. With a tail bucket a last entry carries the
    log-sum-exp of all other entries, so the result is a coarser but complete distribution.
    Source: Visual-OPSD 3.1 (K = 256, no tail), Vision-OPD (K = 100, with tail).
    """
    if top_k >= target_logits.shape[-1]:
        return student_logits, target_logits
    index = target_logits.topk(top_k, -1).indices
    top = [logits.gather(-1, index) for logits in (student_logits, target_logits)]
    if tail_bucket:
        tails = [
            torch.logsumexp(logits.scatter(-1, index, -torch.inf), -1, keepdim=True)
            for logits in (student_logits, target_logits)
        ]
        top = [torch.cat(pair, -1) for pair in zip(top, tails, strict=True)]
    return top[0], top[1]


def entropy(logits: Float[Tensor, "R V"]) -> Float[Tensor, " R"]:
    """Entropy of each row in nats: `-sum_a p(a) log p(a)`."""
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1)


def k3(log_prob: Float[Tensor, " R"], other_log_prob: Float[Tensor, " R"]) -> Float[Tensor, " R"]:
    """`e^d - d - 1` of each row, at most 10, with `d = clamp(other_log_prob - log_prob, -20, 20)`.

    It is never negative. If the tokens are sampled from the distribution p of `log_prob`, its mean
    estimates KL(p || other). A clamped value has no gradient.
    Source: methods 4.4 (reference KL) and 4.5 (PAPO's perception term, released orientation).
    """
    difference = (other_log_prob - log_prob).clamp(-20, 20)
    return (difference.exp() - difference - 1).clamp(-10, 10)

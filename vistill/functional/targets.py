"""Target distributions from several passes, as logits. They are data: pass detached logits."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from vistill.functional.divergences import reverse_kl


def steered_target(
    full: Float[Tensor, "R V"],
    text_only: Float[Tensor, "R V"],
    student_text_only: Float[Tensor, "R V"],
    ratio_clamp: float | None = None,
    support: float = 0.0,
) -> Float[Tensor, "R V"]:
    """Logits of the steered target `q* ~ p_x q / q_x`.

    It is the student's distribution without the image, multiplied by the effect that the image has
    on the teacher: `log q* = log p_x + (log q - log q_x) - log Z*`, per row. Source: VGS Eq. 9-10.

    Args:
        full: teacher with the image (q).
        text_only: teacher without the image (q_x).
        student_text_only: student without the image (p_x).
        ratio_clamp: largest |log q - log q_x|. None does not clamp, as in the paper.
        support: use the log-ratio only where `q >= support * max q`, and 0 elsewhere, so that a
            reverse KL to q* stays finite. 0 uses it everywhere.
    """
    log_q = torch.log_softmax(full, -1)
    ratio = log_q - torch.log_softmax(text_only, -1)
    if ratio_clamp is not None:
        ratio = ratio.clamp(-ratio_clamp, ratio_clamp)
    if support > 0:
        ratio = torch.where(inside_support(log_q, support), ratio, torch.zeros_like(ratio))
    return torch.log_softmax(student_text_only, -1) + ratio


def reverse_kl_to_steered(
    student: Float[Tensor, "R V"],
    full: Float[Tensor, "R V"],
    text_only: Float[Tensor, "R V"],
    student_text_only: Float[Tensor, "R V"],
    ratio_clamp: float | None = None,
    support: float = 0.0,
) -> Float[Tensor, " R"]:
    """KL(student || q*) of each row (VGS Eq. 11)."""
    target = steered_target(full, text_only, student_text_only, ratio_clamp, support)
    return reverse_kl(student, target)


def contrastive_target(
    full: Float[Tensor, "R V"], without: Float[Tensor, "R V"], strength: float, support: float
) -> Float[Tensor, "R V"]:
    """Logits of `q* ~ q (q / q_black)^strength` where `q >= support * max q`, and -inf elsewhere.

    `full` is the teacher with the image (q), `without` the teacher with a black image (q_black).
    Source: VCSD.
    """
    log_q = torch.log_softmax(full, -1)
    logits = (1 + strength) * log_q - strength * torch.log_softmax(without, -1)
    return torch.where(inside_support(log_q, support), logits, torch.full_like(logits, -torch.inf))


def inside_support(log_q: Float[Tensor, "R V"], support: float) -> Tensor:
    """Where `q >= support * max q`, or everywhere for 0. A NaN counts as inside, so it stays."""
    if support <= 0:
        return torch.ones_like(log_q, dtype=torch.bool)
    return ~(log_q < log_q.amax(-1, keepdim=True) + math.log(support))

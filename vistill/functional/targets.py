"""Target distributions made of several readings, as logits. They are data: make them from detached logits."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from vistill.functional.divergences import reverse_kl


def steered_target(
    full: Float[Tensor, "R V"],
    text_only: Float[Tensor, "R V"],
    own_text_only: Float[Tensor, "R V"],
    ratio_clamp: float | None = None,
    support: float = 0.0,
) -> Float[Tensor, "R V"]:
    """Logits of `q* ~ p_x q / q_x`: what the student believes without the picture, moved by what the picture tells.

    `log q* = log p_x + (log q - log q_x) - log Z*`, per row. Source: VGS Eq. 9-10.

    Args:
        full: teacher with the picture (q).
        text_only: teacher without (q_x).
        own_text_only: student without (p_x).
        ratio_clamp: largest |log q - log q_x|; None leaves it alone, as the paper does.
        support: the log-ratio counts only where `q >= support * max q`; elsewhere it is 0, so that a reverse KL to q*
            stays finite. 0 leaves it alone.
    """
    log_q = torch.log_softmax(full, -1)
    ratio = log_q - torch.log_softmax(text_only, -1)
    if ratio_clamp is not None:
        ratio = ratio.clamp(-ratio_clamp, ratio_clamp)
    if support > 0:
        ratio = torch.where(inside_support(log_q, support), ratio, torch.zeros_like(ratio))
    return torch.log_softmax(own_text_only, -1) + ratio


def reverse_kl_to_steered(
    own: Float[Tensor, "R V"],
    full: Float[Tensor, "R V"],
    text_only: Float[Tensor, "R V"],
    own_text_only: Float[Tensor, "R V"],
    ratio_clamp: float | None = None,
    support: float = 0.0,
) -> Float[Tensor, " R"]:
    """KL(student || q*) of each row (VGS Eq. 11)."""
    return reverse_kl(own, steered_target(full, text_only, own_text_only, ratio_clamp, support))


def contrastive_target(
    full: Float[Tensor, "R V"], without: Float[Tensor, "R V"], strength: float, support: float
) -> Float[Tensor, "R V"]:
    """Logits of `q* ~ q (q / q_black)^strength` on the support `q >= support * max q`; -inf outside. Source: VCSD."""
    log_q = torch.log_softmax(full, -1)
    logits = (1 + strength) * log_q - strength * torch.log_softmax(without, -1)
    return torch.where(inside_support(log_q, support), logits, torch.full_like(logits, -torch.inf))


def inside_support(log_q: Float[Tensor, "R V"], support: float) -> Tensor:
    """Where `q >= support * max q`; everywhere for 0. A NaN counts as inside, so that it is not lost."""
    if support <= 0:
        return torch.ones_like(log_q, dtype=torch.bool)
    return ~(log_q < log_q.amax(-1, keepdim=True) + math.log(support))

"""Divergences between next-token distributions, per token, never reduced. The direction is in the name."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vistill.functional.heads import Head

#: Rows projected at a time. Whole vocabulary rows: one projection serves every divergence.
CHUNK_ROWS = 1024


class Target(NamedTuple):
    """One summand of a target distribution `softmax(sum of coefficient * logits)`."""

    coefficient: float
    hidden: Float[Tensor, "R H"]
    head: Head


def reverse_kl(student_logits: Float[Tensor, "R V"], target_logits: Float[Tensor, "R V"]) -> Float[Tensor, " R"]:
    """KL(student || target) of each row, natural log, whole vocabulary.

    `sum_a p(a) (log p(a) - log q(a))` with p the student. Zero at equality. Gradient flows through both arguments;
    detach the target where it is data. Source: VA-OPD Eq. 5, Standard OPD Eq. 1.
    """
    log_p = torch.log_softmax(student_logits, -1)
    log_q = torch.log_softmax(target_logits, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def target_logits(targets: Sequence[Target]) -> Float[Tensor, "R V"]:
    """Logits of `softmax(sum_i a_i h_i W_i^T)`, detached: a target is data."""
    with torch.no_grad():
        return torch.stack([t.coefficient * t.head.detached().logits(t.hidden) for t in targets]).sum(0)


def reverse_kl_from_hidden(
    hidden: Float[Tensor, "R H"], head: Head, targets: Sequence[Target], chunk: int = CHUNK_ROWS
) -> Float[Tensor, " R"]:
    """KL(student || softmax of a linear combination of target logits) of each row, from hidden states.

    Only `chunk` rows of logits exist at a time; with gradient they are computed again in the backward pass.
    """

    def rows(h: Tensor, start: int, stop: int) -> Tensor:
        part = [Target(t.coefficient, t.hidden[start:stop], t.head) for t in targets]
        return reverse_kl(head.logits(h), target_logits(part))

    pieces = []
    for start in range(0, len(hidden), chunk):
        stop = min(start + chunk, len(hidden))
        h = hidden[start:stop]
        if torch.is_grad_enabled() and len(hidden) > chunk:
            pieces.append(checkpoint(rows, h, start, stop, use_reentrant=False))
        else:
            pieces.append(rows(h, start, stop))
    return torch.cat(pieces) if pieces else hidden.new_zeros(0)


def log_prob_from_hidden(
    hidden: Float[Tensor, "R H"], head: Head, ids: Int[Tensor, " R"], chunk: int = CHUNK_ROWS
) -> Float[Tensor, " R"]:
    """`log softmax(head(h))[id]` of each row at temperature 1, whatever the sampling temperature was."""

    def rows(h: Tensor, index: Tensor) -> Tensor:
        return torch.log_softmax(head.logits(h), -1).gather(-1, index[:, None])[:, 0]

    pieces = []
    for start in range(0, len(hidden), chunk):
        h, index = hidden[start : start + chunk], ids[start : start + chunk]
        if torch.is_grad_enabled() and len(hidden) > chunk:
            pieces.append(checkpoint(rows, h, index, use_reentrant=False))
        else:
            pieces.append(rows(h, index))
    return torch.cat(pieces) if pieces else hidden.new_zeros(0)

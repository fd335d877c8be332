"""From hidden states to one value per row: the head runs on chunks of rows, never on `[tokens, vocabulary]` at once."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vistill.functional.divergences import reverse_kl
from vistill.functional.heads import Head

#: Rows projected at a time. Whole vocabulary rows: one projection serves every divergence.
CHUNK_ROWS = 1024

Rule = Callable[..., Tensor]
"""(student logits, logits of each other reading...) -> one value per row."""


class Target(NamedTuple):
    """One summand of a target distribution `softmax(sum of coefficient * logits)`."""

    coefficient: float
    hidden: Float[Tensor, "R H"]
    head: Head


class States(NamedTuple):
    """Another reading of the same rows. It is data: no gradient reaches it."""

    hidden: Float[Tensor, "R H"]
    head: Head


def per_row(
    rule: Rule, hidden: Float[Tensor, "R H"], head: Head, others: Sequence[States] = (), chunk: int = CHUNK_ROWS
) -> Float[Tensor, " R"]:
    """`rule(student logits, other logits...)` of each row.

    Only `chunk` rows of logits exist at a time; with gradient they are computed again in the backward pass. Gradient
    flows through `hidden` and `head` alone.
    """

    def rows(h: Tensor, start: int, stop: int) -> Tensor:
        with torch.no_grad():
            rest = [other.head.detached().logits(other.hidden[start:stop]) for other in others]
        return rule(head.logits(h), *rest)

    pieces = []
    for start in range(0, len(hidden), chunk):
        stop = min(start + chunk, len(hidden))
        h = hidden[start:stop]
        if torch.is_grad_enabled() and len(hidden) > chunk:
            pieces.append(checkpoint(rows, h, start, stop, use_reentrant=False))
        else:
            pieces.append(rows(h, start, stop))
    return torch.cat(pieces) if pieces else hidden.new_zeros(0)


def reverse_kl_from_hidden(
    hidden: Float[Tensor, "R H"], head: Head, targets: Sequence[Target], chunk: int = CHUNK_ROWS
) -> Float[Tensor, " R"]:
    """KL(student || softmax of a linear combination of target logits) of each row, from hidden states."""

    def rule(own: Tensor, *logits: Tensor) -> Tensor:
        parts = [t.coefficient * z for t, z in zip(targets, logits, strict=True)]
        return reverse_kl(own, torch.stack(parts).sum(0))

    return per_row(rule, hidden, head, [States(t.hidden, t.head) for t in targets], chunk)


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

"""From hidden states to one value per row: every loss and every signal runs the head here.

- This file is the entry: what callers ask for, and which path computes it.
- `row_autograd.py` connects values to autograd.
- `row_chunks.py` runs the head on chunks of rows, never on [tokens, vocabulary] at once.
- `kernels.py` computes values and logit gradients of one block of rows.

Values that enter a loss get their gradient in the same pass: student projection, target
projections, gradient of the hidden states, gradient of the head, each computed once. This needs the
weights of the values in the loss. A caller that knows them passes them as `weights`. They only save
time: the backward pass compares them with the incoming gradient and computes the gradient again if
they do not match.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vistill.functional.divergences import reverse_kl
from vistill.functional.heads import Head
from vistill.functional.kernels import Rule, log_prob_rows
from vistill.functional.row_autograd import RowValues
from vistill.functional.row_chunks import LogitsLoss, RowRule, States


class Target(NamedTuple):
    """One summand of a target distribution `softmax(sum of coefficient * logits)`."""

    coefficient: float
    hidden: Float[Tensor, "R H"]
    head: Head


def per_row(
    rule: Rule,
    hidden: Float[Tensor, "R H"],
    head: Head,
    others: Sequence[States] = (),
    weights: Float[Tensor, " R"] | None = None,
) -> Float[Tensor, " R"]:
    """`rule(student logits, other logits...)` of each row.

    Gradient flows through `hidden` and `head` only.

    Args:
        rule: per row, differentiable in its first argument.
        hidden: student states.
        head: student head.
        others: states of the other passes, without gradient.
        weights: the weight of each value in the loss, if known. A value of weight 0 comes out as 0.
    """
    row_rule = RowRule(rule, tuple(range(len(others))), weights)
    return apply_row_rules(hidden, head, others, [row_rule])[0]


def apply_row_rules(
    hidden: Float[Tensor, "R H"], head: Head, others: Sequence[States], rules: Sequence[RowRule]
) -> tuple[Float[Tensor, " R"], ...]:
    """Values of several rules on the same rows. Each pass is projected once for all rules."""
    others = tuple(States(s.hidden.detach(), s.head.detached()) for s in others)
    loss = LogitsLoss(head.detached(), others, tuple(rules))
    if not (torch.is_grad_enabled() and (hidden.requires_grad or head.weight.requires_grad)):
        return tuple(loss.run(hidden.detach(), None).values)
    return tuple(RowValues.apply(hidden, head.weight, head.bias, loss).unbind(0))


def reverse_kl_from_hidden(
    hidden: Float[Tensor, "R H"],
    head: Head,
    targets: Sequence[Target],
    weights: Float[Tensor, " R"] | None = None,
) -> Float[Tensor, " R"]:
    """KL(student || softmax of a linear combination of target logits) of each row.

    Targets that share a head are added before it, which saves projections:
    `a h_1 W + b h_2 W = (a h_1 + b h_2) W`.
    """
    merged = merge_targets(targets)

    def reverse_kl_to_sum(student_logits: Tensor, *logits: Tensor) -> Tensor:
        parts = [t.coefficient * z for t, z in zip(merged, logits, strict=True)]
        return reverse_kl(student_logits, torch.stack(parts).sum(0))

    is_single = len(merged) == 1 and merged[0].coefficient == 1
    others = [States(t.hidden, t.head) for t in merged]
    return per_row(reverse_kl if is_single else reverse_kl_to_sum, hidden, head, others, weights)


def merge_targets(targets: Sequence[Target]) -> list[Target]:
    """Merge targets that share a linear head: add their states instead of their logits."""
    merged: list[Target] = []
    index_of_head: dict[int, int] = {}
    for t in targets:
        if not t.head.is_linear:
            merged.append(t)
            continue
        scaled = t.hidden if t.coefficient == 1 else t.coefficient * t.hidden
        index = index_of_head.setdefault(t.head.weight.data_ptr(), len(merged))
        if index == len(merged):
            merged.append(Target(1.0, scaled, t.head))
        else:
            merged[index] = Target(1.0, merged[index].hidden + scaled, t.head)
    return merged


def log_prob_from_hidden(
    hidden: Float[Tensor, "R H"],
    head: Head,
    ids: Int[Tensor, " R"],
    weights: Float[Tensor, " R"] | None = None,
) -> Float[Tensor, " R"]:
    """`log softmax(head(h))[id]` of each row at temperature 1, not at the sampling temperature.

    Without gradient, and before the weights are known, it runs tile by tile over rows and
    vocabulary, so its memory grows with neither.
    """
    row_rule = RowRule(log_prob_rows, (), weights, ids)  # pyright: ignore[reportArgumentType]
    return apply_row_rules(hidden, head, (), [row_rule])[0]

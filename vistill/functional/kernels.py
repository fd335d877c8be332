"""Values and logit gradients of the usual divergences on a block of rows, by formula, without autograd.

Everything works in buffers that are made once for a block size: a block fits into the processor's cache, so an
elementwise pass costs little beside the two projections around it. A rule that is not here goes through autograd, block
by block, with the same numbers.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vistill.functional.divergences import forward_kl, jensen_shannon, reverse_kl
from vistill.functional.targets import reverse_kl_to_steered

#: Stands for log 0 in a product with probability 0.
FAR = -1e30


class Block:
    """Buffers for `[rows, vocabulary]` values of one block; `p` and `log_p` hold the student's distribution."""

    def __init__(self, like: Tensor, rows: int) -> None:
        make = lambda: like.new_empty(rows, like.shape[-1])
        self.p, self.log_p, self.a, self.b, self.gradient = (make() for _ in range(5))

    def first(self, rows: int) -> "Block":
        """The same buffers for the last, shorter block."""
        part = object.__new__(Block)
        part.__dict__ = {name: buffer[:rows] for name, buffer in self.__dict__.items()}
        return part

    def fill(self, logits: Tensor) -> None:
        """The student's distribution. Two softmaxes cost less than one and an exponential."""
        torch.softmax(logits, -1, out=self.p)
        torch.log_softmax(logits, -1, out=self.log_p)


Kernel = Callable[[Block, Sequence[Tensor], Tensor | None], Tensor]
"""(filled buffers, other logits, weights or None) -> values; with weights adds to `gradient`."""


def log_prob_rows(block: Block, others: Sequence[Tensor], weights: Tensor | None) -> Tensor:
    """`log p_y` of the sampled id y, `others = (ids [rows, 1],)`; its slope is `1[a = y] - p_a`."""
    (index,) = others
    values = block.log_p.gather(-1, index)[:, 0]
    if weights is not None:
        block.gradient.addcmul_(block.p, weights[:, None].expand_as(block.p), value=-1)
        block.gradient.scatter_add_(-1, index, weights[:, None])
    return values


def reverse_kl_rows(block: Block, others: Sequence[Tensor], weights: Tensor | None) -> Tensor:
    """`sum_a p (log p - log q)`; its slope in the logit of a is `p_a (log p_a - log q_a - value)`."""
    log_q, gap = torch.log_softmax(others[0], -1, out=block.a), block.b
    torch.sub(block.log_p, log_q, out=gap)
    values = torch.mul(block.p, gap, out=block.a).sum(-1)
    if weights is not None:
        block.gradient.addcmul_(block.p, gap.sub_(values[:, None]).mul_(weights[:, None]))
    return values


def forward_kl_rows(block: Block, others: Sequence[Tensor], weights: Tensor | None) -> Tensor:
    """`sum_a q (log q - log p)`; its slope is `p_a - q_a`. A target logit of -inf takes its token out."""
    gap = torch.log_softmax(others[0], -1, out=block.a).clamp_min_(FAR).sub_(block.log_p)
    q = torch.softmax(others[0], -1, out=block.b)
    values = gap.mul_(q).sum(-1)
    if weights is not None:
        block.gradient.addcmul_(torch.sub(block.p, q, out=gap), weights[:, None].expand_as(gap))
    return values


def jensen_shannon_rows(
    block: Block, others: Sequence[Tensor], weights: Tensor | None, beta: float
) -> Tensor:
    """`beta KL(q || m) + (1 - beta) KL(p || m)` inside (0, 1); slope `p (g - sum p g)`, `g = (1 - beta) log(p / m)`."""
    log_q = torch.log_softmax(others[0], -1, out=block.a).clamp_min_(FAR)
    q = torch.softmax(others[0], -1, out=block.b)
    target = log_q.mul_(q).sum(-1)
    log_m = torch.lerp(block.p, q, beta, out=block.a).log_().clamp_min_(FAR)
    target -= q.mul_(log_m).sum(-1)
    gap = torch.sub(block.log_p, log_m, out=block.a)
    own = torch.mul(block.p, gap, out=block.b).sum(-1)
    if weights is not None:
        block.gradient.addcmul_(block.p, gap.sub_(own[:, None]).mul_((1 - beta) * weights[:, None]))
    return beta * target + (1 - beta) * own


def steered_rows(block: Block, others: Sequence[Tensor], weights: Tensor | None) -> Tensor:
    """Reverse KL to `softmax(z_Sx + z_T - z_Tx)`: normalisers are constants of the row and drop out."""
    full, text_only, own_text_only = others
    target = torch.sub(full, text_only, out=block.b).add_(own_text_only)
    return reverse_kl_rows(block, (target,), weights)


def is_plain_steering(rule: Callable[..., Tensor]) -> bool:
    """KL to q* whose ratio is neither clamped nor limited to a support."""
    if rule is reverse_kl_to_steered:
        return True
    options = (
        rule.keywords if isinstance(rule, partial) and rule.func is reverse_kl_to_steered else None
    )
    plain = {"ratio_clamp": None, "support": 0.0}
    return options is not None and all(
        plain.get(name, 1) == value for name, value in options.items()
    )


def kernel_of(rule: Callable[..., Tensor]) -> Kernel | None:
    """The kernel of a rule, where there is one for its options."""
    if rule is reverse_kl:
        return reverse_kl_rows
    if rule is forward_kl:
        return forward_kl_rows
    if rule is log_prob_rows:
        return log_prob_rows
    if is_plain_steering(rule):
        return steered_rows
    if (
        isinstance(rule, partial)
        and rule.func is jensen_shannon
        and set(rule.keywords) == {"beta"}
        and not rule.args
    ):
        beta = rule.keywords["beta"]
        ends = {0.0: forward_kl_rows, 1.0: reverse_kl_rows}
        return ends.get(beta) or partial(jensen_shannon_rows, beta=beta)
    return None


class Fused(NamedTuple):
    """A divergence as the Triton backend knows it: its kind there, and its weight of the target in the mixture."""

    kind: Literal["reverse", "forward", "jensen_shannon", "log_prob"]
    beta: float = 0.0


def fused_of(rule: Callable[..., Tensor]) -> Fused | None:
    """The fused kernel of a rule, where there is one for its options."""
    kernel = kernel_of(rule)
    if isinstance(kernel, partial):
        return Fused("jensen_shannon", kernel.keywords["beta"])
    known: dict[Kernel | None, Fused] = {
        reverse_kl_rows: Fused("reverse"),
        forward_kl_rows: Fused("forward"),
        log_prob_rows: Fused("log_prob"),
    }
    return known.get(kernel)

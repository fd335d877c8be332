"""Rules on logits as kernels: values and logit gradients of one block of rows, by formula.

All work runs in buffers that are allocated once per block size. A block fits into the processor's
cache, so an elementwise pass costs little next to the projections before and after it. A rule
without a formula here goes through autograd, block by block, with the same numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vistill.functional.divergences import forward_kl, jensen_shannon, reverse_kl
from vistill.functional.targets import reverse_kl_to_steered

Rule = Callable[..., Tensor]
"""(student logits, logits of each other pass...) -> one value per row."""

#: Replaces log 0 in a product with probability 0.
LOG_ZERO = -1e30


class Block:
    """Buffers of shape [rows, vocabulary] for one block of rows.

    `p` and `log_p` hold the student's distribution, `grad` collects the gradient of the logits, `a`
    and `b` are scratch space.
    """

    def __init__(self, like: Tensor, rows: int) -> None:
        def allocate() -> Tensor:
            return like.new_empty(rows, like.shape[-1])

        self.p, self.log_p, self.a, self.b, self.grad = (allocate() for _ in range(5))

    def first(self, rows: int) -> "Block":
        """Views of the first rows of the same buffers, for the last and shorter block."""
        part = object.__new__(Block)
        part.__dict__ = {name: buffer[:rows] for name, buffer in self.__dict__.items()}
        return part

    def fill(self, logits: Tensor) -> None:
        """Compute the student's distribution.

        Two softmaxes cost less than one softmax and an exponential.
        """
        torch.softmax(logits, -1, out=self.p)
        torch.log_softmax(logits, -1, out=self.log_p)


Kernel = Callable[[Block, Sequence[Tensor], Tensor | None], Tensor]
"""(filled block, other logits, weights or None) -> values [rows].

With weights it adds the gradient of the weighted sum of the values to `block.grad`.
"""


def log_prob_rows(block: Block, others: Sequence[Tensor], weights: Tensor | None) -> Tensor:
    """`log p_y` of the sampled id y. `others` is `(ids [rows, 1],)`.

    The gradient is `1[a = y] - p_a`.
    """
    (index,) = others
    values = block.log_p.gather(-1, index)[:, 0]
    if weights is not None:
        block.grad.addcmul_(block.p, weights[:, None].expand_as(block.p), value=-1)
        block.grad.scatter_add_(-1, index, weights[:, None])
    return values


def reverse_kl_rows(block: Block, others: Sequence[Tensor], weights: Tensor | None) -> Tensor:
    """`sum_a p (log p - log q)`; the gradient is `p_a (log p_a - log q_a - value)`."""
    log_q, gap = torch.log_softmax(others[0], -1, out=block.a), block.b
    torch.sub(block.log_p, log_q, out=gap)
    values = torch.mul(block.p, gap, out=block.a).sum(-1)
    if weights is not None:
        block.grad.addcmul_(block.p, gap.sub_(values[:, None]).mul_(weights[:, None]))
    return values


def forward_kl_rows(block: Block, others: Sequence[Tensor], weights: Tensor | None) -> Tensor:
    """`sum_a q (log q - log p)`; the gradient is `p_a - q_a`.

    A target logit of -inf takes its token out of the sum.
    """
    gap = torch.log_softmax(others[0], -1, out=block.a).clamp_min_(LOG_ZERO).sub_(block.log_p)
    q = torch.softmax(others[0], -1, out=block.b)
    values = gap.mul_(q).sum(-1)
    if weights is not None:
        block.grad.addcmul_(torch.sub(block.p, q, out=gap), weights[:, None].expand_as(gap))
    return values


def jensen_shannon_rows(
    block: Block, others: Sequence[Tensor], weights: Tensor | None, beta: float
) -> Tensor:
    """`beta KL(q || m) + (1 - beta) KL(p || m)`, `m = beta q + (1 - beta) p`, for beta in (0, 1).

    The gradient is `p (g - sum p g)` with `g = (1 - beta) log(p / m)`.
    """
    log_q = torch.log_softmax(others[0], -1, out=block.a).clamp_min_(LOG_ZERO)
    q = torch.softmax(others[0], -1, out=block.b)
    target_kl = log_q.mul_(q).sum(-1)
    log_m = torch.lerp(block.p, q, beta, out=block.a).log_().clamp_min_(LOG_ZERO)
    target_kl -= q.mul_(log_m).sum(-1)
    gap = torch.sub(block.log_p, log_m, out=block.a)
    student_kl = torch.mul(block.p, gap, out=block.b).sum(-1)
    if weights is not None:
        block.grad.addcmul_(
            block.p, gap.sub_(student_kl[:, None]).mul_((1 - beta) * weights[:, None])
        )
    return beta * target_kl + (1 - beta) * student_kl


def steered_rows(block: Block, others: Sequence[Tensor], weights: Tensor | None) -> Tensor:
    """Reverse KL to `softmax(z_Sx + z_T - z_Tx)`.

    z_T and z_Tx are the teacher's logits with and without the image, z_Sx the student's without it.
    The normalizers of the steered target are constants of the row and cancel.
    """
    full, text_only, student_text_only = others
    target = torch.sub(full, text_only, out=block.b).add_(student_text_only)
    return reverse_kl_rows(block, (target,), weights)


@dataclass(frozen=True)
class AutogradRule:
    """The kernel of a rule without a formula: autograd on one block."""

    rule: Rule
    logits: Tensor

    def __call__(self, block: Block, others: Sequence[Tensor], weights: Tensor | None) -> Tensor:
        """Values of the rows; with weights add the gradient to the block's."""
        if weights is None:
            return self.rule(self.logits, *others)
        with torch.enable_grad():
            leaf = self.logits.detach().requires_grad_(True)
            values = self.rule(leaf, *others)
            (grad,) = torch.autograd.grad(values, leaf, weights)
        block.grad.add_(grad)
        return values.detach()


def is_unmodified_steering(rule: Rule) -> bool:
    """Whether a rule is the KL to q* without a clamp of the ratio and without a support."""
    if rule is reverse_kl_to_steered:
        return True
    if not (isinstance(rule, partial) and rule.func is reverse_kl_to_steered):
        return False
    defaults = {"ratio_clamp": None, "support": 0.0}
    return all(defaults.get(name, 1) == value for name, value in rule.keywords.items())


def find_kernel(rule: Rule) -> Kernel | None:
    """The kernel of a rule, or None if there is none for its options."""
    if rule is reverse_kl:
        return reverse_kl_rows
    if rule is forward_kl:
        return forward_kl_rows
    if rule is log_prob_rows:
        return log_prob_rows
    if is_unmodified_steering(rule):
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


class TritonKernel(NamedTuple):
    """The name of a rule in the Triton backend, and the weight of the target in its mixture."""

    kind: Literal["reverse", "forward", "jensen_shannon", "log_prob"]
    beta: float = 0.0


def find_triton_kernel(rule: Rule) -> TritonKernel | None:
    """The Triton kernel of a rule, or None if there is none for its options."""
    kernel = find_kernel(rule)
    if isinstance(kernel, partial):
        return TritonKernel("jensen_shannon", kernel.keywords["beta"])
    triton_kernels: dict[Kernel | None, TritonKernel] = {
        reverse_kl_rows: TritonKernel("reverse"),
        forward_kl_rows: TritonKernel("forward"),
        log_prob_rows: TritonKernel("log_prob"),
    }
    return triton_kernels.get(kernel)

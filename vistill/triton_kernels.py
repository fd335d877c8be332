# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportReturnType=false, reportIndexIssue=false
"""Values and gradients of rows of logits in one Triton kernel: the CUDA backend (extra `triton`).

One program handles one row. It reads it three times (normalizers, value, gradient) and writes the
gradient over the student's logits. So the only tensors of size [rows, vocabulary] are the logits of
the two passes. The formulas are those of `functional/kernels.py`. One test suite covers both
backends, this one in Triton's interpreter. Another test compiles it for a GPU.
"""

from typing import Final, Literal

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

REVERSE, FORWARD, JENSEN_SHANNON = (tl.constexpr(i) for i in range(3))
KINDS: Final = {"reverse": 0, "forward": 1, "jensen_shannon": 2}
#: Vocabulary entries that a program handles together.
BLOCK: Final = 4096


@triton.jit
def peak_and_log_sum(start, width, scale, block: tl.constexpr, dtype: tl.constexpr):  # noqa: ANN001, ANN201
    """The largest entry m of a row of scaled logits, and `log sum exp(z - m)`.

    Both stay exact where one token has nearly all probability. Their sum would be rounded.
    """
    column = tl.arange(0, block)
    peak = tl.full([], float("-inf"), dtype)
    total = tl.zeros([], dtype)
    for at in tl.range(0, width, block):
        inside = at + column < width
        z = tl.load(start + at + column, mask=inside, other=float("-inf")).to(dtype) * scale
        higher = tl.maximum(peak, tl.max(z, axis=0))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(peak - safe) + tl.sum(tl.exp(z - safe), axis=0)
        peak = higher
    return peak, tl.log(total)


@triton.jit
def divergence_entry(log_p, log_q, beta, kind: tl.constexpr):  # noqa: ANN001, ANN201
    """An entry of the divergence, and the g of its gradient.

    The gradient is `p (g - sum p g)`, times (1 - beta) for JENSEN_SHANNON. For FORWARD g is q and
    the gradient is `p - q`.
    """
    p, q = tl.exp(log_p), tl.exp(log_q)
    if kind == REVERSE:
        gap = tl.where(p > 0, log_p - log_q, 0.0)
        entry = p * gap
    elif kind == FORWARD:
        gap = q
        entry = tl.where(q > 0, q * (log_q - log_p), 0.0)
    else:
        log_m = tl.log(beta * q + (1 - beta) * p)
        gap = tl.where(p > 0, log_p - log_m, 0.0)
        entry = (1 - beta) * p * gap + beta * tl.where(q > 0, q * (log_q - log_m), 0.0)
    return entry, gap


@triton.jit
def divergence_row(  # noqa: ANN201, PLR0913  a kernel takes its memory as arguments
    logits, others, weights, values, stride, other_stride, width, scale, other_scale, beta,  # noqa: ANN001
    kind: tl.constexpr, needs_grad: tl.constexpr, block: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """The value of one row. With gradient, write its weighted gradient over the logits."""
    row = tl.program_id(0).to(tl.int64)
    student, target = logits + row * stride, others + row * other_stride
    column = tl.arange(0, block)
    student_peak, student_log_sum = peak_and_log_sum(student, width, scale, block, dtype)
    target_peak, target_log_sum = peak_and_log_sum(target, width, other_scale, block, dtype)
    value = tl.zeros([], dtype)
    mean = tl.zeros([], dtype)
    for at in tl.range(0, width, block):
        inside = at + column < width
        z = tl.load(student + at + column, mask=inside, other=0.0).to(dtype) * scale
        t = tl.load(target + at + column, mask=inside, other=0.0).to(dtype) * other_scale
        log_p = z - student_peak - student_log_sum
        entry, gap = divergence_entry(log_p, t - target_peak - target_log_sum, beta, kind)
        value += tl.sum(tl.where(inside, entry, 0.0), axis=0)
        mean += tl.sum(tl.where(inside, tl.exp(log_p) * gap, 0.0), axis=0)
    tl.store(values + row, value)
    if needs_grad:
        weight = tl.load(weights + row).to(dtype) * scale
        if kind == JENSEN_SHANNON:
            weight = weight * (1 - beta)
        tl.debug_barrier()
        for at in tl.range(0, width, block):
            inside = at + column < width
            z = tl.load(student + at + column, mask=inside, other=0.0).to(dtype) * scale
            t = tl.load(target + at + column, mask=inside, other=0.0).to(dtype) * other_scale
            log_p = z - student_peak - student_log_sum
            _, gap = divergence_entry(log_p, t - target_peak - target_log_sum, beta, kind)
            p = tl.exp(log_p)
            if kind == FORWARD:
                grad = p - gap
            else:
                grad = p * (gap - mean)
            tl.store(student + at + column, weight * grad, mask=inside)


@triton.jit
def log_prob_row(  # noqa: ANN201, PLR0913
    logits, ids, weights, values, stride, width, scale,  # noqa: ANN001
    needs_grad: tl.constexpr, block: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """`log p_y` of the sampled id y.

    With gradient, write `weight (1[a = y] - p_a)` over the logits.
    """
    row = tl.program_id(0).to(tl.int64)
    student = logits + row * stride
    column = tl.arange(0, block)
    sampled = tl.load(ids + row)
    z_sampled = tl.load(student + sampled).to(dtype) * scale
    peak, log_sum = peak_and_log_sum(student, width, scale, block, dtype)
    tl.store(values + row, z_sampled - peak - log_sum)
    if needs_grad:
        weight = tl.load(weights + row).to(dtype) * scale
        tl.debug_barrier()
        for at in tl.range(0, width, block):
            inside = at + column < width
            z = tl.load(student + at + column, mask=inside, other=0.0).to(dtype) * scale
            grad = tl.where(at + column == sampled, 1.0, 0.0) - tl.exp(z - peak - log_sum)
            tl.store(student + at + column, weight * grad, mask=inside)


def divergence_rows(
    kind: Literal["reverse", "forward", "jensen_shannon"],
    beta: float,
    logits: Float[Tensor, "R V"],
    others: Float[Tensor, "R V"],
    weights: Float[Tensor, " R"] | None,
    scales: tuple[float, float] = (1.0, 1.0),
) -> Float[Tensor, " R"]:
    """Values of one divergence. With weights the gradient of the products replaces `logits`.

    Args:
        kind: the divergence.
        beta: weight of the target in the mixture, in (0, 1).
        logits: the student's products, before their scale, contiguous along the vocabulary.
        others: the target's products.
        weights: weight of each value in the loss.
        scales: scales of the student's and the target's products.
    """
    values = logits.new_empty(len(logits))
    if len(logits):
        divergence_row[(len(logits),)](
            logits, others, values if weights is None else weights.contiguous(), values,
            logits.stride(0), others.stride(0), logits.shape[1], *scales, beta, kind=KINDS[kind],
            needs_grad=weights is not None, block=block_width(logits), dtype=kernel_dtype(logits),
        )  # fmt: skip
    return values


def log_prob_rows(
    logits: Float[Tensor, "R V"],
    ids: Int[Tensor, " R"],
    weights: Float[Tensor, " R"] | None,
    scale: float = 1.0,
) -> Float[Tensor, " R"]:
    """Log-probabilities of the sampled ids.

    With weights the gradient of the products replaces `logits`.
    """
    values = logits.new_empty(len(logits))
    if len(logits):
        log_prob_row[(len(logits),)](
            logits, ids, values if weights is None else weights.contiguous(), values,
            logits.stride(0), logits.shape[1], scale,
            needs_grad=weights is not None, block=block_width(logits), dtype=kernel_dtype(logits),
        )  # fmt: skip
    return values


def block_width(logits: Tensor) -> int:
    """Vocabulary entries of a block: a power of two, at most `BLOCK`."""
    return min(BLOCK, triton.next_power_of_2(logits.shape[1]))


def kernel_dtype(logits: Tensor) -> tl.dtype:
    """The precision of all sums: float32, or float64 for float64 logits."""
    return tl.float64 if logits.dtype == torch.float64 else tl.float32

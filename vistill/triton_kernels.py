# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportReturnType=false, reportIndexIssue=false
"""Rows of logits to values and gradients in one Triton kernel: the backend for CUDA, from the extra `triton`.

One program a row. It reads the row three times (normalisers, value, gradient) and writes the gradient over the
student's logits, so nothing of size `[rows, vocabulary]` exists beside the two readings. The same formulas as
`kernels.py`; one test suite holds both, this one through Triton's interpreter, and compiles it for a GPU.
"""

from typing import Final, Literal

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

REVERSE, FORWARD, JENSEN_SHANNON = (tl.constexpr(i) for i in range(3))
KINDS: Final = {"reverse": 0, "forward": 1, "jensen_shannon": 2}
#: Vocabulary entries a program looks at together.
BLOCK: Final = 4096


@triton.jit
def normaliser(start, width, scale, block: tl.constexpr, wide: tl.constexpr):  # noqa: ANN001, ANN201
    """Largest entry m of a row of scaled logits and `log sum exp(z - m)`: apart they keep their digits."""
    column = tl.arange(0, block)
    peak = tl.full([], float("-inf"), wide)
    total = tl.zeros([], wide)
    for at in tl.range(0, width, block):
        z = (
            tl.load(start + at + column, mask=at + column < width, other=float("-inf")).to(wide)
            * scale
        )
        higher = tl.maximum(peak, tl.max(z, axis=0))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(peak - safe) + tl.sum(tl.exp(z - safe), axis=0)
        peak = higher
    return peak, tl.log(total)


@triton.jit
def gap_to_mean(log_p, log_q, beta, kind: tl.constexpr):  # noqa: ANN001, ANN201
    """Entries of the divergence and its gap: `(entry, g)` with slope `p (g - sum p g)`, times (1 - beta) for JSD."""
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
def divergence_row(  # noqa: ANN201, PLR0913  a kernel's arguments are its memory
    logits, others, weights, values, stride, other_stride, width, scale, other_scale, beta,  # noqa: ANN001
    kind: tl.constexpr, learns: tl.constexpr, block: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Value of one row; where it learns, its weighted gradient over its logits."""
    row = tl.program_id(0).to(tl.int64)
    own, other = logits + row * stride, others + row * other_stride
    column = tl.arange(0, block)
    own_peak, own_rest = normaliser(own, width, scale, block, wide)
    other_peak, other_rest = normaliser(other, width, other_scale, block, wide)
    value = tl.zeros([], wide)
    mean = tl.zeros([], wide)
    for at in tl.range(0, width, block):
        inside = at + column < width
        z = tl.load(own + at + column, mask=inside, other=0.0).to(wide) * scale
        t = tl.load(other + at + column, mask=inside, other=0.0).to(wide) * other_scale
        log_p = z - own_peak - own_rest
        entry, gap = gap_to_mean(log_p, t - other_peak - other_rest, beta, kind)
        value += tl.sum(tl.where(inside, entry, 0.0), axis=0)
        mean += tl.sum(tl.where(inside, tl.exp(log_p) * gap, 0.0), axis=0)
    tl.store(values + row, value)
    if learns:
        weight = tl.load(weights + row).to(wide) * scale
        if kind == JENSEN_SHANNON:
            weight = weight * (1 - beta)
        tl.debug_barrier()
        for at in tl.range(0, width, block):
            inside = at + column < width
            z = tl.load(own + at + column, mask=inside, other=0.0).to(wide) * scale
            t = tl.load(other + at + column, mask=inside, other=0.0).to(wide) * other_scale
            log_p = z - own_peak - own_rest
            _, gap = gap_to_mean(log_p, t - other_peak - other_rest, beta, kind)
            p = tl.exp(log_p)
            if kind == FORWARD:
                slope = p - gap
            else:
                slope = p * (gap - mean)
            tl.store(own + at + column, weight * slope, mask=inside)


@triton.jit
def log_prob_row(  # noqa: ANN201, PLR0913
    logits, ids, weights, values, stride, width, scale,  # noqa: ANN001
    learns: tl.constexpr, block: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """`log p_y` of the sampled id; where it learns, `weight (1[a = y] - p_a)` over its logits."""
    row = tl.program_id(0).to(tl.int64)
    own = logits + row * stride
    column = tl.arange(0, block)
    picked = tl.load(ids + row)
    z_picked = tl.load(own + picked).to(wide) * scale
    peak, rest = normaliser(own, width, scale, block, wide)
    tl.store(values + row, z_picked - peak - rest)
    if learns:
        weight = tl.load(weights + row).to(wide) * scale
        tl.debug_barrier()
        for at in tl.range(0, width, block):
            inside = at + column < width
            z = tl.load(own + at + column, mask=inside, other=0.0).to(wide) * scale
            slope = tl.where(at + column == picked, 1.0, 0.0) - tl.exp(z - peak - rest)
            tl.store(own + at + column, weight * slope, mask=inside)


def divergence_rows(
    kind: Literal["reverse", "forward", "jensen_shannon"],
    beta: float,
    logits: Float[Tensor, "R V"],
    others: Float[Tensor, "R V"],
    weights: Float[Tensor, " R"] | None,
    scales: tuple[float, float] = (1.0, 1.0),
) -> Float[Tensor, " R"]:
    """Values of one divergence; with weights the products' gradient replaces `logits`.

    Args:
        kind: which divergence.
        beta: weight of the target in the mixture, inside (0, 1).
        logits: the student's products, before their scale; contiguous along the vocabulary.
        others: the target's products.
        weights: what each value is multiplied by.
        scales: of student and target.
    """
    values = logits.new_empty(len(logits))
    if len(logits):
        divergence_row[(len(logits),)](
            logits, others, values if weights is None else weights.contiguous(), values,
            logits.stride(0), others.stride(0), logits.shape[1], *scales, beta,
            kind=KINDS[kind], learns=weights is not None, block=width_of(logits), wide=wide_of(logits),
        )  # fmt: skip
    return values


def log_prob_rows(
    logits: Float[Tensor, "R V"],
    ids: Int[Tensor, " R"],
    weights: Float[Tensor, " R"] | None,
    scale: float = 1.0,
) -> Float[Tensor, " R"]:
    """Log-probabilities of the sampled ids; with weights the products' gradient replaces `logits`."""
    values = logits.new_empty(len(logits))
    if len(logits):
        log_prob_row[(len(logits),)](
            logits, ids, values if weights is None else weights.contiguous(), values,
            logits.stride(0), logits.shape[1], scale,
            learns=weights is not None, block=width_of(logits), wide=wide_of(logits),
        )  # fmt: skip
    return values


def width_of(logits: Tensor) -> int:
    """A power of two, no wider than the vocabulary needs."""
    return min(BLOCK, triton.next_power_of_2(logits.shape[1]))


def wide_of(logits: Tensor) -> tl.dtype:
    """The precision everything is computed in: never less than float32."""
    return tl.float64 if logits.dtype == torch.float64 else tl.float32

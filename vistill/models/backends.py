"""Choose the kernels of a model's head, and the precision of its products.

Before use, a test on the device itself shows that a backend's numbers equal torch's, and that the
error of a precision is within its bound.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor

from vistill.errors import ConfigError
from vistill.functional.divergences import forward_kl, jensen_shannon, reverse_kl
from vistill.functional.heads import Head, HeadPrecision, Kernels
from vistill.functional.kernels import log_prob_rows
from vistill.functional.rows import RowRule, States, apply_row_rules
from vistill.models.loading import VLM

#: Rows, vocabulary and hidden size of the test: several blocks, the last one shorter.
CHECK_SHAPE = (3, 9000, 32)
#: Standard deviation of the heads' entries. With larger ones a single token takes all probability,
#: and a gradient is the difference of nearly equal numbers.
HEAD_STD = 0.2
#: Largest difference from torch, relative to the largest entry.
TOLERANCE = 1e-5
#: Largest error of logits, of values and gradients of a loss by the precision of a head's operands,
#: relative to the largest entry, against float64. bf16 has 8 significant bits, TF32 has 11.
HEAD_BOUND = {"fp32": 1e-4, "tf32": 2e-3, "bf16": 1e-2}
INSTALL_HINT = "pip install 'vistill[triton]'"


def with_kernels(vlm: VLM, requested: Literal["auto", "torch", "triton"]) -> VLM:
    """The model with Triton kernels if they are requested and pass the test.

    Otherwise the model is returned unchanged, and a warning gives the reason. `auto` requests them
    on CUDA devices only. The numbers are the same.
    """
    if requested == "torch" or (requested == "auto" and vlm.device.type != "cuda"):
        return vlm
    reason = backend_failure(vlm.device)
    if reason is None:
        return replace(vlm, kernels="triton")
    warnings.warn(
        f"{vlm.source}: the loss runs in torch, because {reason}. The numbers are the same, but it"
        " is slower.",
        stacklevel=2,
    )
    return vlm


@cache
def backend_failure(device: torch.device) -> str | None:
    """Why the Triton kernels cannot be used on a device, or None if all agree with torch."""
    try:
        import triton
    except ImportError:
        return f"the extra `triton` is not installed ({INSTALL_HINT})"
    if device.type != "cuda" and not triton.knobs.runtime.interpret:  # pyright: ignore[reportAttributeAccessIssue]
        return "Triton needs a CUDA device"
    try:
        difference = max(
            kernel_difference(rule, num_others, device) for rule, num_others in VERIFIED
        )
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
        OSError,
        triton.TritonError,
    ) as error:
        return f"its kernels failed on {device} with {type(error).__name__}: {error}"
    if difference <= TOLERANCE:
        return None
    return f"its kernels differ from torch's by {difference:.1e} on {device}"


VERIFIED: tuple[tuple[Callable[..., Tensor], int], ...] = (
    (reverse_kl, 1),
    (forward_kl, 1),
    (partial(jensen_shannon, beta=0.3), 1),
    (log_prob_rows, 0),
)
"""Rules with a Triton kernel, and how many passes they take next to the student's."""


def kernel_difference(rule: Callable[..., Tensor], num_others: int, device: torch.device) -> float:
    """Largest relative difference of values and gradients between the backends, on random rows."""
    rows, vocabulary, width = CHECK_SHAPE
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(device)

    hidden, weight = draw(rows, width), HEAD_STD * draw(vocabulary, width)
    others = [
        States(draw(rows, width), Head(HEAD_STD * draw(vocabulary, width)))
        for _ in range(num_others)
    ]
    weights = torch.rand(rows, generator=g).to(device) + 0.1
    ids = torch.arange(rows, device=device) * 2999 if rule is log_prob_rows else None
    row_rule = RowRule(rule, tuple(range(num_others)), weights, ids)

    def values_and_gradients(kernels: Kernels) -> list[Tensor]:
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.enable_grad():
            (values,) = apply_row_rules(h, Head(w, kernels=kernels), others, [row_rule])
            return [values.detach(), *torch.autograd.grad((values * weights).sum(), (h, w))]

    pairs = zip(values_and_gradients("triton"), values_and_gradients("torch"), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def with_head_precision(
    vlm: VLM,
    requested: Literal["auto", "fp32", "tf32", "bf16"],
    dtype: torch.dtype,
    measure: Callable[[HeadPrecision, torch.device], float] | None = None,
) -> VLM:
    """The model whose loss multiplies with the head in this precision, after a test on the device.

    `auto` is bf16 where a step runs in bf16 on a CUDA device, fp32 elsewhere. A float32 head of
    a real model takes six times as long in fp32 (docs/performance.md). The test does not read the
    model, so every start of a run on a device chooses the same.

    Args:
        vlm: the model.
        requested: the setting.
        dtype: precision of a step.
        measure: gives the error of a precision on a device, by default `head_error`.

    Raises:
        ConfigError: C101, the device cannot compute in the requested precision.
    """
    is_half = vlm.device.type == "cuda" and dtype is torch.bfloat16
    precision: HeadPrecision = requested if requested != "auto" else "bf16" if is_half else "fp32"
    reason = None if precision == "fp32" else head_failure(precision, vlm.device, measure)
    if reason is None:
        return replace(vlm, head_precision=precision)
    if requested == "auto":
        warnings.warn(
            f"{vlm.source}: the loss multiplies with the head in fp32, because {reason}. It is"
            " slower and more exact.",
            stacklevel=2,
        )
        return replace(vlm, head_precision="fp32")
    raise ConfigError(
        "C101",
        f"train.head_precision = {precision}, but the device is {vlm.device}",
        why=reason,
        fix="train.head_precision=auto",
    )


@cache
def head_failure(
    precision: HeadPrecision,
    device: torch.device,
    measure: Callable[[HeadPrecision, torch.device], float] | None = None,
) -> str | None:
    """Why the head cannot compute in a precision on a device, or None if its error is bounded."""
    if precision == "tf32" and device.type != "cuda":
        return "only CUDA devices have TF32"
    error, bound = (measure or head_error)(precision, device), HEAD_BOUND[precision]
    if error <= bound:
        return None
    return f"its error in {precision} is {error:.1e} of the largest entry on {device}, not {bound}"


@torch.no_grad()
def head_error(precision: HeadPrecision, device: torch.device) -> float:
    """Largest error of logits, KL values and gradients against float64, on random rows.

    Relative to the largest entry. The sums of bf16 are compared too: against float64 products of
    the rounded operands, which they equal to `TOLERANCE`; a device that adds in bf16 fails.
    """
    rows, vocabulary, width = 16, 3000, 512
    g = torch.Generator().manual_seed(0)
    hidden, other = (torch.randn(rows, width, generator=g) for _ in range(2))
    weight = torch.randn(vocabulary, width, generator=g) * width**-0.5
    weights = torch.rand(rows, generator=g) + 0.1

    def results(dtype: torch.dtype, where: torch.device, kind: HeadPrecision) -> list[Tensor]:
        h, o, w, k = (x.to(where, dtype) for x in (hidden, other, weight, weights))
        head = Head(w.requires_grad_(), precision=kind)
        logits = head.project(h, torch.empty(rows, vocabulary, dtype=dtype, device=where))
        states = h.clone().requires_grad_()
        with torch.enable_grad():
            rule = RowRule(reverse_kl, (0,), k)
            (values,) = apply_row_rules(states, head, [States(o, head.detached())], [rule])
            gradients = torch.autograd.grad((values * k).sum(), (states, w))
        return [logits.clone(), values.detach(), *gradients]

    def difference(a: Tensor, b: Tensor) -> float:
        return float((a.double().cpu() - b).abs().max() / b.abs().max())

    exact = results(torch.float64, torch.device("cpu"), "fp32")
    computed = results(torch.float32, device, precision)
    errors = [difference(a, b) for a, b in zip(computed, exact, strict=True)]
    if precision == "bf16":
        rounded = hidden.bfloat16().double() @ weight.bfloat16().double().T
        errors.append(difference(computed[0], rounded) * HEAD_BOUND["bf16"] / TOLERANCE)
    return max(errors)

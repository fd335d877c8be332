"""Which kernels a model's head uses. A backend proves on this very device that its numbers are torch's own."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor

from vistill.functional.divergences import forward_kl, jensen_shannon, reverse_kl
from vistill.functional.heads import Head, Kernels
from vistill.functional.rows import RowRule, States, apply_row_rules, log_prob_rows
from vistill.models.loading import VLM

#: Rows, vocabulary and width of the proof: several blocks, the last one ragged.
PROOF = (3, 9000, 32)
#: Of the heads' entries: where one token takes all probability, a gradient is a difference of nearly equal numbers.
SPREAD = 0.2
#: Largest difference from torch's own, relative to the largest entry.
TOLERANCE = 1e-5
HINT = "pip install 'vistill[triton]'"


def with_kernels(vlm: VLM, wanted: Literal["auto", "torch", "triton"]) -> VLM:
    """The model with Triton kernels where they are wanted and prove themselves; else as it is, and a warning says why.

    `auto` asks for them on CUDA devices alone. The numbers are the same either way.
    """
    if wanted == "torch" or (wanted == "auto" and vlm.device.type != "cuda"):
        return vlm
    reason = backend_failure(vlm.device)
    if reason is None:
        return replace(vlm, kernels="triton")
    warnings.warn(
        f"{vlm.source}: the loss runs in plain torch, because {reason}. The numbers are the same, only slower.",
        stacklevel=2,
    )
    return vlm


@cache
def backend_failure(device: torch.device) -> str | None:
    """Why the Triton kernels cannot be used on a device; None where every one of them agrees with torch."""
    try:
        import triton
    except ImportError:
        return f"the extra `triton` is not installed ({HINT})"
    if device.type != "cuda" and not triton.knobs.runtime.interpret:  # pyright: ignore[reportAttributeAccessIssue]
        return "Triton needs a CUDA device"
    try:
        difference = max(difference_of(rule, num_others, device) for rule, num_others in VERIFIED)
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
        OSError,
        triton.TritonError,
    ) as error:
        return f"its kernels failed on {device} with {type(error).__name__}: {error}"
    return (
        None
        if difference <= TOLERANCE
        else f"its kernels differ from torch's by {difference:.1e} on {device}"
    )


VERIFIED: tuple[tuple[Callable[..., Tensor], int], ...] = (
    (reverse_kl, 1),
    (forward_kl, 1),
    (partial(jensen_shannon, beta=0.3), 1),
    (log_prob_rows, 0),
)
"""Rules with a kernel, and the readings they take beside the student's."""


def difference_of(rule: Callable[..., Tensor], num_others: int, device: torch.device) -> float:
    """Largest relative difference of values and gradients between the backends, on fixed random rows."""
    rows, vocabulary, width = PROOF
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g).to(device)
    hidden, weight = draw(rows, width), SPREAD * draw(vocabulary, width)
    others = [
        States(draw(rows, width), Head(SPREAD * draw(vocabulary, width))) for _ in range(num_others)
    ]
    weights, ids = (
        torch.rand(rows, generator=g).to(device) + 0.1,
        torch.arange(rows, device=device) * 2999,
    )
    ask = RowRule(rule, tuple(range(num_others)), weights, ids if rule is log_prob_rows else None)

    def made(kernels: Kernels) -> list[Tensor]:
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.enable_grad():
            (values,) = apply_row_rules(h, Head(w, kernels=kernels), others, [ask])
            return [values.detach(), *torch.autograd.grad((values * weights).sum(), (h, w))]

    pairs = zip(made("triton"), made("torch"), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)

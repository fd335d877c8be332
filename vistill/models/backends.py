"""Choose the kernels of a model's head.

Before use, a test on the device itself shows that the backend's numbers equal torch's.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor

from vistill.functional.divergences import forward_kl, jensen_shannon, reverse_kl
from vistill.functional.heads import Head, Kernels
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

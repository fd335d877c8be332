"""The language-model head as a value: hidden states in, logits over the shared vocabulary out."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vistill.flops_counter import count


def full_tensor(weight: Tensor) -> Tensor:
    """A sharded weight as one tensor, gathered once for all rows; anything else as it is.

    Every rank learns from rows of its own, so what comes back is summed over ranks and each keeps its shard.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return weight
    from torch.distributed.tensor import DTensor, Partial

    if not isinstance(weight, DTensor):
        return weight
    return weight.full_tensor(grad_placements=[Partial()] * weight.device_mesh.ndim)


Kernels = Literal["torch", "triton"]


@dataclass(frozen=True)
class Head:
    """`logits = softcap * tanh((scale * h W^T + b) / softcap)`, already sliced to the shared vocabulary."""

    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, " V"] | None = None
    softcap: float | None = None
    scale: float = 1.0
    kernels: Kernels = "torch"
    """What turns rows of logits into values and gradients; the numbers are the same."""

    def logits(self, hidden: Float[Tensor, "R H"]) -> Float[Tensor, "R V"]:
        """Logits in float32 or wider; the product runs in the weight's own precision, whatever autocast says."""
        count(head_rows=len(hidden), flops=2.0 * len(hidden) * self.weight.numel())
        with torch.autocast(hidden.device.type, enabled=False):
            return self.finish(
                F.linear(hidden.to(self.weight.dtype), self.weight, self.bias).to(self.wide)
            )

    @property
    def wide(self) -> torch.dtype:
        """The precision of logits."""
        return torch.promote_types(self.weight.dtype, torch.float32)

    @property
    def linear(self) -> bool:
        """Whether logits are linear in the hidden states: no bias, no softcap."""
        return self.bias is None and self.softcap is None

    @torch.no_grad()
    def project(
        self, hidden: Float[Tensor, "R H"], out: Float[Tensor, "R V"]
    ) -> Float[Tensor, "R V"]:
        """The product alone, before scale and softcap, written into `out` (of the wide precision)."""
        if self.weight.dtype == out.dtype:
            torch.mm(hidden.to(out.dtype), self.weight.T, out=out)
        elif (
            self.weight.is_cuda and out.dtype == torch.float32
        ):  # the sum stays in float32 instead of being rounded
            torch.mm(hidden.to(self.weight.dtype), self.weight.T, out_dtype=torch.float32, out=out)
        else:
            out.copy_(hidden.to(self.weight.dtype) @ self.weight.T)
        return out if self.bias is None else out.add_(self.bias)

    def finish(self, product: Float[Tensor, "R V"]) -> Float[Tensor, "R V"]:
        """Scale and softcap; the product itself where there is neither."""
        logits = product if self.scale == 1.0 else product * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def slope(
        self, logits: Float[Tensor, "R V"], gradient: Float[Tensor, "R V"]
    ) -> Float[Tensor, "R V"]:
        """From the gradient of the finished logits to that of the product."""
        if self.softcap is not None:
            gradient = gradient * (1 - (logits / self.softcap) ** 2)
        return gradient if self.scale == 1.0 else gradient * self.scale

    def detached(self) -> "Head":
        """The same head without gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, weight=self.weight.detach(), bias=bias)

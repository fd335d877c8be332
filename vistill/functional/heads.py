"""The language-model head as a value: from hidden states to logits over the shared vocabulary."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vistill.flops_counter import count

Kernels = Literal["torch", "triton"]


def full_tensor(weight: Tensor) -> Tensor:
    """Gather a sharded weight into one tensor, once for all rows. Return other weights unchanged.

    Every rank computes the loss of its own rows. So the gradient is summed over the ranks, and each
    rank keeps the part for its shard.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return weight
    from torch.distributed.tensor import DTensor, Partial

    if not isinstance(weight, DTensor):
        return weight
    return weight.full_tensor(grad_placements=[Partial()] * weight.device_mesh.ndim)


@dataclass(frozen=True)
class Head:
    """`logits = softcap * tanh((scale * h W^T + b) / softcap)`, sliced to the shared vocabulary.

    The product `h W^T + b` is computed first. Scale and softcap are applied to it afterwards.
    """

    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, " V"] | None = None
    softcap: float | None = None
    scale: float = 1.0
    kernels: Kernels = "torch"
    """The backend that computes values and gradients from logits. The numbers are the same."""

    def logits(self, hidden: Float[Tensor, "R H"]) -> Float[Tensor, "R V"]:
        """Logits in float32 or wider.

        The product runs in the precision of the weight, whatever autocast says.
        """
        count(head_rows=len(hidden), flops=2.0 * len(hidden) * self.weight.numel())
        with torch.autocast(hidden.device.type, enabled=False):
            return self.product_to_logits(
                F.linear(hidden.to(self.weight.dtype), self.weight, self.bias).to(self.logits_dtype)
            )

    @property
    def logits_dtype(self) -> torch.dtype:
        """The precision of logits: float32, or float64 if the weight has it."""
        return torch.promote_types(self.weight.dtype, torch.float32)

    @property
    def is_linear(self) -> bool:
        """Whether logits are linear in the hidden states: no bias, no softcap."""
        return self.bias is None and self.softcap is None

    @torch.no_grad()
    def project(
        self, hidden: Float[Tensor, "R H"], out: Float[Tensor, "R V"]
    ) -> Float[Tensor, "R V"]:
        """Write the product `h W^T + b` into `out`, which has `logits_dtype`."""
        if self.weight.dtype == out.dtype:
            torch.mm(hidden.to(out.dtype), self.weight.T, out=out)
        elif self.weight.is_cuda and out.dtype == torch.float32:
            # Accumulate in float32 and keep the sum unrounded.
            torch.mm(hidden.to(self.weight.dtype), self.weight.T, out_dtype=torch.float32, out=out)
        else:
            out.copy_(hidden.to(self.weight.dtype) @ self.weight.T)
        return out if self.bias is None else out.add_(self.bias)

    def product_to_logits(self, product: Float[Tensor, "R V"]) -> Float[Tensor, "R V"]:
        """Apply scale and softcap. Return the product itself if there is neither."""
        logits = product if self.scale == 1.0 else product * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def product_grad(
        self, logits: Float[Tensor, "R V"], grad: Float[Tensor, "R V"]
    ) -> Float[Tensor, "R V"]:
        """The gradient of the product, from the gradient of the logits."""
        if self.softcap is not None:
            grad = grad * (1 - (logits / self.softcap) ** 2)
        return grad if self.scale == 1.0 else grad * self.scale

    def detached(self) -> "Head":
        """The same head without gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, weight=self.weight.detach(), bias=bias)

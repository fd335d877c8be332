"""The language-model head as a value: from hidden states to logits over the shared vocabulary."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vistill.flops_counter import count

Kernels = Literal["torch", "triton"]
HeadPrecision = Literal["fp32", "tf32", "bf16"]

#: Rows of logits start at multiples of this many entries. The fast matrix products of a GPU load 16
#: bytes at once, and with an odd vocabulary every other row would start in between: they are not
#: available then. 64 entries of bf16 are 128 bytes, one line of its cache. A CPU does not need it.
ROW_MULTIPLE = {"cpu": 1, "cuda": 64}


def row_width(vocabulary: int, device: torch.device) -> int:
    """Entries from one row of logits to the next: the vocabulary, up to its next multiple."""
    multiple = ROW_MULTIPLE.get(device.type, 1)
    return -(-vocabulary // multiple) * multiple


@contextmanager
def tf32_products() -> Iterator[None]:
    """Inside, products of float32 on a CUDA device round their operands to TF32.

    The setting is that of the process, so no other thread may compute meanwhile: a recipe with
    `train.overlap` and `train.head_precision=tf32` is refused (C101).
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


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
    uncut: Float[Tensor, "U H"] | None = None
    """The weight with its rows beyond the vocabulary, without gradient. See `product_weight`."""
    precision: HeadPrecision = "fp32"
    """Precision of the operands of the loss's products, for a weight in float32. Sums, logits and
    the gradient of the head are float32. `models/backends.py` chooses it."""
    rounded: Float[Tensor, "W H"] | None = None
    """`product_weight` in the precision of the operands, made once for many products."""

    @property
    def product_weight(self) -> Float[Tensor, "W H"]:
        """The weight for matrix products: V rows, or `row_width` rows if the model has them.

        The rows beyond the vocabulary give the products aligned sizes. Nothing reads their logits,
        and the gradient of their logits is 0.
        """
        width = row_width(len(self.weight), self.weight.device)
        if self.uncut is None or self.bias is not None or width > len(self.uncut):
            return self.weight
        return self.uncut[:width]

    def logits(self, hidden: Float[Tensor, "R H"]) -> Float[Tensor, "R V"]:
        """Logits in float32 or wider.

        The product runs in the precision of the weight, whatever autocast says.
        """
        count(head_rows=len(hidden), flops=2.0 * len(hidden) * self.weight.numel())
        weight = self.weight if torch.is_grad_enabled() else self.product_weight
        keeps_sum = not torch.is_grad_enabled() and weight.is_cuda
        with torch.autocast(hidden.device.type, enabled=False):
            if keeps_sum and weight.dtype != self.logits_dtype:  # `F.linear` would round the sum
                width = row_width(len(self.weight), weight.device)
                buffer = hidden.new_empty(len(hidden), width, dtype=self.logits_dtype)
                return self.product_to_logits(self.project(hidden, buffer))
            product = F.linear(hidden.to(weight.dtype), weight, self.bias)
            if len(weight) > len(self.weight):
                product = product[:, : len(self.weight)]
            return self.product_to_logits(product.to(self.logits_dtype))

    @property
    def logits_dtype(self) -> torch.dtype:
        """The precision of logits: float32, or float64 if the weight has it."""
        return torch.promote_types(self.weight.dtype, torch.float32)

    @property
    def is_linear(self) -> bool:
        """Whether logits are linear in the hidden states: no bias, no softcap."""
        return self.bias is None and self.softcap is None

    @property
    def rounds_operands(self) -> bool:
        """Whether operands of the loss's products are rounded to bf16."""
        return self.precision == "bf16" and self.weight.dtype == torch.float32

    def products(self) -> AbstractContextManager[None]:
        """The context of the loss's products. Without `tf32` torch's own setting counts."""
        return tf32_products() if self.precision == "tf32" else nullcontext()

    def operand(self, x: Tensor) -> Tensor:
        """A factor of a product with the weight, in the precision of the operands.

        A CPU rounds to bf16 and multiplies in float32: its products in bf16 would round the sum
        too. A GPU multiplies in bf16 and adds in float32.
        """
        if not self.rounds_operands:
            return x.to(self.weight.dtype)
        return x.to(torch.bfloat16) if x.is_cuda else x.to(torch.bfloat16).float()

    def operand_weight(self) -> Float[Tensor, "W H"]:
        """`product_weight` in the precision of the operands."""
        if self.rounded is not None:
            return self.rounded
        return self.operand(self.product_weight) if self.rounds_operands else self.product_weight

    @torch.no_grad()
    def with_operands(self) -> "Head":
        """The same head with its rounded weight, for many products."""
        return replace(self, rounded=self.operand_weight()) if self.rounds_operands else self

    @torch.no_grad()
    def project(
        self, hidden: Float[Tensor, "R H"], buffer: Float[Tensor, "R W"]
    ) -> Float[Tensor, "R V"]:
        """Write the product `h W^T + b` into the first columns of a buffer and return them.

        Args:
            hidden: states.
            buffer: of `logits_dtype`, with `row_width` or V columns. Those beyond the vocabulary
                get any values.
        """
        vocabulary, weight = len(self.weight), self.operand_weight()
        weight = weight if len(weight) <= buffer.shape[1] else weight[:vocabulary]
        out = buffer[:, : len(weight)]
        with self.products():
            if weight.dtype == out.dtype:
                torch.mm(self.operand(hidden), weight.T, out=out)
            elif weight.is_cuda and out.dtype == torch.float32:
                # Accumulate in float32 and keep the sum unrounded.
                torch.mm(self.operand(hidden), weight.T, out_dtype=torch.float32, out=out)
            else:
                out.copy_(self.operand(hidden) @ weight.T)
        out = buffer[:, :vocabulary]
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

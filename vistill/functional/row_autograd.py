"""Row values as an autograd function that computes the gradient in the forward pass if it can."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vistill.functional.row_chunks import LogitsLoss, RowGradients


class RowValues(torch.autograd.Function):
    """Values of some rules. With known loss weights their gradient is computed in the same pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, loss: LogitsLoss
    ) -> Tensor:
        """Values [A, R] of A rules.

        With a frozen head and one rule, the gradient of each row's own value is enough for any
        weights, so unknown weights count as 1.
        """
        weights, is_head_trainable = loss.loss_weights(), weight.requires_grad
        if weights is None and not is_head_trainable and len(loss.rules) == 1:
            weights = torch.ones(1, len(hidden), device=hidden.device)
        result = loss.run(hidden, weights, is_head_trainable)
        ctx.loss, ctx.is_head_trainable, ctx.gradients = loss, is_head_trainable, result
        ctx.save_for_backward(hidden, weights)
        return result.values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Scale the gradient of the forward pass, or compute it now if the weights were others.

        Scaling is in place, so it is done once. A second backward pass computes the gradient again.
        """
        (grad,) = grads
        hidden, weights = ctx.saved_tensors
        gradients: RowGradients | None = ctx.gradients
        ctx.gradients = None
        if gradients is not None and weights is not None:
            factor = common_factor(grad, weights)
            is_per_row = not ctx.is_head_trainable and len(grad) == 1
            if factor is None and is_per_row and bool((weights != 0).all()):
                factor = (grad / weights)[0, :, None] if gradients.bias is None else None
            if factor is not None:
                scaled = [None if x is None else x.mul_(factor) for x in gradients[1:]]
                return (*scaled, None)
        recomputed: RowGradients = ctx.loss.run(hidden, grad, ctx.is_head_trainable)
        return (*recomputed[1:], None)


def common_factor(grad: Float[Tensor, "A R"], weights: Float[Tensor, "A R"]) -> Tensor | None:
    """The scalar c with `grad = c * weights`, or None if there is none."""
    index = weights.abs().argmax()
    largest = weights.flatten()[index]
    if float(largest) == 0:
        return torch.zeros((), device=grad.device) if not bool(grad.any()) else None
    factor = grad.flatten()[index] / largest
    matches = (grad - factor * weights).abs().max() <= 1e-6 * (factor * largest).abs()
    return factor if bool(matches) else None

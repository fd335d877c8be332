"""The language-model head as a value: hidden states in, logits over the shared vocabulary out."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Head:
    """`logits = softcap * tanh((scale * h W^T + b) / softcap)`, already sliced to the shared vocabulary."""

    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, " V"] | None = None
    softcap: float | None = None
    scale: float = 1.0

    def logits(self, hidden: Float[Tensor, "R H"]) -> Float[Tensor, "R V"]:
        """Logits in float32; the product runs in the weight's own precision, whatever autocast says around it."""
        with torch.autocast(hidden.device.type, enabled=False):
            logits = F.linear(hidden.to(self.weight.dtype), self.weight, self.bias).float()
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def detached(self) -> "Head":
        """The same head without gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return Head(self.weight.detach(), bias, self.softcap, self.scale)

"""Offload a frozen model: its weights stay in host memory while no pass reads with it.

The head stays on the device, because the loss projects hidden states through it later.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class OffloadedWeights:
    """Weights that are on the device only inside `on_device`. Copies are exact: no number changes.

    The host copies are made once, in pinned memory for a CUDA device, and never written. To offload
    the weights, the device copies are dropped.
    """

    def __init__(self, model: torch.nn.Module, head: torch.nn.Module, device: torch.device) -> None:
        head_ids = {id(p) for p in head.parameters()}
        self.device, self.depth = device, 0
        self.weights = [p for p in model.parameters() if id(p) not in head_ids]
        assert not any(p.requires_grad for p in self.weights), "a trained model cannot be offloaded"
        self.host = [pin_to_host(p.data, pinned=device.type == "cuda") for p in self.weights]
        self.move_to_host()

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Keep the weights on the device inside the block. A nested block moves nothing."""
        self.depth += 1
        if self.depth == 1:
            for weight, host in zip(self.weights, self.host, strict=True):
                weight.data = host.to(self.device, non_blocking=True, copy=True)
        try:
            yield
        finally:
            self.depth -= 1
            if self.depth == 0:
                self.move_to_host()

    def move_to_host(self) -> None:
        """Drop the device copies and use the host copies."""
        for weight, host in zip(self.weights, self.host, strict=True):
            weight.data = host


def pin_to_host(weight: Tensor, pinned: bool) -> Tensor:
    """A copy in host memory, pinned if asked."""
    copy = torch.empty(weight.shape, dtype=weight.dtype, pin_memory=pinned)
    return copy.copy_(weight)

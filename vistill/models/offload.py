"""A frozen model whose weights wait in host memory while nobody reads with it. Its head stays: the loss projects it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class OffloadedWeights:
    """Weights that are on the device only inside `here`; copies are exact, so no number changes.

    The host's copies are made once, in pinned memory where a CUDA device is, and never written: coming back is
    forgetting the device's copies.
    """

    def __init__(self, model: torch.nn.Module, head: torch.nn.Module, device: torch.device) -> None:
        kept = {id(p) for p in head.parameters()}
        self.device, self.depth = device, 0
        self.weights = [p for p in model.parameters() if id(p) not in kept]
        assert not any(p.requires_grad for p in self.weights), "a model that learns cannot rest"
        self.host = [pin_to_host(p.data, pinned=device.type == "cuda") for p in self.weights]
        self.leave()

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """The weights are on the device; inside another `here` nothing moves."""
        self.depth += 1
        if self.depth == 1:
            for weight, host in zip(self.weights, self.host, strict=True):
                weight.data = host.to(self.device, non_blocking=True, copy=True)
        try:
            yield
        finally:
            self.depth -= 1
            if self.depth == 0:
                self.leave()

    def leave(self) -> None:
        """Only the host's copies stay."""
        for weight, host in zip(self.weights, self.host, strict=True):
            weight.data = host


def pin_to_host(weight: Tensor, pinned: bool) -> Tensor:
    """A copy in host memory."""
    copy = torch.empty(weight.shape, dtype=weight.dtype, pin_memory=pinned)
    return copy.copy_(weight)

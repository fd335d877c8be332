"""Simulate offloading on a CPU: weights of an offloaded model are NaN, so that a read shows."""

from dataclasses import replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vistill.models.offload import OffloadedWeights


class NanOffloadedWeights(OffloadedWeights):
    """Weights that are valid inside `on_device` and NaN outside; the head stays on the device."""

    def move_to_host(self):
        for weight, host in zip(self.weights, self.host, strict=True):
            weight.data = torch.full_like(host, torch.nan)


def with_nan_offload(vlm):
    """The same frozen model, offloaded with NaN weights."""
    return replace(
        vlm, offload=NanOffloadedWeights(vlm.model, vlm.model.get_output_embeddings(), vlm.device)
    )


class TwoDevices(TorchDispatchMode):
    """Simulate a device next to the host, on a CPU: operations do not take tensors of both.

    The weights that an offloaded model has outside `on_device` are on the host, all other tensors
    on the device. As torch does, copies between both are allowed, and operations on the host alone.
    """

    def __init__(self):
        super().__init__()
        self.host = set()
        self.kept = []
        """Models' host copies, kept so that no other tensor gets their addresses."""

    def add_host_copies(self, offload):
        """Count the host copies of an offloaded model as tensors of the host."""
        self.kept.append(offload.host)
        self.host |= {x.untyped_storage()._cdata for x in offload.host}

    def is_on_host(self, x):
        return x.untyped_storage()._cdata in self.host

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        values = tree_leaves((args, kwargs or {}))
        tensors = [x for x in values if isinstance(x, torch.Tensor) and x.dim()]
        places = {self.is_on_host(x) for x in tensors}
        if len(places) == 2 and function.overloadpacket is not torch.ops.aten.copy_:
            raise RuntimeError(f"Expected all tensors to be on the same device: {function}")
        return function(*args, **(kwargs or {}))

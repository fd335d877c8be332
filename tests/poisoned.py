"""Simulate offloading on a CPU: weights of an offloaded model are NaN, so that a read shows."""

from dataclasses import replace

import torch

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

"""A second device on a machine that has none: while a model is off-loaded, its weights are NaN, so a read at that time shows."""

from dataclasses import replace

import torch

from vistill.models.offload import OffloadedWeights


class NanOffloadedWeights(OffloadedWeights):
    """Weights that are right inside `here` and NaN outside; the head stays, as on a real device."""

    def leave(self):
        for weight, host in zip(self.weights, self.host, strict=True):
            weight.data = torch.full_like(host, torch.nan)


def with_nan_offload(vlm):
    """The same frozen model, resting where it cannot be read."""
    return replace(
        vlm, offload=NanOffloadedWeights(vlm.model, vlm.model.get_output_embeddings(), vlm.device)
    )

"""The precision of a step."""

from contextlib import AbstractContextManager, nullcontext

import torch

from vistill.training.settings import TrainSettings


def training_dtype(train: TrainSettings, device: torch.device) -> torch.dtype:
    """The dtype of a step: bf16 if the recipe says so, or on a CUDA device if it says `auto`."""
    half = train.precision == "bf16" or (train.precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if half else torch.float32


def autocast(train: TrainSettings, device: torch.device) -> AbstractContextManager[object]:
    """Autocast to the dtype of a step; nothing for float32."""
    if training_dtype(train, device) is torch.bfloat16:
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def share_weight_copies(
    train: TrainSettings, device: torch.device
) -> AbstractContextManager[object]:
    """Inside, all autocast contexts share the copies of weights that they make.

    Autocast drops its copies when its outermost context ends. Without this the prompts of a
    micro-batch and each part of its responses would hold copies of their own. No weight may change
    inside.
    """
    if training_dtype(train, device) is torch.bfloat16:
        return torch.autocast(device.type, torch.bfloat16, enabled=False)
    return nullcontext()

"""The precision a step is read and learnt in."""

from contextlib import AbstractContextManager, nullcontext

import torch

from vistill.training.settings import TrainSettings


def precision_of(train: TrainSettings, device: torch.device) -> torch.dtype:
    """bf16 where the device has it and the recipe does not forbid it."""
    half = train.precision == "bf16" or (train.precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if half else torch.float32


def autocast(train: TrainSettings, device: torch.device) -> AbstractContextManager[object]:
    """Autocast of the student."""
    if precision_of(train, device) is torch.bfloat16:
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()

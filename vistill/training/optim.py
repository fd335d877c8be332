"""AdamW and learning-rate schedules as functions of the step."""

import math

import torch
from torch import nn

from vistill.training.settings import ScheduleSettings, TrainSettings


def lr_factor(step: int, steps: int, schedule: ScheduleSettings) -> float:
    """Factor on the peak rate at step `step` (from 0) of `steps`: linear warm-up, then the shape."""
    warmup = schedule.warmup * steps
    if step < warmup:
        return (step + 1) / max(1.0, warmup)
    if schedule.kind == "constant":
        return 1.0
    progress = (step - warmup) / max(1.0, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * progress)) if schedule.kind == "cosine" else 1 - progress


def freeze_parts(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Stop gradient on parts named in the recipe."""
    marks = {"vision": ("visual", "vision"), "language": ("language_model",), "head": ("lm_head",)}
    for name, parameter in model.named_parameters():
        if any(mark in name for part in parts for mark in marks[part]):
            parameter.requires_grad_(False)


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW; matrices are decayed, vectors are not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, betas=settings.betas)

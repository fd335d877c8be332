"""AdamW and learning-rate schedules as functions of the step."""

import math

import torch
from torch import nn

from vistill.training.settings import ScheduleSettings, TrainSettings


def warmup_steps(steps: int, schedule: ScheduleSettings) -> int:
    """Whole steps that warm up: the share of the steps, rounded down."""
    return int(schedule.warmup * steps + 1e-9)  # 0.29 * 100 is 28.999999999999996


def lr_factor(step: int, steps: int, schedule: ScheduleSettings, floor: float = 0.0) -> float:
    """Factor on the peak rate at step `step` (from 0) of `steps`: linear warm-up, then the shape. Never above 1.

    The first of w warm-up steps has 1/w and the last one 1: no update is spent on a rate of 0. Cosine and linear
    would reach `floor` in the step after the last.

    Args:
        step: the step, from 0.
        steps: steps of the run.
        schedule: share of the warm-up, and the shape.
        floor: what the decay ends at, as a share of the peak.
    """
    warmup = warmup_steps(steps, schedule)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.kind == "constant":
        return 1.0
    progress = (step - warmup) / max(1, steps - warmup)
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.kind == "cosine" else 1 - progress
    return floor + (1 - floor) * shape


def learning_rate(step: int, steps: int, train: TrainSettings) -> float:
    """The rate of step `step` (from 0) of `steps`."""
    floor = train.schedule.min_lr / train.lr if train.lr > 0 else 0.0
    return train.lr * lr_factor(step, steps, train.schedule, floor)


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
    filled = [g for g in groups if g["params"]]
    return torch.optim.AdamW(filled, lr=settings.lr, betas=settings.betas, eps=settings.eps)

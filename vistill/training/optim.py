"""AdamW and learning-rate schedules as functions of the step."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from vistill.errors import ConfigError
from vistill.models.loading import VLM
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


def freeze_parts(vlm: VLM, parts: tuple[str, ...]) -> None:
    """Stop gradient on every weight of the named parts (C110 where one is empty or nothing is left to train).

    `vision` is the tower with its projector, `language` the decoder with its input embedding, `head` the output
    embedding. A weight that two parts share, a tied head, stops when either is named.
    """
    weights = {part: weights_of(modules) for part, modules in vlm.family.parts(vlm.model).items()}
    for part in parts:
        if not weights.get(part):
            what, why = (
                f"the model has no weights in {part!r}",
                "freezing it would do nothing without saying so",
            )
            raise wrong_parts(parts, what, why, [p for p in parts if weights.get(p)])
    everything = {id(weight) for weight in vlm.model.parameters()}

    def left(chosen: Sequence[str]) -> bool:
        return bool(everything - {id(weight) for part in chosen for weight in weights[part]})

    if not left(parts):
        tied = {id(weight) for weight in weights["head"]} & {
            id(weight) for weight in weights["language"]
        }
        why = (
            "the head is tied to the input embedding, which belongs to 'language'"
            if tied
            else "no part is left"
        )
        fewer = next(parts[:n] for n in range(len(parts) - 1, -1, -1) if left(parts[:n]))
        raise wrong_parts(parts, "nothing is left to train", why, fewer)
    for part in parts:
        for weight in weights[part]:
            weight.requires_grad_(False)


def weights_of(parts: Iterable[nn.Module | nn.Parameter]) -> list[nn.Parameter]:
    """The parameters of modules, and parameters that stand alone."""
    return [
        p
        for part in parts
        for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())
    ]


def wrong_parts(parts: Sequence[str], what: str, why: str, better: Sequence[str]) -> ConfigError:
    """C110."""
    return ConfigError(
        "C110",
        what,
        where=f"train.freeze=[{','.join(parts)}]",
        why=why,
        fix=f"train.freeze=[{','.join(better)}]",
    )


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW; matrices are decayed, vectors are not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    filled = [g for g in groups if g["params"]]
    return torch.optim.AdamW(filled, lr=settings.lr, betas=settings.betas, eps=settings.eps)

"""AdamW and learning-rate schedules as functions of the step."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from vistill.errors import ConfigError, quote_setting
from vistill.models.loading import VLM
from vistill.training.settings import ScheduleSettings, TrainSettings


def warmup_steps(steps: int, schedule: ScheduleSettings) -> int:
    """Steps of the warm-up: its share of all steps, rounded down."""
    return int(schedule.warmup * steps + 1e-9)  # 0.29 * 100 is 28.999999999999996


def lr_factor(step: int, steps: int, schedule: ScheduleSettings, floor: float = 0.0) -> float:
    """Factor on the peak rate: linear warm-up, then the shape of the schedule. Never above 1.

    The first of w warm-up steps has 1/w and the last one 1, so no update has a rate of 0. Cosine
    and linear reach `floor` in the step after the last.

    Args:
        step: the step, from 0.
        steps: steps of the run.
        schedule: share of the warm-up, and the shape.
        floor: where the decay ends, as a share of the peak.
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
    """Freeze every weight of the named parts (C110: a part is empty, or nothing is left to train).

    `vision` is the tower with its projector, `tower` the tower alone, `language` the decoder with
    its input embedding, `head` the output embedding. A weight of two parts, such as a tied head, is
    frozen if either is named.
    """
    weights = {
        part: parameters_in(modules) for part, modules in vlm.family.parts(vlm.model).items()
    }
    for part in parts:
        if not weights.get(part):
            what, why = (
                f"the model has no weights in {part!r}",
                "freezing it would silently do nothing",
            )
            raise freeze_error(parts, what, why, [p for p in parts if weights.get(p)])
    everything = {id(weight) for weight in vlm.model.parameters() if weight.requires_grad}

    def has_trainable(frozen: Sequence[str]) -> bool:
        return bool(everything - {id(weight) for part in frozen for weight in weights[part]})

    if not has_trainable(parts):
        tied = {id(weight) for weight in weights["head"]} & {
            id(weight) for weight in weights["language"]
        }
        why = (
            "the head is tied to the input embedding, which belongs to 'language'"
            if tied
            else "no part is left"
        )
        fewer = next(parts[:n] for n in range(len(parts) - 1, -1, -1) if has_trainable(parts[:n]))
        raise freeze_error(parts, "nothing is left to train", why, fewer)
    for part in parts:
        for weight in weights[part]:
            weight.requires_grad_(False)


def parameters_in(parts: Iterable[nn.Module | nn.Parameter]) -> list[nn.Parameter]:
    """All parameters of modules and single parameters."""
    return [
        p
        for part in parts
        for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())
    ]


def freeze_error(parts: Sequence[str], what: str, why: str, possible: Sequence[str]) -> ConfigError:
    """C110."""
    return ConfigError(
        "C110",
        what,
        where=f"train.freeze=[{','.join(parts)}]",
        why=why,
        fix=quote_setting("train.freeze", f"[{','.join(possible)}]"),
    )


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices, none on vectors."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    not_empty = [g for g in groups if g["params"]]
    return torch.optim.AdamW(not_empty, lr=settings.lr, betas=settings.betas, eps=settings.eps)

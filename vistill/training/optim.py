"""AdamW and learning-rate schedules as functions of the step."""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vistill.errors import ConfigError, quote_setting
from vistill.models.loading import VLM
from vistill.models.quantization import require_bitsandbytes
from vistill.training.half_precision import HalfPrecisionOptimizer
from vistill.training.optimizer_bytes import HALF_PRECISIONS
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
        kept = [part for part in weights if everything & {id(w) for w in weights[part]}]
        why = "no part is left"
        if not any(id(weight) in everything for weight in weights["head"]):
            why = f"the weights that are trained (adapters) are in {' and '.join(map(repr, kept))}"
        elif {id(w) for w in weights["head"]} & {id(w) for w in weights["language"]}:
            why = "the head is tied to the input embedding, which belongs to 'language'"
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


def make_optimizer(
    model: nn.Module, settings: TrainSettings, precision: str = "auto", seed: int = 0
) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices, none on vectors.

    Args:
        model: whose weights with gradient are trained.
        settings: of the update.
        precision: `student.precision`. It says how bf16 weights are updated.
        seed: of the run, for stochastic rounding.

    Raises:
        MissingExtraError: E301, bitsandbytes is not installed.
    """
    named = {p: name for name, p in model.named_parameters() if p.requires_grad}
    groups = [
        {"params": [p for p in named if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    not_empty = [g for g in groups if g["params"]]
    kind = optimizer_kind(settings.optimizer, next(iter(named)).device)
    make = partial(adamw, kind, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    if any(p.dtype == torch.bfloat16 for p in named) and precision in HALF_PRECISIONS:
        seed_of_rounding = None if precision == "bf16" else seed
        return HalfPrecisionOptimizer(not_empty, make, named, seed_of_rounding)
    return make(not_empty)


def optimizer_kind(setting: str, device: torch.device) -> str:
    """What `train.optimizer` is on a device: `auto` is fused on CUDA, and plain elsewhere."""
    if setting != "auto":
        return setting
    return "adamw_fused" if device.type == "cuda" else "adamw"


def adamw(kind: str, groups: list[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
    """An AdamW of torch, or the one of bitsandbytes with moments of 8 bits."""
    if kind == "adamw_8bit":
        return require_optimizer(kind).optim.AdamW8bit(groups, **settings)
    return torch.optim.AdamW(groups, **settings, fused=True if kind == "adamw_fused" else None)


def require_optimizer(setting: str) -> Any:
    """The module bitsandbytes if the optimizer needs it (E301 if it is not installed)."""
    if setting != "adamw_8bit":
        return None
    return require_bitsandbytes("train.optimizer=adamw_8bit", "it keeps moments of 8 bits")


def place_steps(optimizer: torch.optim.Optimizer) -> None:
    """Keep the loaded numbers of updates as the optimizer does.

    bitsandbytes counts in an integer, a fused AdamW on the device, torch's own on the host.
    """
    settings = optimizer.param_groups[0]
    if isinstance(optimizer, HalfPrecisionOptimizer):
        settings = optimizer.make([{"params": [nn.Parameter(torch.zeros(1))]}]).param_groups[0]
    for weight, slots in optimizer.state.items():
        step = slots.get("step")
        if isinstance(step, Tensor) and not step.is_floating_point():
            slots["step"] = int(step)
        elif isinstance(step, Tensor) and settings.get("fused"):
            slots["step"] = step.to(weight.device)

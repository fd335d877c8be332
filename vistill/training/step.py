"""One update: write responses, read them, measure, minimise, guard, step."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vistill.batch import Objective, ScoredBatch, Signals, reduce_terms
from vistill.functional.segments import segment_mean
from vistill.rollouts.engine import RolloutEngine, Sampling
from vistill.rollouts.settings import RolloutSettings
from vistill.signals.concentration import top_mass_share
from vistill.training.checkpoint import TrainState
from vistill.training.optim import lr_factor
from vistill.training.reading import (
    Cast,
    Reading,
    lay_out,
    prepare,
    read_with_gradient,
    read_without_gradient,
    write_groups,
)
from vistill.training.settings import TrainSettings
from vistill.types import Prompt, RolloutGroup, Writer


@dataclass(frozen=True)
class Update:
    """Everything an update needs that does not change from step to step."""

    cast: Cast
    engine: RolloutEngine
    objective: Objective
    optimizer: torch.optim.Optimizer
    train: TrainSettings
    rollout: RolloutSettings
    seed: int
    num_steps: int
    poll: Callable[[], None] = lambda: None
    observe: Callable[[str], AbstractContextManager[None]] = field(default=lambda phase: nullcontext())
    """Times a phase; outside bit identity."""

    @property
    def per_prompt(self) -> int:
        """Rollouts of each prompt; the data set has one."""
        return 1 if self.objective.writer is Writer.DATA else self.rollout.per_prompt


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind."""

    metrics: dict[str, float]
    groups: list[RolloutGroup]
    batch: ScoredBatch
    signals: Signals
    finite: bool


def train_step(update: Update, prompts: Sequence[Prompt], state: TrainState) -> StepResult:
    """Step `state.step + 1`. Weights change only at its end; until then it can be thrown away and done again."""
    step = state.step
    passes = update.objective.passes()
    sampling = Sampling(
        update.seed,
        step,
        update.rollout.temperature,
        update.rollout.top_p,
        update.rollout.max_new_tokens,
        update.rollout.rows_per_call,
    )
    with update.observe("rollout"):
        groups = write_groups(update.cast, update.engine, update.objective, prompts, sampling, update.per_prompt)
    responses = lay_out(groups, update.seed, step, update.cast.student.device)
    with update.observe("encode"):
        reading = prepare(update.cast, groups, passes, responses, update.train.micro_batch)
    with update.observe("score"):
        batch = read_without_gradient(update.cast, reading, passes, update.poll)
        signals = update.objective.signals(batch)
    with update.observe("learn"):
        loss, terms = accumulate(update, reading, batch, signals)
        lr = update.train.lr * lr_factor(step, update.num_steps, update.train.schedule)
        norm, finite = apply_update(update, loss, lr)
    metrics = {"loss": loss, **{f"loss/{name}": value for name, value in terms.items()}}
    metrics |= {"lr": lr, "grad_norm": norm, "finite": float(finite)}
    metrics |= describe(batch, signals, groups)
    return StepResult(metrics, groups, batch, signals, finite)


def accumulate(
    update: Update, reading: Reading, batch: ScoredBatch, signals: Signals
) -> tuple[float, dict[str, float]]:
    """Backward over whole prompts; the step's global counts make the split invisible."""
    update.optimizer.zero_grad(set_to_none=True)
    update.cast.student.model.train()
    counts = batch.responses.counts()
    total, parts = 0.0, {}
    for part in reading.micro_batches:
        update.poll()
        with autocast(update):
            micro, cut = read_with_gradient(update.cast, reading, batch, update.objective.passes(), signals, part)
        loss, terms = reduce_terms(update.objective.terms(micro, cut), counts)
        loss.backward()
        total += loss.item()
        for name, value in terms.items():
            parts[name] = parts.get(name, 0.0) + value.item()
    update.cast.student.model.eval()
    return total, parts


def autocast(update: Update) -> AbstractContextManager[object]:
    """bf16 where the device has it and the recipe does not forbid it."""
    device = update.cast.student.device.type
    wanted = update.train.precision
    if wanted == "bf16" or (wanted == "auto" and device == "cuda"):
        return torch.autocast(device, torch.bfloat16)
    return nullcontext()


def apply_update(update: Update, loss: float, lr: float) -> tuple[float, bool]:
    """Clip and step, unless something is not finite: then the weights stay as they are."""
    parameters = [p for group in update.optimizer.param_groups for p in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, update.train.clip_norm))
    finite = math.isfinite(norm) and math.isfinite(loss)
    if finite:
        for group in update.optimizer.param_groups:
            group["lr"] = lr
        update.optimizer.step()
    update.optimizer.zero_grad(set_to_none=True)
    return norm, finite


def describe(batch: ScoredBatch, signals: Signals, groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Reproducible facts about the step's responses and signals."""
    responses = batch.responses
    rollouts = [r for group in groups for r in group.rollouts]
    facts = {
        "rollout/tokens": float(responses.num_tokens),
        "rollout/length_mean": responses.num_tokens / responses.num_rollouts,
        "rollout/truncated_share": sum(r.finish.is_truncated() for r in rollouts) / len(rollouts),
        "rollout/distinct_share": len({r.ids for r in rollouts}) / len(rollouts),
    }
    if "visual_advantage" in signals:
        facts |= describe_advantage(batch, signals)
    return facts


def describe_advantage(batch: ScoredBatch, signals: Signals) -> dict[str, float]:
    """Health of visual advantage: its mean, its tail, its ties, and what the groups hold."""
    responses, advantage = batch.responses, signals["visual_advantage"]
    high, weight = signals["high_group"], signals["rollout_weight"]
    mass = float(advantage.sum())
    entropy = -(weight * weight.clamp_min(1e-30).log()).sum() / responses.num_groups
    facts = {
        "va/mean": float(advantage.mean()),
        "va/mean_of_rollouts": float(segment_mean(advantage, responses.rollout, responses.num_rollouts).mean()),
        "va/top10_share": top_mass_share(advantage, 0.1),
        "va/zero_share": float((advantage == 0).float().mean()),
        "va/high_group_zero_share": share(advantage[high] == 0),
        "va/high_group_va_share": float(advantage[high].sum()) / mass if mass > 0 else math.nan,
        "weight/min": float(weight.min()),
        "weight/max": float(weight.max()),
        "weight/entropy": float(entropy),
    }
    return {name: value for name, value in facts.items() if math.isfinite(value)}


def share(mask: Tensor) -> float:
    """Mean of a mask; NaN where it is empty."""
    return float(mask.float().mean()) if len(mask) else math.nan

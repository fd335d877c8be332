"""One step: write responses, read them, measure, minimise, guard, update."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from vistill.batch import ScoredBatch, Signals, reduce_terms, term_coefficients
from vistill.faults import fault
from vistill.rollouts.engine import sampling_for_step
from vistill.training.context import StepContext
from vistill.training.finite import (
    counts_of,
    non_finite_memory,
    non_finite_readings,
    non_finite_signals,
)
from vistill.training.journal import chain_key
from vistill.training.oom import halve_micro_batches
from vistill.training.optim import learning_rate
from vistill.training.response_source import write_groups
from vistill.training.run_state import RunState
from vistill.training.step_inputs import (
    Models,
    StepInputs,
    encode_step,
    flatten_responses,
    parts_with_gradient,
    score_without_gradient,
)
from vistill.training.student_copies import update_ema
from vistill.types import Pass, Prompt, RolloutGroup


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind."""

    metrics: dict[str, float]
    groups: list[RolloutGroup]
    batch: ScoredBatch
    signals: Signals
    memory: dict[str, float]
    """What the method remembers from here on; that of the step before where an update was not finite."""
    finite: bool
    updates_made: int
    """Updates that changed the weights; with `updates` above 1 one can be made where another was not finite."""


def train_step(
    context: StepContext, prompts: Sequence[Prompt], state: RunState, epochs: Sequence[int] = ()
) -> StepResult:
    """Step `state.step + 1`. Until the first weight changes it can be thrown away and done again."""
    step, objective = state.step, context.objective
    models = context.models.at_step(context.seed, step)
    passes = objective.passes()
    with context.observe("rollout"):
        groups = responses_of(
            context, models, prompts, step, epochs, chain_key(state.chain, state.gone)
        )
    rewards = None if context.rewards is None else context.rewards.of(groups)
    responses = flatten_responses(groups, context.seed, step, models.student.device, rewards)
    with context.observe("encode"):
        reading = encode_step(models, groups, passes, responses, context.split)
    with context.observe("score"):
        read = score_passes(context, models, reading, passes)
        memory = dict(state.memory)
        batch = replace(read, memory=memory, progress=step / context.num_steps)
        bad_rows = non_finite_readings(batch)
        signals = bad_rows or objective.signals(batch)
        bad = counts_of(bad_rows) or counts_of(non_finite_signals(signals))
    with context.observe("learn"):
        if not bad:
            batch, bad = probe_gradients(context, reading, batch, signals, step)
        remembered = memory if bad else objective.remember(batch, signals)
        bad = bad or non_finite_memory(remembered)
        learnt = (
            skip_update(context, bad, step)
            if bad
            else update_student(context, reading, batch, signals, step)
        )
    metrics = learnt.metrics | {
        f"memory/{name}": batch.memory[name] for name in sorted(batch.memory)
    }
    metrics |= rollout_metrics(batch, groups) | ({} if bad else objective.metrics(batch, signals))
    kept = remembered if learnt.finite else memory
    return StepResult(metrics, groups, batch, signals, kept, learnt.finite, learnt.updates_made)


def responses_of(
    context: StepContext,
    models: Models,
    prompts: Sequence[Prompt],
    step: int,
    epochs: Sequence[int],
    chain: str,
) -> list[RolloutGroup]:
    """The step's responses: those of the journal where it has them, else fresh ones, which go into it."""
    found = None if context.journal is None else context.journal.find(step + 1, prompts, chain)
    if found is not None:
        return found
    sampling = sampling_for_step(context.rollout, context.seed, step, weights=step)
    at_most = min(sampling.rows_per_call, len(prompts) * context.response_source.per_prompt)
    rows = lambda times: max(context.response_source.per_prompt, at_most >> times)

    def write(times: int) -> list[RolloutGroup]:
        fault("rollout.begin")
        asked = sampling if times == 0 else replace(sampling, rows_per_call=rows(times))
        return write_groups(models, context.response_source, prompts, asked, epochs)

    groups = context.ladder.run_halving("rollout", rows, write)
    if context.journal is not None:
        context.journal.keep(step + 1, groups, chain)
    return groups


def score_passes(
    context: StepContext, models: Models, reading: StepInputs, passes: Sequence[Pass]
) -> ScoredBatch:
    """Every pass without gradient, in the precision that the passes with gradient have: else no ratio would be 1."""
    micro_batches = lambda times: halve_micro_batches(reading.micro_batches, times)

    def read(times: int) -> ScoredBatch:
        fault("score.begin")
        with models.on_device(passes), context.autocast():
            part = replace(reading, micro_batches=micro_batches(times))
            return score_without_gradient(models, part, passes, context.poll)

    return context.ladder.run_halving("score", micro_batches, read)


@dataclass(frozen=True)
class UpdateResult:
    """Loss, terms, rate and norm of a step's updates, averaged, and whether all of them were finite."""

    metrics: dict[str, float]
    finite: bool
    updates_made: int


def update_student(
    context: StepContext, reading: StepInputs, batch: ScoredBatch, signals: Signals, step: int
) -> UpdateResult:
    """The step's updates: one, or its prompts in so many parts. Signals wait only before the first."""
    lr = learning_rate(step, context.num_steps, context.train)
    parts = parts_of(reading.micro_batches, context.objective.updates)
    sums: dict[str, float] = {}
    updates_made = 0
    for number, micro_batches in enumerate(parts):
        poll = context.poll if number == 0 else lambda: None
        loss, terms = accumulate(
            context, replace(reading, micro_batches=micro_batches), batch, signals, poll
        )
        loss = math.nan if fault("learn.loss") else loss
        fault("learn.before_update")
        norm, well = apply_update(context, loss, lr)
        if well:
            update_ema(context.models, context.objective.ema_rate())
        fault("learn.after_update")
        updates_made += well
        for name, value in {"loss": loss, **terms, "grad_norm": norm}.items():
            same = name.startswith("coefficient/")  # in every part
            sums[name] = value if same else sums.get(name, 0.0) + value / len(parts)
    finite = updates_made == len(parts)
    return UpdateResult({**sums, "lr": lr, "finite": float(finite)}, finite, updates_made)


def skip_update(context: StepContext, bad: Mapping[str, int], step: int) -> UpdateResult:
    """A step without any update: what it would have learnt from is not finite. It counts like one whose loss is not."""
    lr = learning_rate(step, context.num_steps, context.train)
    facts = {f"non_finite/{name}": float(number) for name, number in bad.items()}
    return UpdateResult(
        {"loss": math.nan, "grad_norm": math.nan, **facts, "lr": lr, "finite": 0.0}, False, 0
    )


def parts_of(micro_batches: list[list[int]], updates: int) -> list[list[list[int]]]:
    """Whole prompts in `updates` parts of nearly equal size, cut into micro-batches no larger than before."""
    if updates == 1:
        return [micro_batches]
    groups = [g for part in micro_batches for g in part]
    widest = max(len(part) for part in micro_batches)
    edges = [round(i * len(groups) / updates) for i in range(updates + 1)]
    shares = [groups[a:b] for a, b in itertools.pairwise(edges) if b > a]
    return [[share[i : i + widest] for i in range(0, len(share), widest)] for share in shares]


def accumulate(
    context: StepContext,
    reading: StepInputs,
    batch: ScoredBatch,
    signals: Signals,
    poll: Callable[[], None],
    only: Sequence[str] | None = None,
) -> tuple[float, dict[str, float]]:
    """Backward over whole prompts, of all terms or of some; the update's own counts make the split invisible."""

    def sizes(times: int) -> object:
        cut = with_smaller_parts(reading, times)
        return cut.micro_batches, [cut.parts(groups) for groups in cut.micro_batches]

    return context.ladder.run_halving(
        "learn",
        sizes,
        lambda times: backward(
            context, with_smaller_parts(reading, times), batch, signals, poll, only
        ),
    )


def with_smaller_parts(reading: StepInputs, times: int) -> StepInputs:
    """The reading in micro-batches and parts that were halved so many times."""
    if times == 0:
        return reading
    longest = max(
        sum(len(r.ids) for g in part for r in reading.groups[g].rollouts)
        for part in reading.micro_batches
    )
    tokens = min(reading.split.part_tokens, longest) >> times
    split = replace(reading.split, part_tokens=max(1, tokens))
    return replace(
        reading, micro_batches=halve_micro_batches(reading.micro_batches, times), split=split
    )


def backward(
    context: StepContext,
    reading: StepInputs,
    batch: ScoredBatch,
    signals: Signals,
    poll: Callable[[], None],
    only: Sequence[str] | None,
) -> tuple[float, dict[str, float]]:
    """One attempt at the gradient, from zero."""
    context.optimizer.zero_grad(set_to_none=True)
    context.models.student.model.train()
    passes = context.objective.passes()
    counts = reading.counts()
    total, found = 0.0, {}
    for micro, cut in parts_with_gradient(
        context.models, reading, batch, passes, signals, context.autocast, poll
    ):
        fault("learn.part")
        made = context.objective.terms(micro, cut)
        loss, terms = reduce_terms(
            made if only is None else [t for t in made if t.name in only], counts
        )
        if (
            loss.requires_grad
        ):  # without a picture, nothing reaches a model of which only `vision` learns
            loss.backward()
        total += loss.item()
        for name, value in terms.items():
            found[f"loss/{name}"] = found.get(f"loss/{name}", 0.0) + value.item()
        found |= {f"coefficient/{name}": value for name, value in term_coefficients(made).items()}
    context.models.student.model.eval()
    return total, found


def probe_gradients(
    context: StepContext, reading: StepInputs, batch: ScoredBatch, signals: Signals, step: int
) -> tuple[ScoredBatch, dict[str, int]]:
    """Measure the gradient norms the method asked for, and let it learn them before the update.

    Returns:
        The batch with the memory it has learnt, and how many norms are not finite: then the memory is the old one.
    """
    probe = context.objective.probe()
    if probe is None or step % probe.every != 0:
        return batch, {}
    norms = []
    for names in probe.sums:
        accumulate(context, reading, batch, signals, context.poll, names)
        gradients = [
            p.grad
            for group in context.optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
    context.optimizer.zero_grad(set_to_none=True)
    bad = sum(not math.isfinite(norm) for norm in norms)
    if bad:
        return batch, {"gradient_probe": bad}
    return replace(batch, memory=context.objective.learn_norms(norms, batch.memory)), {}


def apply_update(context: StepContext, loss: float, lr: float) -> tuple[float, bool]:
    """Clip and step, unless something is not finite: then the weights stay as they are."""
    parameters = [p for group in context.optimizer.param_groups for p in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, context.train.clip_norm))
    finite = math.isfinite(norm) and math.isfinite(loss)
    if finite:
        for group in context.optimizer.param_groups:
            group["lr"] = lr
        context.optimizer.step()
    context.optimizer.zero_grad(set_to_none=True)
    return norm, finite


def rollout_metrics(batch: ScoredBatch, groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Reproducible facts about the step's responses, whatever the method."""
    responses = batch.responses
    rollouts = [r for group in groups for r in group.rollouts]
    facts = {
        "rollout/tokens": float(responses.num_tokens),
        "rollout/length_mean": responses.num_tokens / responses.num_rollouts,
        "rollout/truncated_share": sum(r.finish.is_truncated() for r in rollouts) / len(rollouts),
        "rollout/distinct_share": len({r.ids for r in rollouts}) / len(rollouts),
    }
    if responses.reward is not None:
        facts["reward/mean"] = float(responses.reward.mean())
    return facts

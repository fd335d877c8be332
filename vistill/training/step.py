"""One step: write responses, read them, compute signals and loss, update the student."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch

from vistill.batch import ScoredBatch, Signals, reduce_terms, term_coefficients
from vistill.faults import fault
from vistill.flops_counter import count, counting, is_counting
from vistill.phases import (
    GRADIENTS,
    LEARNING,
    READINGS,
    RESPONSES,
    SCORING,
    WRITING,
    count_done,
    open_phase,
    restart_count,
)
from vistill.plugin_calls import method_call
from vistill.rollouts.engine import sampling_for_step
from vistill.training.context import StepContext
from vistill.training.finite import (
    count_places,
    non_finite_memory,
    non_finite_readings,
    non_finite_signals,
)
from vistill.training.journal import chain_key
from vistill.training.metrics_by_part import TEACHER_NUMBER, TermsByTeacher, metrics_by_part
from vistill.training.micro_batches import halve_micro_batches
from vistill.training.models_of_run import Models
from vistill.training.optim import learning_rate
from vistill.training.precision import share_weight_copies
from vistill.training.response_source import write_groups
from vistill.training.run_state import RunState
from vistill.training.step_inputs import (
    StepInputs,
    encode_step,
    flatten_responses,
    parts_with_gradient,
    score_without_gradient,
    with_nan,
)
from vistill.training.student_copies import update_ema
from vistill.training.teacher_scores import other_passes
from vistill.types import Pass, Prompt, RolloutGroup


@dataclass(frozen=True)
class StepResult:
    """The values that a step produces."""

    metrics: dict[str, float]
    groups: list[RolloutGroup]
    batch: ScoredBatch
    signals: Signals
    memory: dict[str, float]
    """The method's memory for the next step; unchanged where an update was not finite."""
    finite: bool
    updates_made: int
    """Updates that changed the weights; with several per step, others may be skipped."""


def train_step(
    context: StepContext, prompts: Sequence[Prompt], state: RunState, epochs: Sequence[int] = ()
) -> StepResult:
    """Take step `state.step + 1`. Until the first weight changes, the step can be done again."""
    step, objective = state.step, context.objective
    models = context.models.at_step(context.seed, step, context.ahead.take(step))
    passes = objective.passes()
    num_responses = len(prompts) * context.response_source.per_prompt
    halvings = context.memory_retry.halvings.get("score", 0)
    with context.observe("encode"):
        context.overlap.begin(models, prompts, passes, context.split, halvings)
    with context.observe("rollout"), open_phase(WRITING, num_responses, RESPONSES):
        past = chain_key(state.chain, state.replaced_rows)
        groups = load_or_write_responses(context, models, prompts, step, epochs, past)
    rewards = None if context.rewards is None else context.rewards.of(groups)
    responses = flatten_responses(groups, context.seed, step, models.student.device, rewards)
    with context.observe("encode"):
        inputs = encode_step(models, groups, passes, responses, context.split)
    readings = responses.num_rollouts * sum(not p.gradient for p in passes)
    with context.observe("score"), open_phase(SCORING, readings, READINGS):
        scored = score_passes(context, models, inputs, passes, step)
        batch = replace(scored, memory=dict(state.memory), progress=step / context.num_steps)
        bad_rows = non_finite_readings(batch)
        with method_call(objective, "signals"):
            signals = bad_rows or objective.signals(batch)
        bad = count_places(bad_rows) or count_places(non_finite_signals(signals))
    with context.observe("learn"), open_phase(LEARNING, responses.num_rollouts, GRADIENTS):
        if not bad:
            batch, bad = probe_gradients(context, inputs, batch, signals, step)
        with method_call(objective, "remember"):
            memory = dict(state.memory) if bad else objective.remember(batch, signals)
        bad = bad or non_finite_memory(memory)
        if bad:
            update = skip_update(context, bad, step)
        else:
            update = update_student(context, inputs, batch, signals, step)
    with method_call(objective, "metrics"):
        own = {} if bad else objective.metrics(batch, signals)
    metrics = {
        **update.metrics,
        **{f"memory/{name}": batch.memory[name] for name in sorted(batch.memory)},
        **rollout_metrics(batch, groups),
        **metrics_by_part(batch, groups, {} if bad else signals, context.models.teacher_names),
        **({} if context.rewards is None else context.rewards.metrics()),
        **own,
    }
    if not update.finite:
        memory = dict(state.memory)
    return StepResult(metrics, groups, batch, signals, memory, update.finite, update.updates_made)


def load_or_write_responses(
    context: StepContext,
    models: Models,
    prompts: Sequence[Prompt],
    step: int,
    epochs: Sequence[int],
    chain: str,
) -> list[RolloutGroup]:
    """The responses of the step from the journal; else new ones, which go into the journal."""
    if context.journal is not None:
        groups = context.journal.find(step + 1, prompts, chain)
        if groups is not None:
            if is_counting():  # the same totals as in a run that was never stopped
                count(**context.journal.counts(step + 1))
            return groups
    source = context.response_source
    sampling = sampling_for_step(context.rollout, context.seed, step, weights=step)
    max_rows = min(sampling.rows_per_call, len(prompts) * source.per_prompt)

    def rows_per_call(times: int) -> int:
        return max(source.per_prompt, max_rows >> times)

    def write(times: int) -> list[RolloutGroup]:
        restart_count()
        fault("rollout.begin")
        halved = replace(sampling, rows_per_call=rows_per_call(times)) if times else sampling
        context.overlap.restart()
        receive = context.overlap.receive if context.overlap.step is not None else None
        return write_groups(models, source, prompts, halved, epochs, receive)

    with counting() if is_counting() else nullcontext({}) as counts:
        groups = context.memory_retry.run_halving("rollout", rows_per_call, write)
    if context.journal is not None:
        context.journal.write(step + 1, groups, chain, counts)
    return groups


def score_passes(
    context: StepContext, models: Models, inputs: StepInputs, passes: Sequence[Pass], step: int
) -> ScoredBatch:
    """Every pass without gradient, in the precision of the passes with gradient.

    In another precision the probability ratio of old and new student would not start at 1.
    """
    scorer = context.teacher_scores
    read_here = passes if scorer is None else other_passes(passes)

    def micro_batches(times: int) -> list[list[int]]:
        return halve_micro_batches(inputs.micro_batches, times)

    def read(times: int) -> ScoredBatch:
        restart_count()
        fault("score.begin")
        with models.on_device(read_here), context.autocast():
            known = context.overlap.known(inputs.groups)
            halved = replace(inputs, micro_batches=micro_batches(times), known=known)
            return score_without_gradient(models, halved, read_here, context.poll)

    batch = context.memory_retry.run_halving("score", micro_batches, read)
    if scorer is not None:
        batch = scorer.add(batch, inputs, passes, models, context.journal, step + 1)
    context.overlap.forget()  # the batch has copies, and the update needs the memory
    broken = {name: with_nan(one) for name, one in batch.passes.items() if fault("score.pass")}
    return replace(batch, passes={**batch.passes, **broken})


@dataclass(frozen=True)
class UpdateResult:
    """The updates of a step."""

    metrics: dict[str, float]
    """Loss, terms, gradient norm and learning rate, averaged over the updates."""
    finite: bool
    """Whether all updates were finite."""
    updates_made: int


def update_student(
    context: StepContext, inputs: StepInputs, batch: ScoredBatch, signals: Signals, step: int
) -> UpdateResult:
    """The updates of a step, one per share of its prompts. Only the first one polls."""
    lr = learning_rate(step, context.num_steps, context.train)
    shares = split_into_updates(inputs.micro_batches, context.objective.requirements.updates)
    means: dict[str, float] = {}
    updates_made = 0
    for number, micro_batches in enumerate(shares):
        poll = context.poll if number == 0 else lambda: None
        share = replace(inputs, micro_batches=micro_batches)
        loss, terms = accumulate_gradient(context, share, batch, signals, poll)
        loss = math.nan if fault("learn.loss") else loss
        fault("learn.before_update")
        context.before_update()
        norm, is_updated = apply_update(context, loss, lr)
        if is_updated:
            rate = context.objective.requirements.ema_rate
            update_ema(context.models, rate, context.seed, step, number)
        fault("learn.after_update")
        updates_made += is_updated
        for name, value in {"loss": loss, **terms, "grad_norm": norm}.items():
            is_constant = name.startswith("coefficient/")  # the same in every share
            parts = 1 if name.startswith("teacher/") else len(shares)  # those are sums over shares
            means[name] = value if is_constant else means.get(name, 0.0) + value / parts
    finite = updates_made == len(shares)
    return UpdateResult({**means, "lr": lr, "finite": float(finite)}, finite, updates_made)


def skip_update(context: StepContext, bad: Mapping[str, int], step: int) -> UpdateResult:
    """No update: values before it are not finite. It counts like an update with a NaN loss."""
    lr = learning_rate(step, context.num_steps, context.train)
    counts = {f"non_finite/{name}": float(number) for name, number in bad.items()}
    metrics = {"loss": math.nan, "grad_norm": math.nan, **counts, "lr": lr, "finite": 0.0}
    return UpdateResult(metrics, False, 0)


def split_into_updates(micro_batches: list[list[int]], updates: int) -> list[list[list[int]]]:
    """Cut the prompts into `updates` shares of nearly equal size.

    Returns:
        The micro-batches of each share, no larger than before.
    """
    if updates == 1:
        return [micro_batches]
    groups = [g for part in micro_batches for g in part]
    size = max(len(part) for part in micro_batches)
    edges = [round(i * len(groups) / updates) for i in range(updates + 1)]
    shares = [groups[a:b] for a, b in itertools.pairwise(edges) if b > a]
    return [[share[i : i + size] for i in range(0, len(share), size)] for share in shares]


def accumulate_gradient(
    context: StepContext,
    inputs: StepInputs,
    batch: ScoredBatch,
    signals: Signals,
    poll: Callable[[], None],
    only: Sequence[str] | None = None,
) -> tuple[float, dict[str, float]]:
    """The gradient of all loss terms, or of those named in `only`.

    The terms are divided by the counts of the whole update, so the micro-batches do not change the
    gradient.

    Returns:
        The loss, and the metrics of its terms.
    """

    def sizes(times: int) -> object:
        halved = with_smaller_parts(inputs, times)
        return halved.micro_batches, [halved.parts(groups) for groups in halved.micro_batches]

    def attempt(times: int) -> tuple[float, dict[str, float]]:
        halved = with_smaller_parts(inputs, times)
        with share_weight_copies(context.train, context.models.student.device):
            return compute_gradient(context, halved, batch, signals, poll, only)

    return context.memory_retry.run_halving("learn", sizes, attempt)


def with_smaller_parts(inputs: StepInputs, times: int) -> StepInputs:
    """The inputs with micro-batches and parts halved `times` times."""
    if times == 0:
        return inputs
    longest = max(
        sum(len(r.ids) for g in part for r in inputs.groups[g].rollouts)
        for part in inputs.micro_batches
    )
    tokens = min(inputs.split.part_tokens, longest) >> times
    split = replace(inputs.split, part_tokens=max(1, tokens))
    micro_batches = halve_micro_batches(inputs.micro_batches, times)
    return replace(inputs, micro_batches=micro_batches, split=split)


def compute_gradient(
    context: StepContext,
    inputs: StepInputs,
    batch: ScoredBatch,
    signals: Signals,
    poll: Callable[[], None],
    only: Sequence[str] | None,
) -> tuple[float, dict[str, float]]:
    """One attempt at the gradient, from zero."""
    objective, student = context.objective, context.models.student
    context.optimizer.zero_grad(set_to_none=True)
    student.model.train()
    passes, counts = objective.passes(), inputs.counts()
    names, device = context.models.teacher_names, student.device
    by_teacher = TermsByTeacher.of(inputs.groups, names, device)
    total = 0.0
    metrics: dict[str, float] = {}
    carried = by_teacher.carried(signals)
    for micro, part_signals in parts_with_gradient(
        context.models, inputs, batch, passes, carried, context.autocast, poll
    ):
        fault("learn.part")
        numbers = part_signals.pop(TEACHER_NUMBER, None)
        with method_call(objective, "terms"):
            terms = objective.terms(micro, part_signals)
        used = terms if only is None else [t for t in terms if t.name in only]
        loss, values = reduce_terms(used, counts)
        by_teacher.add(micro, terms, numbers)
        # if only `vision` is trained, the loss of a prompt without an image has no gradient
        if loss.requires_grad:
            loss.backward()
        count_done(GRADIENTS, micro.responses.num_rollouts)
        total += loss.item()
        for name, value in values.items():
            metrics[f"loss/{name}"] = metrics.get(f"loss/{name}", 0.0) + value.item()
        metrics |= {f"coefficient/{name}": c for name, c in term_coefficients(terms).items()}
    student.model.eval()
    return total, metrics | by_teacher.metrics()


def probe_gradients(
    context: StepContext, inputs: StepInputs, batch: ScoredBatch, signals: Signals, step: int
) -> tuple[ScoredBatch, dict[str, int]]:
    """Measure the gradient norms that the method requests, and put them into its memory.

    Returns:
        The batch with the new memory, and the count of norms that are not finite; with any, the
        memory stays.
    """
    probe = context.objective.requirements.gradient_probe
    if probe is None or step % probe.every != 0:
        return batch, {}
    norms = []
    for names in probe.sums:
        accumulate_gradient(context, inputs, batch, signals, context.poll, names)
        gradients = [p.grad for p in trainable_parameters(context) if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        norms.append(math.nan if fault("learn.probe") else norm)
    context.optimizer.zero_grad(set_to_none=True)
    bad = sum(not math.isfinite(norm) for norm in norms)
    if bad:
        return batch, {"gradient_probe": bad}
    with method_call(context.objective, "learn_norms"):
        memory = context.objective.learn_norms(norms, batch.memory)
    return replace(batch, memory=memory), {}


def trainable_parameters(context: StepContext) -> list[torch.nn.Parameter]:
    """The parameters of the optimizer, in its order."""
    return [p for group in context.optimizer.param_groups for p in group["params"]]


def apply_update(context: StepContext, loss: float, lr: float) -> tuple[float, bool]:
    """Clip the gradient and step the optimizer, unless loss or gradient is not finite.

    Returns:
        The gradient norm before the clip, and whether the weights changed.
    """
    clip_norm = context.train.clip_norm
    norm = float(torch.nn.utils.clip_grad_norm_(trainable_parameters(context), clip_norm))
    finite = math.isfinite(norm) and math.isfinite(loss)
    if finite:
        for group in context.optimizer.param_groups:
            group["lr"] = lr
        context.optimizer.step()
    context.optimizer.zero_grad(set_to_none=True)
    return norm, finite


def rollout_metrics(batch: ScoredBatch, groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Reproducible metrics of the step's responses, the same for every method."""
    responses = batch.responses
    rollouts = [r for group in groups for r in group.rollouts]
    metrics = {
        "rollout/tokens": float(responses.num_tokens),
        "rollout/length_mean": responses.num_tokens / responses.num_rollouts,
        "rollout/truncated_share": sum(r.finish.is_truncated() for r in rollouts) / len(rollouts),
        "rollout/distinct_share": len({r.ids for r in rollouts}) / len(rollouts),
    }
    if responses.reward is not None:
        metrics["reward/mean"] = float(responses.reward.mean())
    return metrics

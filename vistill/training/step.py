"""One step: write responses, read them, measure, minimise, guard, update."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch

from vistill.batch import Objective, ScoredBatch, Signals, coefficients, reduce_terms
from vistill.faults import fault
from vistill.rollouts.engine import sampling_of
from vistill.rollouts.settings import RolloutSettings
from vistill.training.companions import follow
from vistill.training.finite import counts_of, non_finite_memory, non_finite_readings, non_finite_signals
from vistill.training.journal import Journal, chain_key
from vistill.training.ladder import Ladder, halved
from vistill.training.optim import learning_rate
from vistill.training.precision import autocast
from vistill.training.reading import (
    Cast,
    Reading,
    lay_out,
    learning_parts,
    prepare,
    read_without_gradient,
)
from vistill.training.rewards import Rewards
from vistill.training.run_state import RunState
from vistill.training.settings import TrainSettings
from vistill.training.splitting import Split
from vistill.training.writing import Desk, write_groups
from vistill.types import Pass, Prompt, RolloutGroup


@dataclass(frozen=True)
class Update:
    """Everything an update needs that does not change from step to step."""

    cast: Cast
    desk: Desk
    optimizer: torch.optim.Optimizer
    train: TrainSettings
    rollout: RolloutSettings
    seed: int
    num_steps: int
    rewards: Rewards | None = None
    split: Split = Split()
    poll: Callable[[], None] = lambda: None
    observe: Callable[[str], AbstractContextManager[None]] = field(default=lambda phase: nullcontext())
    """Times a phase; outside bit identity."""
    ladder: Ladder = field(default_factory=Ladder)
    """What happens when memory runs out."""
    journal: Journal | None = None
    """Where the step's responses are written down before they are learnt from."""

    @property
    def objective(self) -> Objective:
        """The method."""
        return self.desk.objective

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the student."""
        return autocast(self.train, self.cast.student.device)


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


def train_step(update: Update, prompts: Sequence[Prompt], state: RunState, epochs: Sequence[int] = ()) -> StepResult:
    """Step `state.step + 1`. Until the first weight changes it can be thrown away and done again."""
    step, objective = state.step, update.objective
    cast = update.cast.at_step(update.seed, step)
    passes = objective.passes()
    with update.observe("rollout"):
        groups = responses_of(update, cast, prompts, step, epochs, chain_key(state.chain, state.gone))
    rewards = None if update.rewards is None else update.rewards.of(groups)
    responses = lay_out(groups, update.seed, step, cast.student.device, rewards)
    with update.observe("encode"):
        reading = prepare(cast, groups, passes, responses, update.split)
    with update.observe("score"):
        read = scored(update, cast, reading, passes)
        memory = dict(state.memory)
        batch = replace(read, memory=memory, progress=step / update.num_steps)
        bad_rows = non_finite_readings(batch)
        signals = bad_rows or objective.signals(batch)
        bad = counts_of(bad_rows) or counts_of(non_finite_signals(signals))
    with update.observe("learn"):
        if not bad:
            batch, bad = probe_gradients(update, reading, batch, signals, step)
        remembered = memory if bad else objective.remember(batch, signals)
        bad = bad or non_finite_memory(remembered)
        learnt = skipped(update, bad, step) if bad else learn(update, reading, batch, signals, step)
    metrics = learnt.metrics | {f"memory/{name}": batch.memory[name] for name in sorted(batch.memory)}
    metrics |= describe(batch, groups) | ({} if bad else objective.metrics(batch, signals))
    return StepResult(metrics, groups, batch, signals, remembered if learnt.finite else memory, learnt.finite)


def responses_of(
    update: Update, cast: Cast, prompts: Sequence[Prompt], step: int, epochs: Sequence[int], chain: str
) -> list[RolloutGroup]:
    """The step's responses: those of the journal where it has them, else fresh ones, which go into it."""
    found = None if update.journal is None else update.journal.find(step + 1, prompts, chain)
    if found is not None:
        return found
    sampling = sampling_of(update.rollout, update.seed, step, weights=step)
    at_most = min(sampling.rows_per_call, len(prompts) * update.desk.per_prompt)
    rows = lambda times: max(update.desk.per_prompt, at_most >> times)

    def write(times: int) -> list[RolloutGroup]:
        fault("rollout.begin")
        asked = sampling if times == 0 else replace(sampling, rows_per_call=rows(times))
        return write_groups(cast, update.desk, prompts, asked, epochs)

    groups = update.ladder.climb("rollout", rows, write)
    if update.journal is not None:
        update.journal.keep(step + 1, groups, chain)
    return groups


def scored(update: Update, cast: Cast, reading: Reading, passes: Sequence[Pass]) -> ScoredBatch:
    """Every pass without gradient, in the precision that the passes with gradient have: else no ratio would be 1."""
    micro_batches = lambda times: halved(reading.micro_batches, times)

    def read(times: int) -> ScoredBatch:
        fault("score.begin")
        with cast.here(passes), update.autocast():
            part = replace(reading, micro_batches=micro_batches(times))
            return read_without_gradient(cast, part, passes, update.poll)

    return update.ladder.climb("score", micro_batches, read)


@dataclass(frozen=True)
class Learnt:
    """Loss, terms, rate and norm of a step's updates, averaged, and whether all of them were finite."""

    metrics: dict[str, float]
    finite: bool


def learn(update: Update, reading: Reading, batch: ScoredBatch, signals: Signals, step: int) -> Learnt:
    """The step's updates: one, or its prompts in so many parts. Signals wait only before the first."""
    lr = learning_rate(step, update.num_steps, update.train)
    parts = parts_of(reading.micro_batches, update.objective.updates)
    sums: dict[str, float] = {}
    finite = True
    for number, micro_batches in enumerate(parts):
        poll = update.poll if number == 0 else lambda: None
        loss, terms = accumulate(update, replace(reading, micro_batches=micro_batches), batch, signals, poll)
        loss = math.nan if fault("learn.loss") else loss
        fault("learn.before_update")
        norm, well = apply_update(update, loss, lr)
        if well:
            follow(update.cast, update.objective.ema_rate())
        fault("learn.after_update")
        finite = finite and well
        for name, value in {"loss": loss, **terms, "grad_norm": norm}.items():
            same = name.startswith("coefficient/")  # in every part
            sums[name] = value if same else sums.get(name, 0.0) + value / len(parts)
    return Learnt({**sums, "lr": lr, "finite": float(finite)}, finite)


def skipped(update: Update, bad: Mapping[str, int], step: int) -> Learnt:
    """A step without any update: what it would have learnt from is not finite. It counts like one whose loss is not."""
    lr = learning_rate(step, update.num_steps, update.train)
    facts = {f"non_finite/{name}": float(number) for name, number in bad.items()}
    return Learnt({"loss": math.nan, "grad_norm": math.nan, **facts, "lr": lr, "finite": 0.0}, False)


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
    update: Update,
    reading: Reading,
    batch: ScoredBatch,
    signals: Signals,
    poll: Callable[[], None],
    only: Sequence[str] | None = None,
) -> tuple[float, dict[str, float]]:
    """Backward over whole prompts, of all terms or of some; the update's own counts make the split invisible."""

    def sizes(times: int) -> object:
        cut = smaller(reading, times)
        return cut.micro_batches, [cut.parts(groups) for groups in cut.micro_batches]

    return update.ladder.climb(
        "learn", sizes, lambda times: backward(update, smaller(reading, times), batch, signals, poll, only)
    )


def smaller(reading: Reading, times: int) -> Reading:
    """The reading in micro-batches and parts that were halved so many times."""
    if times == 0:
        return reading
    longest = max(sum(len(r.ids) for g in part for r in reading.groups[g].rollouts) for part in reading.micro_batches)
    tokens = min(reading.split.part_tokens, longest) >> times
    split = replace(reading.split, part_tokens=max(1, tokens))
    return replace(reading, micro_batches=halved(reading.micro_batches, times), split=split)


def backward(
    update: Update,
    reading: Reading,
    batch: ScoredBatch,
    signals: Signals,
    poll: Callable[[], None],
    only: Sequence[str] | None,
) -> tuple[float, dict[str, float]]:
    """One attempt at the gradient, from zero."""
    update.optimizer.zero_grad(set_to_none=True)
    update.cast.student.model.train()
    passes = update.objective.passes()
    counts = reading.counts()
    total, found = 0.0, {}
    for micro, cut in learning_parts(update.cast, reading, batch, passes, signals, update.autocast, poll):
        fault("learn.part")
        made = update.objective.terms(micro, cut)
        loss, terms = reduce_terms(made if only is None else [t for t in made if t.name in only], counts)
        loss.backward()
        total += loss.item()
        for name, value in terms.items():
            found[f"loss/{name}"] = found.get(f"loss/{name}", 0.0) + value.item()
        found |= {f"coefficient/{name}": value for name, value in coefficients(made).items()}
    update.cast.student.model.eval()
    return total, found


def probe_gradients(
    update: Update, reading: Reading, batch: ScoredBatch, signals: Signals, step: int
) -> tuple[ScoredBatch, dict[str, int]]:
    """Measure the gradient norms the method asked for, and let it learn them before the update.

    Returns:
        The batch with the memory it has learnt, and how many norms are not finite: then the memory is the old one.
    """
    probe = update.objective.probe()
    if probe is None or step % probe.every != 0:
        return batch, {}
    norms = []
    for names in probe.sums:
        accumulate(update, reading, batch, signals, update.poll, names)
        gradients = [p.grad for group in update.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
    update.optimizer.zero_grad(set_to_none=True)
    bad = sum(not math.isfinite(norm) for norm in norms)
    if bad:
        return batch, {"gradient_probe": bad}
    return replace(batch, memory=update.objective.learn_norms(norms, batch.memory)), {}


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


def describe(batch: ScoredBatch, groups: Sequence[RolloutGroup]) -> dict[str, float]:
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

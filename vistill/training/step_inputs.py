"""From responses to a scored batch: flatten tokens, encode prompts, read every pass."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from vistill.batch import Counts, Responses, ScoredBatch, ScoredPass, Signals
from vistill.data.keys import keyed_generator
from vistill.functional.mixed_heads import mix_heads
from vistill.models.scoring import EncodedGroup, all_responses, open_reading, score
from vistill.phases import READINGS, count_done
from vistill.training.micro_batches import BatchSplit
from vistill.training.models_of_run import Models
from vistill.training.read_ahead import Known
from vistill.types import Pass, Reader, RolloutGroup


def flatten_responses(
    groups: Sequence[RolloutGroup],
    seed: int,
    step: int,
    device: torch.device,
    rewards: Sequence[float] | None = None,
) -> Responses:
    """All response tokens on one flat axis, with keyed noise for random ties, and the rewards."""
    rollouts = [(g, rollout) for g, group in enumerate(groups) for rollout in group.rollouts]
    lengths = torch.tensor([len(rollout.ids) for _, rollout in rollouts])
    noise = []
    for g, rollout in rollouts:
        generator = keyed_generator("ties", seed, step, groups[g].prompt.id, rollout.sibling)
        noise.append(generator.random(len(rollout.ids), np.float32))
    return Responses(
        ids=torch.tensor([i for _, rollout in rollouts for i in rollout.ids]).to(device),
        rollout=torch.repeat_interleave(torch.arange(len(rollouts)), lengths).to(device),
        group=torch.tensor([g for g, _ in rollouts]).to(device),
        lengths=lengths.to(device),
        has_image=torch.tensor([bool(group.prompt.images) for group in groups]).to(device),
        tie_noise=torch.from_numpy(np.concatenate(noise)).to(device),
        reward=None if rewards is None else torch.tensor(rewards, dtype=torch.float32).to(device),
    )


def encode_groups(models: Models, groups: Sequence[RolloutGroup], p: Pass) -> list[EncodedGroup]:
    """The groups as a pass reads them. The response tokens are the same in every pass."""
    return [
        EncodedGroup(
            models.encode(group.prompt, p.view, p.reader), tuple(r.ids for r in group.rollouts)
        )
        for group in groups
    ]


@dataclass(frozen=True)
class StepInputs:
    """What the passes of a step read: its groups under every view, and how they are cut."""

    groups: list[RolloutGroup]
    responses: Responses
    encoded: Mapping[str, list[EncodedGroup]]
    """By `Models.encoding_key`."""
    micro_batches: list[list[int]]
    """Indices of the groups in each micro-batch."""
    split: BatchSplit = BatchSplit()
    known: Known = lambda p, part: None
    """Finds readings that were made early (`training/read_ahead.py`)."""

    def counts(self) -> Counts:
        """Prompts, rollouts and tokens of the micro-batches: what the terms are divided by."""
        rollouts = [r for part in self.micro_batches for g in part for r in self.groups[g].rollouts]
        prompts = sum(len(part) for part in self.micro_batches)
        return Counts(prompts, len(rollouts), sum(len(r.ids) for r in rollouts))

    def groups_under(self, key: str, groups: Sequence[int]) -> list[EncodedGroup]:
        """Some groups under an encoding key."""
        return [self.encoded[key][g] for g in groups]

    def parts(self, groups: Sequence[int]) -> list[list[int]]:
        """The responses of some groups, cut into parts; each part has its own backward pass.

        Returns:
            Indices into the responses of these groups.
        """
        return self.split.parts([len(r.ids) for g in groups for r in self.groups[g].rollouts])


def encode_step(
    models: Models,
    groups: list[RolloutGroup],
    passes: Sequence[Pass],
    responses: Responses,
    split: BatchSplit = BatchSplit(),  # noqa: B008  frozen
) -> StepInputs:
    """Encode each prompt once per view and plan the micro-batches by the longest view."""
    by_key = {models.encoding_key(p.view, p.reader): p for p in passes}
    encoded = {key: encode_groups(models, groups, p) for key, p in by_key.items()}
    longest = max(encoded.values(), key=lambda gs: sum(len(g.prompt.ids) for g in gs))
    micro_batches = split.micro_batches([g.num_tokens for g in longest])
    return StepInputs(groups, responses, encoded, micro_batches, split)


@torch.no_grad()
def score_without_gradient(
    models: Models,
    inputs: StepInputs,
    passes: Sequence[Pass],
    poll: Callable[[], None] = lambda: None,
) -> ScoredBatch:
    """Every pass without gradient, once, over the whole batch."""
    batch = ScoredBatch(inputs.responses, {})
    scored: dict[str, ScoredPass] = {}
    several = models.has_several_teachers
    for p in passes:
        if p.gradient or (several and p.reader is Reader.TEACHER):
            continue
        reader = models.reader(p.reader)
        pieces = []
        for part in inputs.micro_batches:
            poll()
            ids = batch.take_groups(part)[0].responses.ids
            groups = inputs.groups_under(models.encoding_key(p.view, p.reader), part)
            early = inputs.known(p, part)
            pieces.append(early or score(reader, groups, ids, models.vocabulary, p.keep))
            count_done(READINGS, sum(len(g.responses) for g in groups))
        scored[p.name] = join_passes(pieces)
    if several:
        scored |= score_by_teacher(models, inputs, passes, poll)
    return ScoredBatch(inputs.responses, {p.name: scored[p.name] for p in passes if not p.gradient})


def score_by_teacher(
    models: Models, inputs: StepInputs, passes: Sequence[Pass], poll: Callable[[], None]
) -> dict[str, ScoredPass]:
    """The passes of several teachers: each reads its own rows, one teacher after another.

    So an offloaded teacher is moved to the device once per step, if it has a row in it.
    """
    batch, own = (
        ScoredBatch(inputs.responses, {}),
        [p for p in passes if p.reader is Reader.TEACHER],
    )
    pieces: dict[str, list[TeacherRows]] = {p.name: [] for p in own}
    for _, single in models.by_teacher():
        teacher = single.reader(Reader.TEACHER)
        parts = [
            [g for g in part if models.teacher_of(inputs.groups[g].prompt) is teacher]
            for part in inputs.micro_batches
        ]
        parts = [part for part in parts if part]
        if not own or not parts:
            continue
        with teacher.on_device():
            for p in own:
                results, rows = [], []
                for part in parts:
                    poll()
                    of_part, rows_of_part = batch.take_groups(part)
                    groups = inputs.groups_under(models.encoding_key(p.view, p.reader), part)
                    ids = of_part.responses.ids
                    results.append(score(teacher, groups, ids, models.vocabulary, p.keep))
                    rows.append(rows_of_part)
                    count_done(READINGS, sum(len(g.responses) for g in groups))
                pieces[p.name].append(TeacherRows(torch.cat(rows), join_passes(results)))
    return {name: join_teachers(parts) for name, parts in pieces.items()}


class TeacherRows(NamedTuple):
    """The rows of the flat axis that one teacher read, and what it read there."""

    rows: Int[Tensor, " r"]
    scored: ScoredPass


def join_teachers(parts: Sequence[TeacherRows]) -> ScoredPass:
    """The rows of all teachers of a step as one pass; of one teacher its pass as it is."""
    order = torch.argsort(torch.cat([part.rows for part in parts]))
    log_probs = [part.scored.log_prob for part in parts]
    kept = [values for values in log_probs if values is not None]
    log_prob = torch.cat(kept)[order] if kept else None
    states = [
        (part.scored.states(), part.scored.projection())
        for part in parts
        if part.scored.hidden is not None
    ]
    if not states:
        return ScoredPass(log_prob)
    if len(parts) == 1:
        return ScoredPass(log_prob, states[0][0][order], states[0][1])
    hidden, head = mix_heads(states)
    return ScoredPass(log_prob, hidden[order], head)


Precision = Callable[[], AbstractContextManager[object]]


def parts_with_gradient(  # noqa: PLR0913  one more than six: inputs, what is known, precision, poll
    models: Models,
    inputs: StepInputs,
    batch: ScoredBatch,
    passes: Sequence[Pass],
    signals: Signals,
    precision: Precision = nullcontext,
    poll: Callable[[], None] = lambda: None,
) -> Iterator[tuple[ScoredBatch, dict[str, Tensor]]]:
    """Yield the responses part by part: passes with gradient, and the signals of the part.

    Call `backward` on a part's loss before you take the next part. The prompts of a micro-batch are
    read once; after its last part, the gradient that all siblings left at the prompts goes through
    them in one backward pass. A pass whose `rows` name a boolean signal has gradient only at the
    rows that the signal marks.
    """
    gradient_passes = [p for p in passes if p.gradient]
    for groups in inputs.micro_batches:
        poll()
        with precision():
            readings = {
                p.name: open_reading(
                    models.reader(p.reader),
                    inputs.groups_under(models.encoding_key(p.view, p.reader), groups),
                    cut=True,
                )
                for p in gradient_passes
            }
        in_groups = torch.isin(
            batch.responses.group, torch.tensor(groups, device=batch.responses.group.device)
        )
        rollouts = torch.nonzero(in_groups)[:, 0]
        first = gradient_passes[0]
        key = models.encoding_key(first.view, first.reader)
        indices = all_responses(inputs.groups_under(key, groups))
        for part in inputs.parts(groups):
            keep = torch.zeros_like(in_groups)
            keep[rollouts[part]] = True
            micro, rows = batch.take_rollouts(keep)
            part_signals = {
                name: cut_signal(value, batch.responses, rows, keep)
                for name, value in signals.items()
            }
            scored = dict(micro.passes)
            with precision():
                for p in gradient_passes:
                    hidden = readings[p.name].read([indices[i] for i in part])
                    head = models.reader(p.reader).head(models.vocabulary)
                    scored_pass = ScoredPass(None, hidden, head)
                    scored[p.name] = (
                        cut_gradient(scored_pass, part_signals[p.rows]) if p.rows else scored_pass
                    )
            yield replace(micro, passes=scored), part_signals
        for reading in readings.values():
            reading.close()


def cut_gradient(scored: ScoredPass, has_gradient: Tensor) -> ScoredPass:
    """The same pass, detached at every row that `has_gradient` does not mark."""
    hidden = scored.states()
    return replace(scored, hidden=torch.where(has_gradient[:, None], hidden, hidden.detach()))


def cut_signal(value: Tensor, responses: Responses, rows: Tensor, keep: Tensor) -> Tensor:
    """A token signal at some rows of the flat axis, or a rollout signal at the rollouts to keep."""
    if len(value) == responses.num_tokens:
        return value[rows]
    assert len(value) == responses.num_rollouts, "a signal is per token or per rollout"
    return value[keep]


def with_nan(scored: ScoredPass) -> ScoredPass:
    """The same pass with NaN in one row, as after an overflow (`score.pass` in `faults.py`)."""

    def fill(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        return values.index_fill(0, torch.tensor([1], device=values.device), math.nan)

    return replace(scored, log_prob=fill(scored.log_prob), hidden=fill(scored.hidden))


def join_passes(pieces: list[ScoredPass]) -> ScoredPass:
    """The micro-batches of one pass, in order."""

    def join(tensors: Sequence[Tensor | None]) -> Tensor | None:
        return None if tensors[0] is None else torch.cat([t for t in tensors if t is not None])

    log_prob = join([p.log_prob for p in pieces])
    return ScoredPass(log_prob, join([p.hidden for p in pieces]), pieces[0].head)

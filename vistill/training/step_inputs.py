"""From prompts to a scored batch: write responses, lay them on one axis, read them under every view."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from vistill.batch import Counts, Responses, ScoredBatch, ScoredPass, Signals
from vistill.data.keys import keyed_generator, keyed_seed
from vistill.models.families.base import EncodedPrompt
from vistill.models.loading import VLM
from vistill.models.scoring import EncodedGroup, all_responses, open_reading, score
from vistill.training.micro_batches import BatchSplit
from vistill.types import Pass, Prompt, Reader, RolloutGroup, View
from vistill.views import ViewContext, apply_view


@dataclass(frozen=True)
class Models:
    """The models of a run by role, and what they share."""

    student: VLM
    teacher: VLM | None
    vocabulary: int
    view: ViewContext = ViewContext()
    copies: Mapping[Reader, VLM] = field(default_factory=dict)
    """Moving average and reference, where the method reads them; `training/student_copies.py` makes them."""
    partners: Mapping[str, Prompt] = field(default_factory=dict)
    """For each prompt id another prompt, whose pictures or thoughts some views show."""
    seen: dict[tuple[str, View], EncodedPrompt] | None = field(default=None, compare=False)
    """What was encoded in this step: the writer and the readers see the same."""

    def reader(self, role: Reader) -> VLM:
        """The model that plays a role. Within a step the student is its own old self until it is updated."""
        own = {Reader.STUDENT: self.student, Reader.OLD: self.student, Reader.TEACHER: self.teacher}
        vlm = {**own, **self.copies}.get(role)
        assert vlm is not None, f"nobody plays {role}"
        return vlm

    @contextmanager
    def on_device(self, passes: Sequence[Pass]) -> Iterator[None]:
        """Whoever reads without gradient is on its device; a teacher that rests comes once for all its readings."""
        with ExitStack() as stack:
            for role in dict.fromkeys(p.reader for p in passes if not p.gradient):
                stack.enter_context(self.reader(role).on_device())
            yield

    def at_step(self, seed: int, step: int) -> "Models":
        """The same models whose random views belong to a step: a mask is drawn afresh each time a prompt comes."""
        return replace(self, view=replace(self.view, seed=keyed_seed("step", seed, step)), seen={})

    def encode(self, prompt: Prompt, view: View) -> EncodedPrompt:
        """Student and teacher share tokenizer and image grid, so one encoding serves both, and the writer."""
        if self.seen is not None:
            key = (prompt.id, view)
            return self.seen.get(key) or self.seen.setdefault(key, self.encode_afresh(prompt, view))
        return self.encode_afresh(prompt, view)

    def encode_afresh(self, prompt: Prompt, view: View) -> EncodedPrompt:
        """The prompt as it is seen under a view, in tokens."""
        return self.student.encode(self.shown(prompt, view))

    def shown(self, prompt: Prompt, view: View) -> Prompt:
        """The prompt as it is seen under a view."""
        seed = keyed_seed("view", prompt.id, self.view.seed)
        return apply_view(
            prompt, view, replace(self.view, seed=seed, partner=self.partners.get(prompt.id))
        )


def flatten_responses(
    groups: Sequence[RolloutGroup],
    seed: int,
    step: int,
    device: torch.device,
    rewards: Sequence[float] | None = None,
) -> Responses:
    """All response tokens on one flat axis, with keyed noise for random ties and the rewards where there are any."""
    rollouts = [(g, rollout) for g, group in enumerate(groups) for rollout in group.rollouts]
    lengths = [len(rollout.ids) for _, rollout in rollouts]
    noise = [
        keyed_generator("ties", seed, step, groups[g].prompt.id, r.sibling).random(
            len(r.ids), np.float32
        )
        for g, r in rollouts
    ]
    length = torch.tensor(lengths)
    return Responses(
        ids=torch.tensor([i for _, rollout in rollouts for i in rollout.ids]).to(device),
        rollout=torch.repeat_interleave(torch.arange(len(rollouts)), length).to(device),
        group=torch.tensor([g for g, _ in rollouts]).to(device),
        lengths=length.to(device),
        has_image=torch.tensor([bool(group.prompt.images) for group in groups]).to(device),
        tie_noise=torch.from_numpy(np.concatenate(noise)).to(device),
        reward=None if rewards is None else torch.tensor(rewards, dtype=torch.float32).to(device),
    )


def encoded_groups(
    models: Models, groups: Sequence[RolloutGroup], view: View
) -> list[EncodedGroup]:
    """The groups as a reader sees them. The response tokens are the same under every view."""
    return [
        EncodedGroup(models.encode(group.prompt, view), tuple(r.ids for r in group.rollouts))
        for group in groups
    ]


@dataclass(frozen=True)
class StepInputs:
    """A step's groups as every pass sees them."""

    groups: list[RolloutGroup]
    responses: Responses
    encoded: dict[View, list[EncodedGroup]]
    micro_batches: list[list[int]]
    split: BatchSplit = BatchSplit()

    def counts(self) -> Counts:
        """Prompts, rollouts and tokens of the groups in the micro-batches: what the terms are divided by."""
        rollouts = [r for part in self.micro_batches for g in part for r in self.groups[g].rollouts]
        prompts = sum(len(part) for part in self.micro_batches)
        return Counts(prompts, len(rollouts), sum(len(r.ids) for r in rollouts))

    def under(self, view: View, groups: Sequence[int]) -> list[EncodedGroup]:
        """Some groups under a view."""
        return [self.encoded[view][g] for g in groups]

    def parts(self, groups: Sequence[int]) -> list[list[int]]:
        """The responses of some groups, as places among them, in parts that are learnt from one after the other."""
        return self.split.parts([len(r.ids) for g in groups for r in self.groups[g].rollouts])


def encode_step(
    models: Models,
    groups: list[RolloutGroup],
    passes: Sequence[Pass],
    responses: Responses,
    split: BatchSplit = BatchSplit(),  # noqa: B008  frozen
) -> StepInputs:
    """Encode each prompt once per view and plan the micro-batches."""
    views = dict.fromkeys(p.view for p in passes)
    encoded = {view: encoded_groups(models, groups, view) for view in views}
    longest = max(encoded.values(), key=lambda gs: sum(len(g.prompt.ids) for g in gs))
    return StepInputs(
        groups, responses, encoded, split.micro_batches([g.num_tokens for g in longest]), split
    )


@torch.no_grad()
def score_without_gradient(
    models: Models,
    reading: StepInputs,
    passes: Sequence[Pass],
    poll: Callable[[], None] = lambda: None,
) -> ScoredBatch:
    """Every pass without gradient, once, over the whole batch."""
    batch = ScoredBatch(reading.responses, {})
    scored: dict[str, ScoredPass] = {}
    for p in passes:
        if p.gradient:
            continue
        pieces = []
        for part in reading.micro_batches:
            poll()
            ids = batch.take_groups(part)[0].responses.ids
            pieces.append(
                score(
                    models.reader(p.reader),
                    reading.under(p.view, part),
                    ids,
                    models.vocabulary,
                    p.keep,
                )
            )
        scored[p.name] = join(pieces)
    return ScoredBatch(reading.responses, scored)


Precision = Callable[[], AbstractContextManager[object]]


def parts_with_gradient(  # noqa: PLR0913  one more than six: what to read, what is known, how, and when to look up
    models: Models,
    reading: StepInputs,
    batch: ScoredBatch,
    passes: Sequence[Pass],
    signals: Signals,
    precision: Precision = nullcontext,
    poll: Callable[[], None] = lambda: None,
) -> Iterator[tuple[ScoredBatch, dict[str, Tensor]]]:
    """Every response of the micro-batches with its gradient passes, part by part, and the signals cut to the part.

    Call `backward` on a part's loss before the next part is asked for. The prompts of a micro-batch are read once;
    when its last part is done, what all siblings left at them goes through them in one backward pass. A pass whose
    `rows` name a boolean signal is cut from its gradient at every row that the signal does not mark.
    """
    learning = [p for p in passes if p.gradient]
    for groups in reading.micro_batches:
        poll()
        with precision():
            opened = {
                p.name: open_reading(
                    models.reader(p.reader), reading.under(p.view, groups), cut=True
                )
                for p in learning
            }
        in_groups = torch.isin(
            batch.responses.group, torch.tensor(groups, device=batch.responses.group.device)
        )
        rollouts = torch.nonzero(in_groups)[:, 0]
        places = all_responses(reading.under(learning[0].view, groups))
        for part in reading.parts(groups):
            keep = torch.zeros_like(in_groups)
            keep[rollouts[part]] = True
            micro, rows = batch.take_rollouts(keep)
            cut = {
                name: cut_signal(value, batch.responses, rows, keep)
                for name, value in signals.items()
            }
            scored = dict(micro.passes)
            with precision():
                for p in learning:
                    hidden = opened[p.name].read([places[i] for i in part])
                    made = ScoredPass(None, hidden, models.reader(p.reader).head(models.vocabulary))
                    scored[p.name] = cut_gradient(made, cut[p.rows]) if p.rows else made
            yield replace(micro, passes=scored), cut
        for groups_read in opened.values():
            groups_read.close()


def cut_gradient(made: ScoredPass, learns: Tensor) -> ScoredPass:
    """The same reading, data at every row that does not learn."""
    hidden = made.states()
    return replace(made, hidden=torch.where(learns[:, None], hidden, hidden.detach()))


def cut_signal(value: Tensor, responses: Responses, rows: Tensor, keep: Tensor) -> Tensor:
    """A token signal at some rows of the flat axis, or a rollout signal at the rollouts that are kept."""
    if len(value) == responses.num_tokens:
        return value[rows]
    assert len(value) == responses.num_rollouts, "a signal is per token or per rollout"
    return value[keep]


def join(pieces: list[ScoredPass]) -> ScoredPass:
    """Micro-batches of one pass, in order."""
    cat = lambda xs: None if xs[0] is None else torch.cat(xs)
    return ScoredPass(
        cat([p.log_prob for p in pieces]), cat([p.hidden for p in pieces]), pieces[0].head
    )

"""Types that hold tensors: flat response axis, scored passes, loss terms; and the one reducer."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import FunctionType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vistill.functional.heads import Head
from vistill.functional.segments import segment_count
from vistill.plugin_calls import UndeclaredPassError
from vistill.types import Pass, View, Writer, view_named


@dataclass(frozen=True)
class Responses:
    """All response tokens of a step on one flat axis, without padding."""

    ids: Int[Tensor, " R"]
    """Token ids, the first end-of-turn token included."""
    rollout: Int[Tensor, " R"]
    """Index of the rollout each token belongs to."""
    group: Int[Tensor, " N"]
    """Index of the prompt group each rollout belongs to."""
    lengths: Int[Tensor, " N"]
    """Tokens of each rollout."""
    has_image: Bool[Tensor, " G"]
    """Whether the prompt of each group has an image."""
    tie_noise: Float[Tensor, " R"]
    """Keyed uniform noise, for rules that break ties at random."""
    reward: Float[Tensor, " N"] | None = None
    """Reward of each rollout, if the method needs it."""
    siblings: Int[Tensor, " N"] | None = None
    """How many siblings each rollout's prompt has in the step, if some are not in this batch."""

    def num_siblings(self) -> Int[Tensor, " N"]:
        """Siblings of each rollout's prompt in the step (K), itself included."""
        return (
            segment_count(self.group, self.num_groups)[self.group]
            if self.siblings is None
            else self.siblings
        )

    def rewards(self) -> Float[Tensor, " N"]:
        """The rewards, for a method that needs them."""
        assert self.reward is not None, "the method does not need rewards"
        return self.reward

    @property
    def num_groups(self) -> int:
        """Number of prompts."""
        return len(self.has_image)

    @property
    def num_rollouts(self) -> int:
        """Number of rollouts."""
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Number of response tokens."""
        return len(self.ids)

    def counts(self) -> "Counts":
        """The step's global counts, which divide every term."""
        return Counts(prompt=self.num_groups, rollout=self.num_rollouts, token=self.num_tokens)


@dataclass(frozen=True)
class Counts:
    """How many prompts, rollouts and tokens the whole step has, however it is split."""

    prompt: int
    rollout: int
    token: int

    def of(self, per: str) -> int:
        """The count a term is averaged over."""
        return {"prompt": self.prompt, "rollout": self.rollout, "token": self.token}[per]


@dataclass(frozen=True)
class ScoredPass:
    """The result of one reader on the responses under one view."""

    log_prob: Float[Tensor, " R"] | None = None
    """Log-probability of each sampled token at temperature 1."""
    hidden: Float[Tensor, "R H"] | None = None
    """Hidden states of the response rows; with `head` they are the whole distribution."""
    head: Head | None = None

    def states(self) -> Float[Tensor, "R H"]:
        """The hidden states, which the pass promised to keep."""
        assert self.hidden is not None, "this pass kept only log-probabilities"
        return self.hidden

    def projection(self) -> Head:
        """The head that turns the hidden states into logits."""
        assert self.head is not None, "this pass kept only log-probabilities"
        return self.head

    def sampled(self) -> Float[Tensor, " R"]:
        """The log-probabilities of the sampled tokens."""
        assert self.log_prob is not None, "this pass kept only hidden states"
        return self.log_prob

    def take(self, rows: Tensor) -> "ScoredPass":
        """The same pass for some rows of the response axis."""
        log_prob = None if self.log_prob is None else self.log_prob[rows]
        hidden = None if self.hidden is None else self.hidden[rows]
        return ScoredPass(log_prob, hidden, self.head)


@dataclass(frozen=True)
class ScoredBatch:
    """Responses and every scored pass over them. Signals and terms are functions of this."""

    responses: Responses
    passes: Mapping[str, ScoredPass]
    memory: Mapping[str, float] = field(default_factory=dict)
    """What the method remembered of earlier steps; checkpoints carry it."""
    progress: float = 0.0
    """Share of the run that is done, for schedules."""

    def __getitem__(self, name: str) -> ScoredPass:
        try:
            return self.passes[name]
        except KeyError:
            raise UndeclaredPassError(name, list(self.passes)) from None

    def take_rollouts(self, keep: Bool[Tensor, " N"]) -> tuple["ScoredBatch", Tensor]:
        """The batch limited to some rollouts, and the rows of the flat axis that it keeps.

        Terms are per token and their weights come from signals, so the loss can be computed on any
        subset of the rollouts. `num_siblings` keeps the number in the whole step.
        """
        old = self.responses
        rows = torch.nonzero(keep[old.rollout])[:, 0]
        wanted = torch.zeros(old.num_groups, dtype=torch.bool, device=keep.device)
        wanted[old.group[keep]] = True
        new_rollout = torch.cumsum(keep, 0) - 1
        new_group = torch.cumsum(wanted, 0) - 1
        part = replace(
            old,
            ids=old.ids[rows],
            rollout=new_rollout[old.rollout[rows]],
            group=new_group[old.group[keep]],
            lengths=old.lengths[keep],
            has_image=old.has_image[wanted],
            tie_noise=old.tie_noise[rows],
            reward=None if old.reward is None else old.reward[keep],
            siblings=old.num_siblings()[keep],
        )
        return replace(
            self, responses=part, passes={n: scored.take(rows) for n, scored in self.passes.items()}
        ), rows

    def take_groups(self, groups: Sequence[int]) -> tuple["ScoredBatch", Tensor]:
        """The batch limited to whole prompt groups, and the rows of the flat axis that it keeps."""
        wanted = torch.zeros(
            self.responses.num_groups, dtype=torch.bool, device=self.responses.group.device
        )
        wanted[list(groups)] = True
        return self.take_rollouts(wanted[self.responses.group])


@dataclass(frozen=True)
class LossTerm:
    """One named part of the objective, per token and unreduced: `sum(weight * value) / count(per)`.

    It is logged without its coefficient, so that runs with different coefficients can be compared.
    """

    name: str
    values: Float[Tensor, " R"]
    weights: Float[Tensor, " R"]
    per: str = "prompt"
    """What the weighted sum is divided by: the step's number of prompts, rollouts or tokens."""
    minimised: bool = True
    """A term that is only logged is reported under its name and never enters the loss."""
    coefficient: float = 1.0
    """What the reduced term is multiplied by in the loss; with 0 it is only logged."""

    def scaled(self, factor: float) -> "LossTerm":
        """The same term with its coefficient times a factor."""
        return replace(self, coefficient=self.coefficient * factor)


def reduce_terms(terms: Sequence[LossTerm], counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
    """The one place where tokens become a scalar.

    Weights select as well as scale: a value with weight 0 never enters, even if it is NaN. The same
    holds for a term whose coefficient is 0.

    Returns:
        The sum of the minimised terms times their coefficients, and every term by name, unscaled
        and detached.
    """
    parts: dict[str, Tensor] = {}
    minimised: list[Tensor] = []
    for term in terms:
        assert term.name not in parts, f"two terms are called {term.name}"
        inside = term.weights != 0
        kept = torch.where(inside, term.values, torch.zeros_like(term.values))
        parts[term.name] = (term.weights.detach() * kept).sum() / counts.of(term.per)
        if term.minimised and term.coefficient != 0:
            minimised.append(term.coefficient * parts[term.name])
    total = torch.stack(minimised).sum() if minimised else torch.zeros((), requires_grad=True)
    return total, {name: value.detach() for name, value in parts.items()}


def term_coefficients(terms: Sequence[LossTerm]) -> dict[str, float]:
    """The coefficient of every minimised term: the loss is the sum of coefficient times term."""
    return {term.name: float(term.coefficient) for term in terms if term.minimised}


Signals = Mapping[str, Tensor]


class Need(StrEnum):
    """What a method cannot do without, besides its passes. It is checked before step 1."""

    IMAGE = "image"
    THOUGHTS = "thoughts"
    REWARD = "reward"
    SIBLINGS = "siblings"


@dataclass(frozen=True)
class GradientProbe:
    """Norms of the gradients of sums of terms.

    They are measured every `every` steps, on the whole step, before its update.
    """

    every: int
    sums: tuple[tuple[str, ...], ...]
    """Names of the terms of each sum."""


@dataclass(frozen=True)
class EntryGate:
    """A check before step 1: the untrained student answers better in this view than in `full`."""

    view: View | str
    rows: int
    switch: str = ""
    """The setting that leaves the gate out, for the message: `visual_opsd.gate=false`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "view", view_named(self.view))


@dataclass(frozen=True)
class Requirements:
    """What a method needs from a run besides its passes.

    The class defaults are those of on-policy distillation.
    """

    needs: AbstractSet[Need] = frozenset()
    """What must exist before step 1: any set of `image`, `thoughts`, `reward`, `siblings`."""
    writer: Writer = Writer.STUDENT
    """Who writes the responses: the student, the teacher (once, before step 1) or the data set."""
    writer_view: View | str = View.FULL
    """What the writer sees of the prompt."""
    keep_correct: bool = False
    """Use only the correct ones of the teacher's responses, another one each epoch."""
    off_policy_share: float = 0.0
    """Share of the prompts of a step whose responses the teacher wrote beforehand."""
    updates: int = 1
    """Updates per step: the prompts are split into this number of parts. The old log-probabilities
    are from before the first."""
    ema_rate: float = 0.005
    """Share by which the moving average (`Reader.EMA`) moves to the student after each update."""
    entry_gate: EntryGate | None = None
    """What the untrained student must pass before step 1."""
    linear_heads: bool = False
    """The method adds up hidden states before the head: one teacher, no bias and no softcap."""
    gradient_probe: GradientProbe | None = None
    """Gradient norms to measure; `Objective.learn_norms` receives them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "needs", frozenset(map(Need, self.needs)))
        object.__setattr__(self, "writer", Writer(self.writer))
        object.__setattr__(self, "writer_view", view_named(self.writer_view))
        if self.updates < 1 or not 0 <= self.off_policy_share <= 1 or not 0 <= self.ema_rate <= 1:
            raise ValueError("updates is at least 1; off_policy_share and ema_rate lie in 0 to 1")

    @property
    def teacher_share(self) -> float:
        """Share of the prompts whose responses the teacher writes: 1 if it is the writer."""
        return 1.0 if self.writer is Writer.TEACHER else self.off_policy_share

    @property
    def answers(self) -> str:
        """Training rows that need a gold answer: `all` for rewards and filters, `some` for a gate.

        Empty for none.
        """
        if Need.REWARD in self.needs or self.keep_correct:
            return "all"
        return "some" if self.entry_gate is not None else ""


#: Former methods of `Objective` and their fields of `Requirements`. A class that still defines one
#: is refused, because the definition would have no effect.
MOVED = {
    "needs": "needs",
    "writer": "writer",
    "writer_view": "writer_view",
    "keep_correct": "keep_correct",
    "off_policy": "off_policy_share",
    "ema_rate": "ema_rate",
    "entry_gate": "entry_gate",
    "probe": "gradient_probe",
}


class Objective(ABC):
    """A method: its passes, its signals and its loss terms. Everything else is shared.

    A subclass is a frozen dataclass whose fields are its knobs. It defines `passes`, `signals` and
    `terms`, and `requirements` if they are not the defaults. The other methods are optional.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        old = [name for name in MOVED if isinstance(vars(cls).get(name), (FunctionType, property))]
        if old:
            fields = ", ".join(f"{MOVED[name]}=..." for name in old)
            what = f"{cls.__name__}.{old[0]} is a field of Requirements now"
            raise TypeError(f"{what}: define requirements as Requirements({fields})")
        own = "updates" in vars(cls).get("__annotations__", {})
        if own and cls.requirements is Objective.requirements:
            fix = "define requirements as Requirements(updates=self.updates)"
            raise TypeError(f"{cls.__name__}.updates has no effect: {fix}")

    @property
    def requirements(self) -> Requirements:
        """What the method needs from a run: a property or a class attribute.

        It depends on the knobs alone.
        """
        return Requirements()

    @abstractmethod
    def passes(self) -> tuple[Pass, ...]:
        """The passes over the responses that the method needs. They depend on the knobs alone."""

    @abstractmethod
    def signals(self, batch: ScoredBatch) -> dict[str, Tensor]:
        """Measurements per token [R] or per rollout [N], without gradient.

        They are computed once per step on the whole batch, and logged. The report colours the
        tokens of responses by the first signal that has a real number per token and is not called
        `token_weight`.
        """

    @abstractmethod
    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """What is minimised, per token.

        The batch is any subset of the rollouts of the step, and the signals are restricted to it.
        """

    def metrics(self, batch: ScoredBatch, signals: Signals) -> dict[str, float]:
        """Metrics of the step for log and report; `objectives/metrics.py` has shared ones."""
        return {}

    def warnings(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Messages about the metrics of a step, by a short name; each is logged once."""
        return {}

    def remember(self, batch: ScoredBatch, signals: Signals) -> dict[str, float]:
        """What to carry to the next step, from the batch (with its memory) and its signals.

        It is kept only if the step's updates were finite, and must be finite itself.
        """
        return dict(batch.memory)

    def learn_norms(self, norms: Sequence[float], memory: Mapping[str, float]) -> dict[str, float]:
        """The memory after the norms of `Requirements.gradient_probe` were measured."""
        return dict(memory)

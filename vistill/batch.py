"""The nouns with tensors: the flat response axis, scored passes, loss terms, and the one reducer."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vistill.functional.heads import Head
from vistill.functional.segments import segment_count
from vistill.types import Pass, View, Writer


@dataclass(frozen=True)
class Responses:
    """All response tokens of a step on one flat axis; no response is padded to its longest sibling."""

    ids: Int[Tensor, " R"]
    """Token ids, the first end-of-turn token included."""
    rollout: Int[Tensor, " R"]
    """Index of the rollout each token belongs to."""
    group: Int[Tensor, " N"]
    """Index of the prompt group each rollout belongs to."""
    lengths: Int[Tensor, " N"]
    """Tokens of each rollout."""
    has_image: Bool[Tensor, " G"]
    """Whether the prompt of each group has a picture."""
    tie_noise: Float[Tensor, " R"]
    """Keyed uniform noise, for rules that break ties at random."""
    reward: Float[Tensor, " N"] | None = None
    """Reward of each rollout, where the method asked for it."""
    siblings: Int[Tensor, " N"] | None = None
    """How many siblings each rollout's prompt has in the step, where only some of them are here."""

    def num_siblings(self) -> Int[Tensor, " N"]:
        """Siblings of each rollout's prompt in the step (K), itself included."""
        return (
            segment_count(self.group, self.num_groups)[self.group]
            if self.siblings is None
            else self.siblings
        )

    def rewards(self) -> Float[Tensor, " N"]:
        """The rewards, which the method asked for."""
        assert self.reward is not None, "the method did not ask for rewards"
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
    """What one reader made of the responses under one view."""

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
        pick = lambda x: None if x is None else x[rows]
        return ScoredPass(pick(self.log_prob), pick(self.hidden), self.head)


@dataclass(frozen=True)
class ScoredBatch:
    """Responses and every reading of them. Signals and terms are functions of this."""

    responses: Responses
    passes: Mapping[str, ScoredPass]
    memory: Mapping[str, float] = field(default_factory=dict)
    """What the method remembered of earlier steps; checkpoints carry it."""
    progress: float = 0.0
    """Share of the run that is done, for schedules."""

    def __getitem__(self, name: str) -> ScoredPass:
        return self.passes[name]

    def take_rollouts(self, keep: Bool[Tensor, " N"]) -> tuple["ScoredBatch", Tensor]:
        """The batch limited to some rollouts, and the rows of the flat axis that it keeps.

        A method's terms are per token and its weights come from signals, so any set of rollouts can be learnt from
        by itself; `num_siblings` still tells how many there were.
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

    It is logged as it is, without its coefficient, so that runs under different coefficients can be compared.
    """

    name: str
    values: Float[Tensor, " R"]
    weights: Float[Tensor, " R"]
    per: str = "prompt"
    """What the weighted sum is divided by: the step's number of prompts, rollouts or tokens."""
    minimised: bool = True
    """A term that is only watched is reported under its name and never enters the loss."""
    coefficient: float = 1.0
    """What the reduced term is multiplied by in the loss; with 0 it is only watched."""

    def scaled(self, factor: float) -> "LossTerm":
        """The same term with its coefficient times a factor."""
        return replace(self, coefficient=self.coefficient * factor)


def reduce_terms(terms: Sequence[LossTerm], counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
    """The one place where tokens become a scalar.

    Weights select as well as scale: a value under weight 0 never enters, so a NaN outside cannot either. The same
    holds for a term whose coefficient is 0.

    Returns:
        The sum of the minimised terms times their coefficients, and every term by name, unscaled (detached).
    """
    parts: dict[str, Tensor] = {}
    learnt: list[Tensor] = []
    for term in terms:
        assert term.name not in parts, f"two terms are called {term.name}"
        inside = term.weights != 0
        kept = torch.where(inside, term.values, torch.zeros_like(term.values))
        parts[term.name] = (term.weights.detach() * kept).sum() / counts.of(term.per)
        if term.minimised and term.coefficient != 0:
            learnt.append(term.coefficient * parts[term.name])
    total = torch.stack(learnt).sum() if learnt else torch.zeros((), requires_grad=True)
    return total, {name: value.detach() for name, value in parts.items()}


def term_coefficients(terms: Sequence[LossTerm]) -> dict[str, float]:
    """The coefficient of every minimised term: the loss is the sum of coefficient times term."""
    return {term.name: float(term.coefficient) for term in terms if term.minimised}


Signals = Mapping[str, Tensor]


class Need(StrEnum):
    """What a method cannot do without, beyond its passes. Checked before step 1."""

    IMAGE = "image"
    THOUGHTS = "thoughts"
    REWARD = "reward"
    SIBLINGS = "siblings"


@dataclass(frozen=True)
class GradientProbe:
    """Norms of the gradients of sums of terms, measured on the whole step every so many steps, before its update."""

    every: int
    sums: tuple[tuple[str, ...], ...]
    """Names of the terms of each sum."""


@dataclass(frozen=True)
class EntryGate:
    """A question to the untrained student before step 1: does it answer better under this view than under `full`?"""

    view: View
    rows: int


@runtime_checkable
class Objective(Protocol):
    """A method: what must be seen, what is measured, what is minimised. Everything else is shared.

    A class that names this one as its base inherits the defaults and states only `passes`, `signals` and `terms`.
    """

    updates: int = 1
    """Updates a step: its prompts in so many parts, with old log-probabilities from before the first."""

    @property
    def writer(self) -> Writer:
        """Who writes the responses."""
        return Writer.STUDENT

    @property
    def writer_view(self) -> View:
        """What the writer sees of the prompt."""
        return View.FULL

    @property
    def keep_correct(self) -> bool:
        """Of the teacher's written responses use only correct ones, another one each epoch; else all of them."""
        return False

    @abstractmethod
    def passes(self) -> tuple[Pass, ...]:
        """Readings the method needs."""
        raise NotImplementedError

    @abstractmethod
    def signals(self, batch: ScoredBatch) -> dict[str, Tensor]:
        """Measured once a step on the whole batch, without gradient."""
        raise NotImplementedError

    @abstractmethod
    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """Minimised, per token, on each micro-batch of whole prompts."""
        raise NotImplementedError

    def needs(self) -> frozenset[Need]:
        """What must be there before step 1."""
        return frozenset()

    def off_policy(self) -> float:
        """Share of the prompts of a step whose responses the teacher wrote beforehand."""
        return 1.0 if self.writer is Writer.TEACHER else 0.0

    def ema_rate(self) -> float:
        """How far the moving-average reader goes towards the student after each update."""
        return 0.005

    def entry_gate(self) -> EntryGate | None:
        """What the untrained student must pass before step 1."""
        return None

    def probe(self) -> GradientProbe | None:
        """Gradient norms that the method wants measured."""
        return None

    def metrics(self, batch: ScoredBatch, signals: Signals) -> dict[str, float]:
        """Figures of the step that only this method can name, for the log; `objectives/metrics.py` has shared ones."""
        return {}

    def remember(self, batch: ScoredBatch, signals: Signals) -> dict[str, float]:
        """What to carry to the next step, from the batch (with its memory) and its signals.

        It is kept only if the step's updates were finite, and must be finite itself.
        """
        return dict(batch.memory)

    def learn_norms(self, norms: Sequence[float], memory: Mapping[str, float]) -> dict[str, float]:
        """The memory after a probe's norms were measured."""
        return dict(memory)

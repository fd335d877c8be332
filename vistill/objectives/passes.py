"""What methods share: passes by name, bases of their classes, and the loss terms that several are made of."""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from vistill.batch import LossTerm, Objective, Responses, ScoredBatch, ScoredPass
from vistill.functional.rows import Rule, States, Target, log_prob_from_hidden, per_row, reverse_kl_from_hidden
from vistill.functional.siblings import mean_coefficients
from vistill.ranges import check_ranges, ranged
from vistill.types import Pass, Reader, View

STUDENT: Final = Pass(Reader.STUDENT, View.FULL, gradient=True)
TEACHER: Final = Pass(Reader.TEACHER, View.FULL)
WRITTEN: Final = Pass(Reader.OLD, View.FULL, keep="log_prob")
"""The student's own log-probabilities from when it wrote."""

Averaging = Literal["token", "response"]


class PlainMean(Objective):
    """A method that weighs every token alike: it states its terms, and its passes where they are not OPD's."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def passes(self) -> tuple[Pass, ...]:
        """The student with gradient and the teacher, both on the original picture."""
        return (STUDENT, TEACHER)

    def signals(self, batch: ScoredBatch) -> dict[str, Tensor]:
        """Coefficient `1 / (K T_n)` of each token; it sums to 1 over a prompt."""
        return {"token_weight": per_response(batch.responses)}


@dataclass(frozen=True)
class Mixture(PlainMean):
    """A method that learns from the student's responses and from responses the teacher wrote beforehand."""

    off_policy_share: float = ranged(0.5, 0, 1)
    """Share of the prompts whose responses the teacher wrote (1 - lambda); a keyed coin a step."""

    def off_policy(self) -> float:
        """The share."""
        return self.off_policy_share


def per_response(responses: Responses) -> Tensor:
    """Coefficient `1 / (K T_n)` of each token; it sums to 1 over a prompt: tokens, then responses, then prompts."""
    return mean_coefficients(1.0 / responses.num_siblings(), responses.rollout)


def averaged(responses: Responses, averaging: Averaging) -> tuple[Tensor, str]:
    """Weights and count of a mean: over all tokens of the step, or over tokens, then responses, then prompts."""
    if averaging == "token":
        return torch.ones(responses.num_tokens, device=responses.ids.device), "token"
    return per_response(responses), "prompt"


def states_of(scored: ScoredPass) -> States:
    """Hidden states and head of a reading that is data."""
    return States(scored.states(), scored.projection())


def against(batch: ScoredBatch, student: Pass, rule: Rule, *others: Pass, only: Tensor | None = None) -> Tensor:
    """`rule(student logits, other logits...)` of each row; gradient reaches the student alone.

    With `only`, a mask, the head runs on those rows alone and the others are 0.
    """
    if only is None:
        own = batch[student.name]
        return per_row(rule, own.states(), own.projection(), [states_of(batch[o.name]) for o in others])
    rows = torch.nonzero(only)[:, 0]
    own = batch[student.name].take(rows)
    values = per_row(rule, own.states(), own.projection(), [states_of(batch[o.name].take(rows)) for o in others])
    return values.new_zeros(len(only)).index_put((rows,), values)


def log_prob_of(batch: ScoredBatch, student: Pass) -> Tensor:
    """Log-probability of the sampled tokens, with gradient where the pass has it."""
    own = batch[student.name]
    return log_prob_from_hidden(own.states(), own.projection(), batch.responses.ids)


def reverse_kl_to_teacher(batch: ScoredBatch, weights: Tensor) -> LossTerm:
    """KL(student || teacher), both with the original picture, weighted per token."""
    student, teacher = batch[STUDENT.name], batch[TEACHER.name]
    target = [Target(1.0, teacher.states(), teacher.projection())]
    return LossTerm("reverse_kl", reverse_kl_from_hidden(student.states(), student.projection(), target), weights)

"""What methods share: passes by name, bases of their classes, and the loss terms that several are made of."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from vistill.batch import LossTerm, Objective, Requirements, Responses, ScoredBatch, ScoredPass
from vistill.functional.divergences import reverse_kl
from vistill.functional.rows import RowRule, Rule, States, apply_row_rules, log_prob_from_hidden
from vistill.functional.siblings import mean_coefficients
from vistill.ranges import check_ranges, ranged
from vistill.types import Pass, Reader, View

STUDENT: Final = Pass(Reader.STUDENT, View.FULL, gradient=True)
TEACHER: Final = Pass(Reader.TEACHER, View.FULL)
TEACHER_WITH_LOG_PROBS: Final = Pass(Reader.TEACHER, View.FULL, keep="both")
"""The same, its log-probabilities of the sampled tokens too."""
OLD_LOG_PROBS: Final = Pass(Reader.OLD, View.FULL, keep="log_prob")
"""The student's own log-probabilities from when it wrote."""

Averaging = Literal["token", "response"]


class UniformObjective(Objective):
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
class OffPolicyMixture(UniformObjective):
    """A method that learns from the student's responses and from responses the teacher wrote beforehand."""

    off_policy_share: float = ranged(0.5, 0, 1)
    """Share of the prompts whose responses the teacher wrote (1 - lambda); a keyed coin a step."""

    @property
    def requirements(self) -> Requirements:
        """The share of the teacher's responses."""
        return Requirements(off_policy_share=self.off_policy_share)


def per_response(responses: Responses) -> Tensor:
    """Coefficient `1 / (K T_n)` of each token; it sums to 1 over a prompt: tokens, then responses, then prompts."""
    return mean_coefficients(1.0 / responses.num_siblings(), responses.rollout)


def averaged(responses: Responses, averaging: Averaging) -> tuple[Tensor, str]:
    """Weights and count of a mean: over all tokens of the step, or over tokens, then responses, then prompts."""
    if averaging == "token":
        return torch.ones(responses.num_tokens, device=responses.ids.device), "token"
    return per_response(responses), "prompt"


def grad_if_learned(coefficient: float) -> AbstractContextManager[object]:
    """Values of a term with this coefficient are made inside: without gradient where it is 0 and they are watched."""
    return nullcontext() if coefficient != 0 else torch.no_grad()


def states_of(scored: ScoredPass) -> States:
    """Hidden states and head of a reading that is data."""
    return States(scored.states(), scored.projection())


RuleOnPasses = tuple[Rule, tuple[Pass, ...], Tensor | None]
"""A rule, the readings it takes next to the student's, and the weights of its values in the loss."""


def apply_rule(
    batch: ScoredBatch, student: Pass, rule: Rule, *others: Pass, weights: Tensor | None = None
) -> Tensor:
    """`rule(student logits, other logits...)` of each row; gradient reaches the student alone.

    With the weights the values will get (up to a factor), the head runs on the rows alone that have one, and once.
    """
    return apply_rules(batch, student, (rule, others, weights))[0]


def apply_rules(batch: ScoredBatch, student: Pass, *asked: RuleOnPasses) -> tuple[Tensor, ...]:
    """Several rules on one student reading, every reading projected once for all of them.

    Their weights stand to each other as in the loss: coefficients included.
    """
    names = list(dict.fromkeys(o.name for _, others, _ in asked for o in others))
    asks = [
        RowRule(rule, tuple(names.index(o.name) for o in others), weights)
        for rule, others, weights in asked
    ]
    own = batch[student.name]
    return apply_row_rules(
        own.states(), own.projection(), [states_of(batch[name]) for name in names], asks
    )


def log_prob_of(batch: ScoredBatch, student: Pass, weights: Tensor | None = None) -> Tensor:
    """Log-probability of the sampled tokens, with gradient where the pass has it."""
    own = batch[student.name]
    return log_prob_from_hidden(own.states(), own.projection(), batch.responses.ids, weights)


def reverse_kl_to_teacher(
    batch: ScoredBatch, weights: Tensor, coefficient: float = 1.0
) -> LossTerm:
    """KL(student || teacher), both with the original picture, weighted per token."""
    values = apply_rule(batch, STUDENT, reverse_kl, TEACHER, weights=weights)
    return LossTerm("reverse_kl", values, weights, coefficient=coefficient)

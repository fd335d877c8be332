"""What methods share: named passes, base classes, and loss terms that several methods use."""

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
"""The same, with its log-probabilities of the sampled tokens too."""
OLD_LOG_PROBS: Final = Pass(Reader.OLD, View.FULL, keep="log_prob")
"""The student's log-probabilities at the time of sampling."""

Averaging = Literal["token", "response"]


class UniformObjective(Objective):
    """A method that weighs all tokens alike. It defines its terms, and its passes if not OPD's."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def passes(self) -> tuple[Pass, ...]:
        """The student with gradient and the teacher, both on the original image."""
        return (STUDENT, TEACHER)

    def signals(self, batch: ScoredBatch) -> dict[str, Tensor]:
        """Coefficient `1 / (K T_n)` of each token; it sums to 1 over a prompt."""
        return {"token_weight": per_response(batch.responses)}


@dataclass(frozen=True)
class OffPolicyMixture(UniformObjective):
    """A method that learns from the student's responses and from stored teacher responses."""

    off_policy_share: float = ranged(0.5, 0, 1)
    """Share of the prompts whose responses the teacher wrote (1 - lambda); a keyed random draw per
    step."""

    @property
    def requirements(self) -> Requirements:
        """The share of the teacher's responses."""
        return Requirements(off_policy_share=self.off_policy_share)


def per_response(responses: Responses) -> Tensor:
    """Coefficient `1 / (K T_n)` of each token; it sums to 1 over a prompt.

    It averages over tokens, then responses, then prompts.
    """
    return mean_coefficients(1.0 / responses.num_siblings(), responses.rollout)


def averaged(responses: Responses, averaging: Averaging) -> tuple[Tensor, str]:
    """Weights and count of a mean.

    `token`: over all tokens of the step. `response`: over tokens, then responses, then prompts.
    """
    if averaging == "token":
        return torch.ones(responses.num_tokens, device=responses.ids.device), "token"
    return per_response(responses), "prompt"


def grad_if_learned(coefficient: float) -> AbstractContextManager[object]:
    """Context to compute a term in: no gradient if its coefficient is 0 (it is only logged)."""
    return nullcontext() if coefficient != 0 else torch.no_grad()


def states_of(scored: ScoredPass) -> States:
    """Hidden states and head of a pass without gradient."""
    return States(scored.states(), scored.projection())


RuleOnPasses = tuple[Rule, tuple[Pass, ...], Tensor | None]
"""A rule, its passes after the student's, and the weights of its values in the loss."""


def apply_rule(
    batch: ScoredBatch, student: Pass, rule: Rule, *others: Pass, weights: Tensor | None = None
) -> Tensor:
    """`rule(student logits, other logits...)` of each row; gradient reaches the student alone.

    If the weights that the values get in the loss are passed (up to a factor), the head runs once,
    and only on rows whose weight is not 0.
    """
    return apply_rules(batch, student, (rule, others, weights))[0]


def apply_rules(batch: ScoredBatch, student: Pass, *rules: RuleOnPasses) -> tuple[Tensor, ...]:
    """Several rules on one student pass; each pass is projected once for all of them.

    The weights of the rules have the same proportions as in the loss, coefficients included.
    """
    names = list(dict.fromkeys(o.name for _, others, _ in rules for o in others))
    row_rules = [
        RowRule(rule, tuple(names.index(o.name) for o in others), weights)
        for rule, others, weights in rules
    ]
    scored = batch[student.name]
    return apply_row_rules(
        scored.states(), scored.projection(), [states_of(batch[n]) for n in names], row_rules
    )


def log_prob_of(batch: ScoredBatch, student: Pass, weights: Tensor | None = None) -> Tensor:
    """Log-probability of the sampled tokens, with gradient where the pass has it."""
    scored = batch[student.name]
    return log_prob_from_hidden(scored.states(), scored.projection(), batch.responses.ids, weights)


def reverse_kl_to_teacher(
    batch: ScoredBatch, weights: Tensor, coefficient: float = 1.0
) -> LossTerm:
    """KL(student || teacher), both with the original image, weighted per token."""
    values = apply_rule(batch, STUDENT, reverse_kl, TEACHER, weights=weights)
    return LossTerm("reverse_kl", values, weights, coefficient=coefficient)

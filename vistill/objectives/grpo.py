"""`grpo`: group-relative policy optimisation with rewards from the answer checkers (methods 4.4).

The default is one update per step (our choice: VA-OPD states no setting of its baselines), so the
ratio is 1 and nothing is clipped. With `updates` above 1 the ratio differs from 1. The dual clip
and the unbiased standard deviation are those of released code.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vistill.batch import LossTerm, Need, Objective, Requirements, Responses, ScoredBatch, Signals
from vistill.functional.divergences import k3
from vistill.functional.policy import clipped_surrogate, group_advantage, probability_ratio
from vistill.objectives.metrics import group_metrics
from vistill.objectives.shared import OLD_LOG_PROBS, STUDENT, Averaging, averaged, log_prob_of
from vistill.ranges import check_ranges, ranged
from vistill.types import Pass, Reader, View

REFERENCE = Pass(Reader.REFERENCE, View.FULL, keep="log_prob")


@dataclass(frozen=True)
class GRPO(Objective):
    """`-mean min(rho A, clip(rho) A) + beta mean k3(reference)`, `A = (r - mean) / (std + 1e-6)`.

    The standard deviation is unbiased.
    """

    clip_low: float = ranged(0.2, 0, 1)
    """The ratio is clipped below 1 - this (epsilon_l)."""
    clip_high: float = ranged(0.3, 0)
    """The ratio is clipped above 1 + this (epsilon_h)."""
    dual_clip: float = ranged(3.0, 1)
    """Where A < 0 the loss is at most this times |A|."""
    reference_weight: float = ranged(0.01, 0)
    """Weight of the k3 divergence from the initial weights (beta); 0 needs no reference."""
    watch_reference: bool = False
    """Log loss/reference_k3 under weight 0 too. Costs a copy of the initial weights and one more
    forward pass."""
    averaging: Averaging = "token"
    """`token`: mean over all tokens (the released default). `response`: mean over tokens, then
    responses, then prompts (the formula)."""
    updates: int = ranged(1, 1)
    """Updates per step: the prompts are split into this number of parts. Above 1 the old
    log-probabilities are computed before the first update."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def requirements(self) -> Requirements:
        """A reward and siblings to compare it with."""
        return Requirements(needs={Need.REWARD, Need.SIBLINGS}, updates=self.updates)

    def passes(self) -> tuple[Pass, ...]:
        """The student; its old weights if a step has several updates; the reference if used."""
        old = (OLD_LOG_PROBS,) if self.updates > 1 else ()
        return (STUDENT, *old, *((REFERENCE,) if self.measures_reference else ()))

    @property
    def measures_reference(self) -> bool:
        """Whether the divergence from the initial weights is part of the loss or logged."""
        return self.reference_weight > 0 or self.watch_reference

    def signals(self, batch: ScoredBatch) -> dict[str, Tensor]:
        """Group advantage of each rollout; equal rewards give none."""
        responses = batch.responses
        return {"group_advantage": group_advantage(responses.rewards(), responses.group)}

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """Clipped policy term, reference divergence, and the terms that are only logged."""
        advantage = signals["group_advantage"][batch.responses.rollout]
        return self.policy_terms(batch, log_prob_of(batch, STUDENT), advantage)

    def policy_terms(
        self, batch: ScoredBatch, log_prob: Tensor, advantage: Tensor
    ) -> tuple[LossTerm, ...]:
        """The terms for an advantage of each token."""
        old = batch[OLD_LOG_PROBS.name].sampled() if self.updates > 1 else log_prob.detach()
        ratio = probability_ratio(log_prob, old)
        surrogate = clipped_surrogate(
            ratio, advantage, self.clip_low, self.clip_high, self.dual_clip
        )
        terms = [
            self.mean_term(batch.responses, "policy", surrogate),
            *self.clip_shares(batch.responses, ratio.detach(), advantage),
        ]
        if self.measures_reference:
            reference = k3(log_prob, batch[REFERENCE.name].sampled())
            terms.append(
                self.mean_term(batch.responses, "reference_k3", reference, self.reference_weight)
            )
        return tuple(terms)

    def mean_term(
        self,
        responses: Responses,
        name: str,
        values: Tensor,
        coefficient: float = 1.0,
        keep: Tensor | None = None,
    ) -> LossTerm:
        """A term under the method's averaging; tokens that `keep` does not mark count as 0."""
        weights, per = averaged(responses, self.averaging)
        return LossTerm(
            name, values, weights if keep is None else weights * keep, per, coefficient=coefficient
        )

    def metrics(self, batch: ScoredBatch, signals: Signals) -> dict[str, float]:
        """How many rollouts have no advantage."""
        return group_metrics(signals)

    def clip_shares(self, responses: Responses, ratio: Tensor, advantage: Tensor) -> list[LossTerm]:
        """Shares of the tokens whose ratio is clipped: a rising upper share precedes collapse."""
        high = ((ratio > 1 + self.clip_high) & (advantage > 0)).float()
        low = ((ratio < 1 - self.clip_low) & (advantage < 0)).float()
        ones = torch.ones_like(high)
        return [
            LossTerm(f"clip_{side}_share", values, ones, "token", minimised=False)
            for side, values in (("high", high), ("low", low))
        ]

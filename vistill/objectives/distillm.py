"""`distillm`: skewed KL divergence (DistiLLM, arXiv 2402.03898).

The second distribution of the divergence is mixed with a share of the first.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from vistill.batch import LossTerm, ScoredBatch, Signals
from vistill.functional.divergences import skewed_forward_kl, skewed_reverse_kl
from vistill.objectives.shared import STUDENT, TEACHER, OffPolicyMixture, apply_rule
from vistill.ranges import ranged


@dataclass(frozen=True)
class DistiLLM(OffPolicyMixture):
    """`KL(pT || a pT + (1-a) pS)` (forward) or `KL(pS || a pS + (1-a) pT)` (reverse).

    The mean is taken over tokens, then responses, then prompts.
    """

    direction: Literal["forward", "reverse"] = "forward"
    """Which distribution the expectation is taken over: the teacher's or the student's."""
    skew: float = ranged(0.1, 0, 1)
    """Share a of the first distribution in the mixture (alpha); 0 is the KL without mixture."""

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """The skewed divergence."""
        rule = skewed_forward_kl if self.direction == "forward" else skewed_reverse_kl
        weights = signals["token_weight"]
        values = apply_rule(batch, STUDENT, partial(rule, skew=self.skew), TEACHER, weights=weights)
        return (LossTerm(f"skewed_{self.direction}_kl", values, weights),)

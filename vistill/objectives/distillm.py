"""`distillm`: skewed KL (DistiLLM, arXiv 2402.03898): the second distribution is mixed with a little of the first."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from vistill.batch import LossTerm, Objective, ScoredBatch, Signals
from vistill.functional.divergences import skewed_forward_kl, skewed_reverse_kl
from vistill.objectives.passes import STUDENT, TEACHER, against, per_response
from vistill.ranges import check_ranges, ranged
from vistill.types import Pass


@dataclass(frozen=True)
class DistiLLM(Objective):
    """`KL(pT || a pT + (1-a) pS)` (forward) or `KL(pS || a pS + (1-a) pT)` (reverse), tokens, responses, prompts."""

    direction: Literal["forward", "reverse"] = "forward"
    """Which distribution the expectation is taken over: the teacher's or the student's."""
    skew: float = ranged(0.1, 0, 1)
    """Share a of the first distribution in the mixture (alpha); 0 is the plain KL."""
    off_policy_share: float = ranged(0.5, 0, 1)
    """Share of the prompts whose responses the teacher wrote beforehand; a keyed coin a step."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def off_policy(self) -> float:
        """The share."""
        return self.off_policy_share

    def passes(self) -> tuple[Pass, ...]:
        """OPD's passes."""
        return (STUDENT, TEACHER)

    def signals(self, batch: ScoredBatch) -> dict[str, Tensor]:
        """Coefficient `1 / (K T_n)` of each token."""
        return {"token_weight": per_response(batch.responses)}

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """The skewed divergence."""
        rule = skewed_forward_kl if self.direction == "forward" else skewed_reverse_kl
        values = against(batch, STUDENT, partial(rule, skew=self.skew), TEACHER)
        return (LossTerm(f"skewed_{self.direction}_kl", values, signals["token_weight"]),)

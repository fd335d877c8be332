"""`gkd`: generalised knowledge distillation (arXiv 2306.13649).

The loss is a Jensen-Shannon divergence. A share of the responses comes from the teacher.
"""

from dataclasses import dataclass
from functools import partial

from vistill.batch import LossTerm, ScoredBatch, Signals
from vistill.functional.divergences import jensen_shannon
from vistill.objectives.shared import STUDENT, TEACHER, OffPolicyMixture, apply_rule
from vistill.ranges import ranged


@dataclass(frozen=True)
class GKD(OffPolicyMixture):
    """`(1/N) sum_n (1/T_n) sum_t JSD_beta(pT, pS)` on responses of student and teacher."""

    beta: float = ranged(0.5, 0, 1)
    """Weight of the teacher in the mixture m; 0 is KL(pT || pS), 1 is KL(pS || pT)."""

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """Generalised Jensen-Shannon divergence."""
        weights = signals["token_weight"]
        values = apply_rule(
            batch, STUDENT, partial(jensen_shannon, beta=self.beta), TEACHER, weights=weights
        )
        return (LossTerm("jensen_shannon", values, weights),)

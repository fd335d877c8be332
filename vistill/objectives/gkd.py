"""`gkd`: generalised knowledge distillation (arXiv 2306.13649): JSD, and a share of the teacher's own responses."""

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from vistill.batch import LossTerm, Objective, ScoredBatch, Signals
from vistill.functional.divergences import jensen_shannon
from vistill.objectives.passes import STUDENT, TEACHER, against, per_response
from vistill.ranges import check_ranges, ranged
from vistill.types import Pass


@dataclass(frozen=True)
class GKD(Objective):
    """`(1/N) sum_n (1/T_n) sum_t JSD_beta(pT, pS)` on a mixture of student and teacher responses."""

    beta: float = ranged(0.5, 0, 1)
    """Weight of the teacher in the mixture m; 0 is KL(pT || pS), 1 is KL(pS || pT)."""
    off_policy_share: float = ranged(0.5, 0, 1)
    """Share of the prompts whose responses the teacher wrote beforehand (1 - lambda); a keyed coin a step."""

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
        """Generalised Jensen-Shannon divergence."""
        values = against(batch, STUDENT, partial(jensen_shannon, beta=self.beta), TEACHER)
        return (LossTerm("jensen_shannon", values, signals["token_weight"]),)

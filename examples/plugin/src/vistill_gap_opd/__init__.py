"""`gap_opd`: on-policy distillation on the tokens where student and teacher disagree most."""

from dataclasses import dataclass

from torch import Tensor

from vistill.batch import LossTerm, Objective, Requirements, ScoredBatch, Signals
from vistill.functional.segments import top_share
from vistill.functional.siblings import mean_coefficients
from vistill.objectives.shared import (
    OLD_LOG_PROBS,
    STUDENT,
    TEACHER_WITH_LOG_PROBS,
    reverse_kl_to_teacher,
)
from vistill.ranges import check_ranges, ranged
from vistill.types import Pass


@dataclass(frozen=True)
class GapOPD(Objective):
    """`(1/N) sum_n mean over the top tokens of KL(pS || pT)`, by `|log pT(y) - log pS(y)|`."""

    share: float = ranged(0.5, 0, 1, above=True)
    """Share of each response's tokens that are learned from; 1 is `opd`."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def requirements(self) -> Requirements:
        """The defaults: the student writes, and the method needs nothing but its passes."""
        return Requirements()

    def passes(self) -> tuple[Pass, ...]:
        """The student with gradient, the teacher, and the student at the beginning of the step."""
        return (STUDENT, TEACHER_WITH_LOG_PROBS, OLD_LOG_PROBS)

    def signals(self, batch: ScoredBatch) -> dict[str, Tensor]:
        """The gap of each token [R], which tokens are learned from [R], and their weights [R]."""
        responses = batch.responses
        gap = (batch["teacher.full"].sampled() - batch["old.full"].sampled()).abs()
        top = top_share(gap, responses.rollout, responses.lengths, self.share)
        weight = mean_coefficients(1.0 / responses.num_siblings(), responses.rollout, top)
        return {"gap": gap, "top": top, "token_weight": weight}

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """Reverse KL to the teacher; tokens of weight 0 cost nothing."""
        return (reverse_kl_to_teacher(batch, signals["token_weight"]),)

    def metrics(self, batch: ScoredBatch, signals: Signals) -> dict[str, float]:
        """The mean gap, and that of the tokens that are learned from."""
        gap, top = signals["gap"], signals["top"]
        return {"gap/mean": float(gap.mean()), "gap/top_mean": float(gap[top].mean())}

"""`iw_opd`: position-weighted on-policy distillation (IW-OPD, arXiv 2606.22600).

Tokens before most of the disagreement of student and teacher weigh more than later ones.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vistill.batch import LossTerm, Objective, Responses, ScoredBatch, Signals
from vistill.functional.segments import segment_sum, sum_before
from vistill.objectives.opd import reverse_kl_by
from vistill.objectives.shared import (
    OLD_LOG_PROBS,
    STUDENT,
    TEACHER,
    TEACHER_WITH_LOG_PROBS,
    per_response,
)
from vistill.ranges import check_ranges, ranged
from vistill.types import Pass, Reader, View


@dataclass(frozen=True)
class IWOPD(Objective):
    """Reverse KL of each token times `1 + g (1 - S_t / S_T)`.

    `S_t = sum_{k<t} |log pT(y_k) - log pS(y_k)|`.
    """

    strength: float = ranged(0.5, 0)
    """Extra weight of the first token (gamma); it falls to 0 as S_t approaches S_T."""
    estimator: Literal["sampled", "full"] = "sampled"
    """`sampled`: the one-token estimate (paper). `full`: the whole vocabulary, to compare with
    `opd` and `va_opd`."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def passes(self) -> tuple[Pass, ...]:
        """OPD's passes, and the student's log-probabilities at the time of sampling."""
        teacher = (
            Pass(Reader.TEACHER, View.FULL, keep="log_prob")
            if self.estimator == "sampled"
            else TEACHER_WITH_LOG_PROBS
        )
        return (STUDENT, teacher, OLD_LOG_PROBS)

    def signals(self, batch: ScoredBatch) -> dict[str, Tensor]:
        """Position weight and coefficient of each token."""
        gap = (batch[TEACHER.name].sampled() - batch[OLD_LOG_PROBS.name].sampled()).abs()
        position = position_weight(gap, batch.responses, self.strength)
        return {
            "position_weight": position,
            "token_weight": per_response(batch.responses) * position,
        }

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """Reverse KL to the teacher, or its estimate, weighted by position."""
        return reverse_kl_by(self.estimator, batch, signals["token_weight"])


def position_weight(gap: Tensor, responses: Responses, strength: float) -> Tensor:
    """`1 + strength (1 - S_t / S_T)`; `1 + strength` on a response without any disagreement."""
    before = sum_before(gap, responses.rollout, responses.num_rollouts)
    total = segment_sum(gap, responses.rollout, responses.num_rollouts)[responses.rollout]
    return 1 + strength * (1 - before / total.clamp_min(1e-12))

"""`opd`: standard on-policy distillation, the baseline of every other method.

The default is the papers' loss. `estimator="sampled"` is the one-token estimate that other code
bases call OPD.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vistill.batch import LossTerm, ScoredBatch, Signals
from vistill.objectives.shared import (
    STUDENT,
    TEACHER,
    UniformObjective,
    log_prob_of,
    reverse_kl_to_teacher,
)
from vistill.types import Pass, Reader, View


@dataclass(frozen=True)
class OPD(UniformObjective):
    """`(1/N) sum_n (1/T_n) sum_t KL(pS || pT)` on the student's responses.

    The divergence is taken over the whole vocabulary at temperature 1.
    """

    estimator: Literal["full", "sampled"] = "full"
    """`full`: the whole vocabulary. `sampled`: `-(log pT - log pS)(y) log pS(y)` of the sampled
    token, the bracket detached."""

    def passes(self) -> tuple[Pass, ...]:
        """Student with gradient, teacher without, both on the original image."""
        if self.estimator == "sampled":
            return (STUDENT, Pass(Reader.TEACHER, View.FULL, keep="log_prob"))
        return (STUDENT, TEACHER)

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """Reverse KL to the teacher."""
        return reverse_kl_by(self.estimator, batch, signals["token_weight"])


def reverse_kl_by(
    estimator: Literal["full", "sampled"], batch: ScoredBatch, weights: Tensor
) -> tuple[LossTerm, ...]:
    """Reverse KL to the teacher over the vocabulary, or its one-token estimate."""
    if estimator == "full":
        return (reverse_kl_to_teacher(batch, weights),)
    return sampled_reverse_kl(batch, weights)


def sampled_reverse_kl(batch: ScoredBatch, weights: Tensor) -> tuple[LossTerm, ...]:
    """The policy-gradient estimate, and the logged one-sample estimate of KL(pS || pT).

    The logged one is `log pS(y) - log pT(y)`. With y sampled from the student, the expectation of
    the gradient of the first is the gradient of the reverse KL.
    """
    log_prob = log_prob_of(batch, STUDENT)
    gap = (log_prob - batch[TEACHER.name].sampled()).detach()
    return (
        LossTerm("sampled_policy", gap * log_prob, weights),
        LossTerm("sampled_reverse_kl", gap, weights, minimised=False),
    )

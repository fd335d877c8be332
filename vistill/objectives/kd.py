"""`kd`: off-policy distillation on responses the teacher wrote once (methods 4.1)."""

from dataclasses import dataclass
from typing import Literal

from vistill.batch import LossTerm, Requirements, ScoredBatch, Signals
from vistill.functional.divergences import forward_kl
from vistill.objectives.shared import (
    STUDENT,
    TEACHER,
    UniformObjective,
    apply_rule,
    log_prob_of,
    reverse_kl_to_teacher,
)
from vistill.types import Pass, Writer


@dataclass(frozen=True)
class KD(UniformObjective):
    """`(1/N) sum_n (1/T_n) sum_t KL(pT || pS)` on the teacher's responses.

    The teacher writes them once, and the run folder stores them.
    """

    loss: Literal["forward_kl", "cross_entropy", "reverse_kl"] = "forward_kl"
    """Forward KL (default), cross-entropy on the response tokens (SeqKD), or reverse KL on the
    teacher's responses."""

    @property
    def requirements(self) -> Requirements:
        """The teacher writes."""
        return Requirements(writer=Writer.TEACHER)

    def passes(self) -> tuple[Pass, ...]:
        """The student; the teacher where its distribution is the target."""
        return (STUDENT,) if self.loss == "cross_entropy" else (STUDENT, TEACHER)

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """The chosen loss."""
        weights = signals["token_weight"]
        if self.loss == "reverse_kl":
            return (reverse_kl_to_teacher(batch, weights),)
        if self.loss == "cross_entropy":
            return (LossTerm("nll", -log_prob_of(batch, STUDENT, weights), weights),)
        return (
            LossTerm(
                "forward_kl",
                apply_rule(batch, STUDENT, forward_kl, TEACHER, weights=weights),
                weights,
            ),
        )

"""`opd`: standard on-policy distillation, the baseline that every method here must be compared with.

Departures: none. Token means per response, responses averaged per prompt, prompts averaged (VA-OPD Eq. 1).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vistill.batch import LossTerm, ScoredBatch, Signals
from vistill.functional.divergences import Target, reverse_kl_from_hidden
from vistill.functional.siblings import mean_coefficients, uniform_siblings
from vistill.objectives.passes import STUDENT, TEACHER
from vistill.types import Pass, View, Writer


def reverse_kl_to_teacher(batch: ScoredBatch, weights: Tensor) -> LossTerm:
    """KL(student || teacher), both with the original picture, weighted per token."""
    student, teacher = batch[STUDENT.name], batch[TEACHER.name]
    target = [Target(1.0, teacher.states(), teacher.projection())]
    return LossTerm("reverse_kl", reverse_kl_from_hidden(student.states(), student.projection(), target), weights)


@dataclass(frozen=True)
class OPD:
    """`(1/N) sum_n (1/T_n) sum_t KL(pS || pT)` on the student's own responses, whole vocabulary, temperature 1."""

    writer: ClassVar[Writer] = Writer.STUDENT
    writer_view: ClassVar[View] = View.FULL

    def passes(self) -> tuple[Pass, ...]:
        """Student with gradient, teacher without, both on the original picture."""
        return (STUDENT, TEACHER)

    def signals(self, batch: ScoredBatch) -> dict[str, Tensor]:
        """Coefficient `1 / (K T_n)` of each token; it sums to 1 over a prompt."""
        responses = batch.responses
        return {"token_weight": mean_coefficients(uniform_siblings(responses.group), responses.rollout)}

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """Reverse KL to the teacher."""
        return (reverse_kl_to_teacher(batch, signals["token_weight"]),)

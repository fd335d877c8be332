"""`vgs_language`: language steering, the inverse experiment of VGS (arXiv 2606.00564, Eq. 19-21).

The printed Eq. 20 conditions the first argument of the preserved divergence on the text alone; very likely KL(p||q*)
is meant. Both readings are here.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from vistill.batch import LossTerm, ScoredBatch, Signals
from vistill.functional.divergences import reverse_kl
from vistill.objectives.passes import STUDENT, TEACHER, against, learnt_with, reverse_kl_to_teacher
from vistill.objectives.steering import TEACHER_BLIND
from vistill.objectives.vgs import VGS
from vistill.types import Pass, Reader, View


@dataclass(frozen=True)
class VGSLanguage(VGS):
    """`eta (KL(p||q) + gamma KL(p_x||q_x) + lambda 1[VDS > Q] KL(p||q*))`: the knobs of `vgs`, the roles exchanged."""

    eta: Literal["constant", "dynamic", "none"] = "dynamic"
    """Norm correction with the language gradient; the paper's constants belong to visual steering."""
    vision_preserved: Literal["meant", "printed"] = "meant"
    """Preserve KL(p||q*) on gated tokens, or KL(p_x||q*) as the paper prints it."""

    steering_term: ClassVar[str] = "language_kl"

    def blind(self) -> Pass:
        """The student without the picture learns on every row."""
        return Pass(Reader.STUDENT, View.TEXT_ONLY, gradient=True)

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """Standard, language steering, preserved vision, all times eta."""
        weights, target = signals["token_weight"], (TEACHER, TEACHER_BLIND, self.blind())
        steered, kept = weights * signals["steering"], weights * signals["gate"]
        with learnt_with(self.gamma):
            language = against(batch, self.blind(), reverse_kl, TEACHER_BLIND, weights=steered)
        learner = STUDENT if self.vision_preserved == "meant" else self.blind()
        with learnt_with(self.preserve):
            visual = against(batch, learner, self.kl_to_steered(), *target, weights=kept)
        return self.corrected(
            batch,
            weights,
            reverse_kl_to_teacher(batch, weights),
            LossTerm("language_kl", language, steered, coefficient=self.gamma),
            LossTerm("visual_preservation", visual, kept, coefficient=self.preserve),
        )

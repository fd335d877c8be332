"""`vgs_language`: language steering, the inverse experiment of VGS (arXiv 2606.00564, Eq. 19-21).

The printed Eq. 20 conditions the first argument of the preserved divergence on the text alone; very
likely KL(p||q*) is meant. Both variants are available (`vision_preserved`).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from vistill.batch import LossTerm, ScoredBatch, Signals
from vistill.functional.divergences import reverse_kl
from vistill.objectives.shared import (
    STUDENT,
    TEACHER,
    apply_rule,
    grad_if_learned,
    reverse_kl_to_teacher,
)
from vistill.objectives.steering import TEACHER_TEXT_ONLY
from vistill.objectives.vgs import VGS
from vistill.types import Pass, Reader, View


@dataclass(frozen=True)
class VGSLanguage(VGS):
    """`eta (KL(p||q) + gamma KL(p_x||q_x) + lambda 1[VDS > Q] KL(p||q*))`.

    The knobs are those of `vgs`; image and text exchange their roles.
    """

    eta: Literal["constant", "dynamic", "none"] = "dynamic"
    """Norm correction with the language gradient; the paper's constants are for visual steering."""
    vision_preserved: Literal["meant", "printed"] = "meant"
    """Preserve KL(p||q*) on gated tokens, or KL(p_x||q*) as the paper prints it."""

    steering_term: ClassVar[str] = "language_kl"

    def blind(self) -> Pass:
        """The student without the image, with gradient on every row."""
        return Pass(Reader.STUDENT, View.TEXT_ONLY, gradient=True)

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """Standard, language steering, preserved vision, all times eta."""
        weights, target = signals["token_weight"], (TEACHER, TEACHER_TEXT_ONLY, self.blind())
        steered, gated = weights * signals["steering"], weights * signals["gate"]
        with grad_if_learned(self.gamma):
            language = apply_rule(
                batch, self.blind(), reverse_kl, TEACHER_TEXT_ONLY, weights=steered
            )
        learner = STUDENT if self.vision_preserved == "meant" else self.blind()
        with grad_if_learned(self.preserve):
            visual = apply_rule(batch, learner, self.kl_to_steered(), *target, weights=gated)
        return self.corrected(
            batch,
            weights,
            reverse_kl_to_teacher(batch, weights),
            LossTerm("language_kl", language, steered, coefficient=self.gamma),
            LossTerm("visual_preservation", visual, gated, coefficient=self.preserve),
        )

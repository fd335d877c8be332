"""`grounded_opd`: on-policy distillation up to the first misread of each rollout.

A token that the image makes much less likely for the teacher is a misread. The rollout goes on from
it as from a true statement, and a teacher that sees the image scores a text that contradicts it.
This method learns from the tokens up to the misread, that token included.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vistill.batch import LossTerm, Need, Objective, Requirements, ScoredBatch, Signals
from vistill.functional.segments import segment_mean, segment_sum
from vistill.functional.siblings import mean_coefficients, sibling_softmax, uniform_siblings
from vistill.objectives.metrics import existing
from vistill.objectives.misreads import misread_metrics, misread_warnings, signed_advantage
from vistill.objectives.shared import (
    STUDENT,
    TEACHER,
    TEACHER_WITH_LOG_PROBS,
    reverse_kl_to_teacher,
)
from vistill.ranges import check_ranges, ranged
from vistill.signals.misreads import (
    Detection,
    combined,
    misread_by_advantage,
    misread_by_argmax,
    up_to_first,
)
from vistill.signals.visual_advantage import distribution_advantage
from vistill.signals.visual_dependency import token_has_image
from vistill.types import Pass, Reader, View


@dataclass(frozen=True)
class GroundedOPD(Objective):
    """`(1/B) sum_b sum_n w[n] sum_t f[n,t] KL(pS || pT) / T_n`, f = 0 after the first misread."""

    detection: Detection = "advantage"
    """A misread is a token with signed visual advantage below misread_threshold (`advantage`), a
    critical token that is not the teacher's most likely one (`argmax`), `both`, or `either`."""
    misread_threshold: float = ranged(-1.0, -100, 0, below=True)
    """Signed visual advantage in nats below which a token is a misread."""
    critical_nats: float = ranged(0.5, 0)
    """A token is critical if KL(pT full || pT pixelated) is larger than this (`argmax`)."""
    factor_after: float = ranged(0.0, 0, 1)
    """Factor f of the tokens after the first misread; 0 leaves them out, 1 is `opd`."""
    normaliser: Literal["response", "kept"] = "response"
    """Divide by the tokens of the response T_n, or by the sum of its factors, so that a rollout
    with a misread weighs as much as one without."""
    rollout_weights: bool = False
    """Weigh siblings by their mean visual advantage, as `va_opd`; false gives each 1/K."""
    rollout_temperature: float = ranged(1.0, 0, above=True)
    """Temperature of the softmax over siblings (tau of `va_opd`)."""
    watch_after: bool = False
    """Log loss/reverse_kl_after_misread, the reverse KL of the tokens after the first misread."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def requirements(self) -> Requirements:
        """Images; siblings if they are weighed."""
        needs = {Need.IMAGE, Need.SIBLINGS} if self.rollout_weights else {Need.IMAGE}
        return Requirements(needs=needs)

    def passes(self) -> tuple[Pass, ...]:
        """OPD's passes and the teacher on the pixelated image."""
        keep = "log_prob" if self.detection == "advantage" else "both"
        return (STUDENT, TEACHER_WITH_LOG_PROBS, Pass(Reader.TEACHER, View.PIXELATED, keep=keep))

    def signals(self, batch: ScoredBatch) -> dict[str, Tensor]:
        """Signed visual advantage, misreads, what is kept, and the weights."""
        r = batch.responses
        full, degraded = batch[TEACHER.name], batch[f"{Reader.TEACHER}.{View.PIXELATED}"]
        signed = signed_advantage(r, full, degraded)
        misread, extra = misread_by_advantage(signed, self.misread_threshold), dict[str, Tensor]()
        if self.detection != "advantage":
            change = distribution_advantage(full, degraded)
            extra = {"image_change": torch.where(token_has_image(r), change, change.new_zeros(()))}
            critical = extra["image_change"] > self.critical_nats
            by_argmax = misread_by_argmax(full, r.ids, critical)
            misread = combined(self.detection, misread, by_argmax)
        kept = up_to_first(misread, r.rollout, r.num_rollouts)
        weight = self._rollout_weight(batch, signed)
        plain = mean_coefficients(weight, r.rollout)
        factor = torch.where(kept, plain.new_ones(()), plain.new_tensor(self.factor_after))
        token_weight = plain * factor
        if self.normaliser == "kept":  # the misread itself is kept, so no sum is 0
            total = segment_sum(factor, r.rollout, r.num_rollouts)
            token_weight = weight[r.rollout] * factor / total[r.rollout]
        return {"signed_advantage": signed, "misread": misread, "kept": kept, **extra} | {
            "rollout_weight": weight,
            "after_weight": plain * ~kept,
            "token_weight": token_weight,
        }

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """Reverse KL to the teacher on the ORIGINAL image; watched, that after the misreads."""
        loss = reverse_kl_to_teacher(batch, signals["token_weight"])
        if not self.watch_after:
            return (loss,)
        with torch.no_grad():
            after = reverse_kl_to_teacher(batch, signals["after_weight"])
        watched = LossTerm("reverse_kl_after_misread", after.values, after.weights, minimised=False)
        return (loss, watched)

    def metrics(self, batch: ScoredBatch, signals: Signals) -> dict[str, float]:
        """Misreads, visual advantage and the weights of siblings."""
        signed, weight = signals["signed_advantage"], signals["rollout_weight"]
        figures = {
            "va/mean": float(signed.clamp_min(0).mean()),
            "weight/min": float(weight.min()),
            "weight/max": float(weight.max()),
        }
        return misread_metrics(batch.responses, signals) | existing(figures)

    def warnings(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """A step without misreads, or one that learns from few tokens."""
        limits = []
        if self.detection != "argmax":
            limits.append(f"misread_threshold={self.misread_threshold:g}")
        if self.detection != "advantage":
            limits.append(f"critical_nats={self.critical_nats:g}")
        setting = ", ".join([f"detection={self.detection}", *limits])
        return misread_warnings(metrics, setting, self.factor_after)

    def _rollout_weight(self, batch: ScoredBatch, signed: Tensor) -> Tensor:
        responses = batch.responses
        uniform = uniform_siblings(responses.group).to(signed)
        if not self.rollout_weights:
            return uniform
        means = segment_mean(signed.clamp_min(0), responses.rollout, responses.num_rollouts)
        weight = sibling_softmax(means, responses.group, self.rollout_temperature)
        return torch.where(responses.has_image[responses.group], weight, uniform)

"""`s2vopd`: the student sees a degraded image, its moving-average teacher the original.

arXiv 2608.14144. Two decisions that the paper leaves open: the student also writes its responses
from the degraded image, so that they are on-policy; and down-sampling keeps the image size, so that
both sides have the same image tokens.
"""

from dataclasses import dataclass
from functools import partial

from vistill.batch import LossTerm, Need, Requirements, ScoredBatch, Signals
from vistill.functional.divergences import jensen_shannon
from vistill.objectives.shared import UniformObjective, apply_rule
from vistill.ranges import ranged
from vistill.types import Pass, Reader, View

DEGRADED_STUDENT = Pass(Reader.STUDENT, View.DEGRADED, gradient=True)
ORIGINAL_EMA = Pass(Reader.EMA, View.FULL)


@dataclass(frozen=True)
class S2VOPD(UniformObjective):
    """`(1/T) sum_t JSD_beta(p_ema(.|image), p(.|degraded image))`.

    The responses are written from the degraded image.
    """

    beta: float = ranged(0.5, 0, 1)
    """Weight of the teacher in the mixture m."""
    ema_decay: float = ranged(0.95, 0, 1)
    """Share that the moving average keeps at each update."""

    @property
    def requirements(self) -> Requirements:
        """Images; the student writes from the degraded one."""
        rate = 1 - self.ema_decay
        return Requirements(needs={Need.IMAGE}, writer_view=View.DEGRADED, ema_rate=rate)

    def passes(self) -> tuple[Pass, ...]:
        """The student on the degraded image, the teacher on the original."""
        return (DEGRADED_STUDENT, ORIGINAL_EMA)

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """Jensen-Shannon divergence, whole vocabulary."""
        weights, rule = signals["token_weight"], partial(jensen_shannon, beta=self.beta)
        values = apply_rule(batch, DEGRADED_STUDENT, rule, ORIGINAL_EMA, weights=weights)
        return (LossTerm("jensen_shannon", values, weights),)

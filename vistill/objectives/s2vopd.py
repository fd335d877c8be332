"""`s2vopd`: the student sees a degraded picture, its moving-average teacher the original (arXiv 2608.14144).

Open in the source, decided here: the student also writes its responses from the degraded picture (that is what makes
them its own), and down-sampling keeps the picture's size, so that both sides have the same image tokens.
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
    """`(1/T) sum_t JSD_beta(p_ema(.|picture), p(.|degraded picture))` on responses to the degraded picture."""

    beta: float = ranged(0.5, 0, 1)
    """Weight of the teacher in the mixture m."""
    ema_decay: float = ranged(0.95, 0, 1)
    """What the moving average keeps at each update."""

    @property
    def requirements(self) -> Requirements:
        """Pictures; the student writes from the degraded one."""
        rate = 1 - self.ema_decay
        return Requirements(needs={Need.IMAGE}, writer_view=View.DEGRADED, ema_rate=rate)

    def passes(self) -> tuple[Pass, ...]:
        """Student degraded, teacher original."""
        return (DEGRADED_STUDENT, ORIGINAL_EMA)

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """Jensen-Shannon divergence, whole vocabulary."""
        weights, rule = signals["token_weight"], partial(jensen_shannon, beta=self.beta)
        values = apply_rule(batch, DEGRADED_STUDENT, rule, ORIGINAL_EMA, weights=weights)
        return (LossTerm("jensen_shannon", values, weights),)

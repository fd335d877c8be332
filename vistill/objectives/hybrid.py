"""`grpo_opd`, `grpo_vgs`: reinforcement and distillation in one loss (VGS Eq. 22).

Departures: none; the distillation half carries no eta, the policy half no reference divergence.
"""

from dataclasses import dataclass

from torch import Tensor

from vistill.batch import LossTerm, Need, Objective, ScoredBatch, Signals
from vistill.objectives.grpo import GRPO
from vistill.objectives.opd import OPD
from vistill.objectives.vgs import VGS
from vistill.ranges import ranged
from vistill.signals.visual_dependency import Scope
from vistill.types import Pass


@dataclass(frozen=True)
class GRPOWithOPD(GRPO):
    """`(1 - a) GRPO + a (1/T) sum KL(pS || pT)`: the paper's GRPO + Standard-KD."""

    reference_weight: float = ranged(0.0, 0)
    """Weight of the k3 divergence from the initial weights; the hybrid has none."""
    distillation_share: float = ranged(0.3, 0, 1)
    """Share a of the distillation half (alpha)."""

    def distillation(self) -> Objective:
        """The method of the second half."""
        return OPD()

    def needs(self) -> frozenset[Need]:
        """What either half needs."""
        return super().needs() | self.distillation().needs()

    def passes(self) -> tuple[Pass, ...]:
        """Both halves' passes, each once."""
        return tuple(dict.fromkeys((*super().passes(), *self.distillation().passes())))

    def signals(self, batch: ScoredBatch) -> dict[str, Tensor]:
        """Both halves' signals."""
        return {**super().signals(batch), **self.distillation().signals(batch)}

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """Both halves' terms, weighed."""
        share = self.distillation_share
        policy = [t.scaled(1 - share) if t.minimised else t for t in super().terms(batch, signals)]
        return (*policy, *(t.scaled(share) for t in self.distillation().terms(batch, signals)))

    def remember(self, batch: ScoredBatch, signals: Signals) -> dict[str, float]:
        """What the distillation half remembers."""
        return self.distillation().remember(batch, signals)


@dataclass(frozen=True)
class GRPOWithVGS(GRPOWithOPD):
    """`(1 - a) GRPO + a VGS-LP`, eta not applied."""

    gamma: float = ranged(2.0, 0)
    """Strength of the steering (gamma)."""
    preserve: float = ranged(0.01, 0)
    """Strength of the language preservation (lambda)."""
    quantile: float = ranged(0.7, 0, 1)
    """Tokens strictly above this quantile of visual dependency are gated (Q)."""
    scope: Scope = "batch"
    """Tokens the quantile is taken over."""

    def distillation(self) -> Objective:
        """VGS-LP without its norm correction."""
        return VGS(gamma=self.gamma, preserve=self.preserve, quantile=self.quantile, scope=self.scope, eta="none")

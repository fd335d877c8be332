"""`grpo_opd`, `grpo_vgs`, `grpo_va_opd`: reinforcement and distillation in one loss (VGS Eq. 22).

The distillation half of `grpo_vgs` has no eta, the policy half no reference divergence. The paper
states neither the clip bounds nor the number of rollouts per prompt: the bounds here are those of
`grpo`, and the recipe sets the number. `grpo_va_opd` is what the VA-OPD paper leaves to future
work; no paper states a setting for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from vistill.batch import LossTerm, Objective, Requirements, ScoredBatch, Signals
from vistill.objectives.grounded_opd import GroundedOPD
from vistill.objectives.grpo import GRPO
from vistill.objectives.opd import OPD
from vistill.objectives.shared import grad_if_learned
from vistill.objectives.va_opd import VAOPD
from vistill.objectives.vgs import VGS
from vistill.ranges import ranged
from vistill.signals.visual_advantage import Score
from vistill.signals.visual_dependency import Scope
from vistill.types import Pass


@dataclass(frozen=True)
class GRPOWithOPD(GRPO):
    """`(1 - a) GRPO + a (1/T) sum KL(pS || pT)`: the paper's GRPO + Standard-KD."""

    reference_weight: float = ranged(0.0, 0)
    """Weight of the k3 divergence from the initial weights; the hybrid has none."""
    distillation_share: float = ranged(0.3, 0, 1)
    """Share a of the distillation half (alpha)."""
    stop_at_misread: bool = False
    """No distillation after the first misread of a rollout, a token whose signed visual advantage
    lies below misread_threshold; the policy half keeps all tokens."""
    misread_threshold: float = ranged(-1.0, -100, 0, below=True)
    """Signed visual advantage in nats below which a token is a misread (stop_at_misread)."""

    def distillation(self) -> Objective:
        """The method of the second half."""
        if self.stop_at_misread:
            return GroundedOPD(misread_threshold=self.misread_threshold)
        return OPD()

    @property
    def requirements(self) -> Requirements:
        """GRPO's, and what the other half needs."""
        shared = super().requirements
        return replace(shared, needs=shared.needs | self.distillation().requirements.needs)

    def passes(self) -> tuple[Pass, ...]:
        """Both halves' passes, each once."""
        return tuple(dict.fromkeys((*super().passes(), *self.distillation().passes())))

    def signals(self, batch: ScoredBatch) -> dict[str, Tensor]:
        """Both halves' signals."""
        return {**super().signals(batch), **self.distillation().signals(batch)}

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """Both halves' terms, each with its share as a coefficient."""
        share = self.distillation_share
        with grad_if_learned(1 - share):
            policy = [t.scaled(1 - share) for t in super().terms(batch, signals)]
        with grad_if_learned(share):
            return (*policy, *(t.scaled(share) for t in self.distillation().terms(batch, signals)))

    def metrics(self, batch: ScoredBatch, signals: Signals) -> dict[str, float]:
        """Both halves' figures."""
        return super().metrics(batch, signals) | self.distillation().metrics(batch, signals)

    def remember(self, batch: ScoredBatch, signals: Signals) -> dict[str, float]:
        """What the distillation half remembers."""
        return self.distillation().remember(batch, signals)

    def warnings(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Those of the distillation half."""
        return self.distillation().warnings(metrics)


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
    watch_both: bool = False
    """Log the language KL of all tokens too; two more head projections."""

    def distillation(self) -> Objective:
        """VGS-LP without its norm correction."""
        return VGS(
            gamma=self.gamma,
            preserve=self.preserve,
            quantile=self.quantile,
            scope=self.scope,
            eta="none",
            watch_both=self.watch_both,
            stop_at_misread=self.stop_at_misread,
            misread_threshold=self.misread_threshold,
        )


@dataclass(frozen=True)
class GRPOWithVAOPD(GRPOWithOPD):
    """`(1 - a) GRPO + a VA-OPD`: rewards and the teacher's visual advantage in one loss.

    The visual advantage weighs the distillation half alone. The share a is that of the VGS paper's
    hybrid; the other defaults are those of `va_opd`.
    """

    high_share: float = ranged(0.2, 0, 1, above=True)
    """Share of each rollout's tokens in the high group (p_v)."""
    high_weight: float = ranged(0.5, 0, 1)
    """Weight that the high group shares (lambda)."""
    rollout_temperature: float = ranged(1.0, 0, above=True)
    """Temperature of the softmax over siblings (tau)."""
    rollout_weights: bool = True
    """Weigh siblings by their mean visual advantage; false gives each 1/K."""
    token_groups: bool = True
    """Weigh tokens by group; false gives the mean over the rollout."""
    score: Score = "rectified"
    """What is ranked: as in `va_opd`."""

    def distillation(self) -> Objective:
        """VA-OPD with the knobs of this method."""
        return VAOPD(
            high_share=self.high_share,
            high_weight=self.high_weight,
            rollout_temperature=self.rollout_temperature,
            rollout_weights=self.rollout_weights,
            token_groups=self.token_groups,
            score=self.score,
            stop_at_misread=self.stop_at_misread,
            misread_threshold=self.misread_threshold,
        )

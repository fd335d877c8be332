"""`vppo`: policy gradient on visually dependent tokens only (arXiv 2510.09285, methods 4.6)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vistill.batch import LossTerm, Need, Requirements, ScoredBatch, Signals
from vistill.functional.segments import segment_mean, top_share
from vistill.objectives.grpo import GRPO
from vistill.objectives.shared import OLD_LOG_PROBS, STUDENT, log_prob_of
from vistill.ranges import ranged
from vistill.signals.visual_dependency import sampled_dependency, token_has_image
from vistill.types import Pass, Reader, View

MASKED = Pass(Reader.OLD, View.MASKED, keep="log_prob")


@dataclass(frozen=True)
class VPPO(GRPO):
    """GRPO on the 40 % of a response's tokens with the largest k3 dependency.

    The advantage of a trajectory is scaled by its mean dependency.
    """

    clip_high: float = ranged(0.28, 0)
    """The ratio is clipped above 1 + this (DAPO)."""
    reference_weight: float = ranged(0.0, 0)
    """Weight of the k3 divergence from the initial weights; DAPO has none."""
    token_share: float = ranged(0.4, 0, 1, above=True)
    """Share of each response's tokens that keep the policy gradient."""
    scale_low: float = ranged(0.9, 0, 1)
    """Scale of the least dependent trajectory of the step (beta_min); the mean scale is 1."""
    entropy_weight: float = ranged(0.06, 0)
    """Weight of the sampled entropy, which is minimised."""

    @property
    def requirements(self) -> Requirements:
        """GRPO's, and images."""
        shared = super().requirements
        return replace(shared, needs=shared.needs | {Need.IMAGE})

    def passes(self) -> tuple[Pass, ...]:
        """GRPO's passes, and the old log-probabilities with the full and the masked image."""
        return (*(p for p in super().passes() if p != OLD_LOG_PROBS), OLD_LOG_PROBS, MASKED)

    def signals(self, batch: ScoredBatch) -> dict[str, Tensor]:
        """Dependency, tokens with gradient, and the scaled advantage of each rollout."""
        r = batch.responses
        dependency = sampled_dependency(
            batch[OLD_LOG_PROBS.name].sampled(), batch[MASKED.name].sampled()
        )
        scale = trajectory_scale(
            segment_mean(dependency, r.rollout, r.num_rollouts), self.scale_low
        )
        advantage = super().signals(batch)["group_advantage"] * scale
        gate = top_share(dependency, r.rollout, r.lengths, self.token_share) | ~token_has_image(r)
        dependent = {"sampled_dependency": dependency, "gate": gate}
        return dependent | {"trajectory_scale": scale, "group_advantage": advantage}

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """GRPO's terms with an advantage on gated tokens only, and the entropy penalty."""
        log_prob = log_prob_of(batch, STUDENT)
        advantage = signals["group_advantage"][batch.responses.rollout] * signals["gate"]
        entropy = self.mean_term(batch.responses, "entropy", -log_prob, self.entropy_weight)
        return (*self.policy_terms(batch, log_prob, advantage), entropy)


def trajectory_scale(means: Tensor, low: float) -> Tensor:
    """`low + (high - low) * minmax(mean dependency)` over the step; `high` makes the mean 1."""
    spread = means.max() - means.min()
    if float(spread) == 0:
        return torch.ones_like(means)
    share = (means - means.min()) / spread
    return low + (1 - low) / share.mean() * share

"""`papo`: GRPO with perception loss and double entropy (arXiv 2507.06448, released code).

The k3 is that of the released code, not the printed one. By default the masked log-probabilities
come from the weights that wrote the response and have no gradient, as in the released code, so the
masked half of the double entropy is a constant.
"""

from dataclasses import dataclass, replace

from vistill.batch import LossTerm, Need, Requirements, ScoredBatch, Signals
from vistill.functional.divergences import k3
from vistill.functional.segments import top_share
from vistill.objectives.grpo import GRPO
from vistill.objectives.shared import STUDENT, log_prob_of
from vistill.ranges import ranged
from vistill.signals.visual_dependency import token_has_image
from vistill.types import Pass, Reader, View


@dataclass(frozen=True)
class PAPO(GRPO):
    """GRPO `- gamma mean k + eta H + eta H_mask`, `k = e^d - d - 1`.

    `d = log p(y|masked) - log p(y|image)`.
    """

    perception_weight: float = ranged(0.02, 0)
    """Weight of the perception term, which is maximised (gamma)."""
    entropy_weight: float = ranged(0.03, 0)
    """Weight of the sampled entropy with the image, which is minimised (eta)."""
    masked_entropy_weight: float = ranged(0.03, 0)
    """Weight of the sampled entropy under the mask. Without `masked_gradient` that term is a
    constant, as in the released code."""
    masked_gradient: bool = False
    """Score the masked image with the trained weights, and with gradient."""
    perception_share: float = ranged(1.0, 0, 1, above=True)
    """Share of each response's tokens that have the perception term, those with the largest k."""
    perception_clip: float | None = ranged(None, 0, above=True)
    """Largest k; a clipped one has no gradient. null leaves it at 10."""
    annealed: bool = False
    """Decrease gamma and the entropy weights linearly to 0 over the run."""

    @property
    def requirements(self) -> Requirements:
        """GRPO's, and images to mask."""
        shared = super().requirements
        return replace(shared, needs=shared.needs | {Need.IMAGE})

    def masked(self) -> Pass:
        """The pass over the masked image."""
        if self.masked_gradient:
            return Pass(Reader.STUDENT, View.MASKED, gradient=True)
        return Pass(Reader.OLD, View.MASKED, keep="log_prob")

    def passes(self) -> tuple[Pass, ...]:
        """GRPO's passes and the masked image."""
        return (*super().passes(), self.masked())

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """GRPO's terms, perception and the two entropies."""
        r, seen = batch.responses, token_has_image(batch.responses)
        log_prob = log_prob_of(batch, STUDENT)
        mask = self.masked()
        masked = log_prob_of(batch, mask) if self.masked_gradient else batch[mask.name].sampled()
        perception = k3(log_prob, masked)
        kept = seen
        if self.perception_share < 1:
            kept = kept & top_share(
                perception.detach(), r.rollout, r.lengths, self.perception_share
            )
        if self.perception_clip is not None:
            perception = perception.clamp_max(self.perception_clip)
        left = 1 - batch.progress if self.annealed else 1.0
        return (
            *self.policy_terms(batch, log_prob, signals["group_advantage"][r.rollout]),
            self.mean_term(r, "perception", perception, -self.perception_weight * left, kept),
            self.mean_term(r, "entropy", -log_prob, self.entropy_weight * left),
            self.mean_term(r, "masked_entropy", -masked, self.masked_entropy_weight * left),
            replace(
                self.mean_term(r, "perception_k3", perception.detach(), keep=seen), minimised=False
            ),
        )

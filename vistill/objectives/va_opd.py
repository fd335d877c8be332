"""`va_opd`: visual-advantage on-policy distillation (arXiv 2605.21924).

The teacher scores each response twice, with the image and with the pixelated image. The difference
of its log-probabilities, rectified, is the token's visual advantage. Rollouts with a larger mean
get more weight; the top fifth of the tokens of a rollout shares half of its weight.

Differences from the paper:
1. Options that the paper does not have are off by default: other scores, random ties,
   `zero_va="uniform"`, dropping tokens.
2. A prompt without an image has no visual advantage: its siblings and tokens weigh the same.
3. With `drop` the mean is over the **remaining** tokens, so that the gradient keeps its scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from vistill.batch import LossTerm, Need, Requirements, ScoredBatch, Signals
from vistill.functional.segments import segment_mean, segment_sum, top_share
from vistill.functional.siblings import (
    mean_coefficients,
    sibling_softmax,
    token_group_coefficients,
    uniform_siblings,
)
from vistill.objectives.metrics import advantage_metrics, advantage_warnings
from vistill.objectives.misreads import MisreadOption
from vistill.objectives.opd import reverse_kl_by
from vistill.objectives.shared import STUDENT, TEACHER
from vistill.ranges import check_ranges, ranged
from vistill.signals.visual_advantage import Score, distribution_advantage, visual_advantage
from vistill.signals.visual_dependency import token_has_image
from vistill.types import Pass, Reader, View

PIXELATED: Final = f"{Reader.TEACHER}.{View.PIXELATED}"


@dataclass(frozen=True)
class VAOPD(MisreadOption):
    """`(1/B) sum_b sum_n sum_t c[n,t] KL(pS || pT)`, c from the teacher's visual advantage.

    The class defaults are the paper's values.
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
    """What is ranked: the rectified (paper), signed or absolute difference, or the KL of the whole
    distributions, KL(pT full || pT degraded)."""
    tie_rule: Literal["stable", "random"] = "stable"
    """Equal scores keep token order (the authors' release) or a keyed random order."""
    zero_va: Literal["group", "uniform"] = "group"
    """A rollout whose scores are all 0 is grouped by the tie rule, or weighed uniformly."""
    drop: Literal["none", "high", "low", "random"] = "none"
    """Mask ablation: leave these tokens of each rollout out of the mean. Ties break at random."""
    drop_share: float = ranged(0.1, 0, 1, above=True)
    """Share of the tokens that `drop` removes."""
    estimator: Literal["full", "sampled"] = "full"
    """`full`: KL over the vocabulary (paper). `sampled`: the one-token estimate, as in `opd`, times
    the same weights; its mean is not the weighted KL, because a weight depends on its token."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def requirements(self) -> Requirements:
        """Images; siblings if they are weighed."""
        needs = {Need.IMAGE, Need.SIBLINGS} if self.rollout_weights else {Need.IMAGE}
        return Requirements(needs=needs)

    def passes(self) -> tuple[Pass, ...]:
        """OPD's passes and the teacher on the pixelated image."""
        is_ranked, is_sampled = self.score == "distribution", self.estimator == "sampled"
        keeps = "log_prob" if is_sampled and not is_ranked else "both"
        full = Pass(Reader.TEACHER, View.FULL, keep=keeps)
        keeps = "hidden" if is_ranked else "log_prob"
        pixelated = Pass(Reader.TEACHER, View.PIXELATED, keep=keeps)
        return (STUDENT, full, *self.with_log_probs(pixelated))

    def signals(self, batch: ScoredBatch) -> dict[str, Tensor]:
        """Visual advantage, the two kinds of weight, and the coefficient c of each token."""
        responses = batch.responses
        advantage = self._score(batch)
        weight = self._rollout_weight(batch, advantage)
        tie_noise = responses.tie_noise if self.tie_rule == "random" else None
        high = top_share(
            advantage, responses.rollout, responses.lengths, self.high_share, tie_noise
        )
        plain = mean_coefficients(weight, responses.rollout, self._kept(batch, advantage))
        token_weight = plain
        if self.token_groups and self.drop == "none":
            grouped = token_group_coefficients(weight, high, responses.rollout, self.high_weight)
            token_weight = torch.where(
                self._ungrouped(batch, advantage)[responses.rollout], plain, grouped
            )
        cut = self.misread_signals(responses, batch[TEACHER.name], batch[PIXELATED])
        groups = {"visual_advantage": advantage, "high_group": high, **cut}
        token_weight = token_weight * cut["kept"] if cut else token_weight
        return groups | {"rollout_weight": weight, "token_weight": token_weight}

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """Reverse KL to the teacher on the ORIGINAL image, or its estimate, weighted by c."""
        return reverse_kl_by(self.estimator, batch, signals["token_weight"])

    def metrics(self, batch: ScoredBatch, signals: Signals) -> dict[str, float]:
        """Visual advantage and the two kinds of weight."""
        r = batch.responses
        return advantage_metrics(r, signals) | self.misread_metrics(r, signals)

    def warnings(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """No token of a step has visual advantage."""
        return advantage_warnings(metrics) | super().warnings(metrics)

    def _score(self, batch: ScoredBatch) -> Tensor:
        full, degraded = batch[TEACHER.name], batch[PIXELATED]
        if self.score == "distribution":
            score = distribution_advantage(full, degraded)
        else:
            score = visual_advantage(full.sampled(), degraded.sampled(), self.score)
        return torch.where(token_has_image(batch.responses), score, torch.zeros_like(score))

    def _rollout_weight(self, batch: ScoredBatch, advantage: Tensor) -> Tensor:
        responses = batch.responses
        uniform = uniform_siblings(responses.group).to(advantage)
        if not self.rollout_weights:
            return uniform
        means = segment_mean(advantage, responses.rollout, responses.num_rollouts)
        weight = sibling_softmax(means, responses.group, self.rollout_temperature)
        return torch.where(responses.has_image[responses.group], weight, uniform)

    def _ungrouped(self, batch: ScoredBatch, advantage: Tensor) -> Tensor:
        """Rollouts with equal token weights: no image, or `zero_va="uniform"` and no advantage."""
        responses = batch.responses
        without_image = ~responses.has_image[responses.group]
        total = segment_sum(advantage.abs(), responses.rollout, responses.num_rollouts)
        return without_image if self.zero_va == "group" else without_image | (total == 0)

    def _kept(self, batch: ScoredBatch, advantage: Tensor) -> Tensor | None:
        """Tokens that stay under the mask ablation; at least one of each rollout does."""
        if self.drop == "none":
            return None
        r, noise = batch.responses, batch.responses.tie_noise
        ranked = {"high": advantage, "low": -advantage, "random": noise}[self.drop]
        return (
            ~top_share(ranked, r.rollout, r.lengths, self.drop_share, noise)
            | (r.lengths == 1)[r.rollout]
        )

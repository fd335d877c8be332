"""`vgs`: visual gradient steering with language preservation (VGS-LP, arXiv 2606.00564)."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vistill.batch import LossTerm, Need, Requirements, ScoredBatch, Signals
from vistill.functional.divergences import reverse_kl
from vistill.functional.targets import reverse_kl_to_steered
from vistill.objectives.merged_steering import merged_steering, require_linear_head
from vistill.objectives.norm_correction import NormCorrected
from vistill.objectives.shared import (
    STUDENT,
    TEACHER,
    apply_rule,
    apply_rules,
    grad_if_learned,
    per_response,
)
from vistill.objectives.steering import TEACHER_TEXT_ONLY
from vistill.ranges import check_ranges, ranged
from vistill.signals.visual_dependency import (
    Scope,
    quantile_threshold,
    threshold_key,
    token_has_image,
    visual_dependency,
)
from vistill.types import Pass, Reader, View


@dataclass(frozen=True)
class VGS(NormCorrected):
    """`eta (KL(p||q) + gamma KL(p||q*) + lambda 1[VDS > Q] KL(p_x||q_x))`, `q* ~ p_x q / q_x`."""

    gamma: float = ranged(2.0, 0)
    """Strength of the steering (gamma)."""
    preserve: float = ranged(0.01, 0)
    """Strength of the preservation on gated tokens; the mean is over all tokens (lambda)."""
    quantile: float = ranged(0.7, 0, 1)
    """Tokens whose visual dependency lies strictly above this quantile are gated (Q)."""
    scope: Scope = "batch"
    """Tokens the quantile is taken over; `running` averages the quantile over steps."""
    scope_prompts: int = ranged(1, 1)
    """Prompts that scope `micro_batch` takes together."""
    eta: Literal["constant", "dynamic", "none"] = "constant"
    """Norm correction: the paper's constant; |grad Std| / |grad (Std + gamma steer)| as measured in
    the run; or 1."""
    eta_value: float = ranged(0.41, 0, above=True)
    """The constant (0.41 for 2B, 0.36 for 4B at gamma = 2)."""
    eta_every: int = ranged(50, 1)
    """Steps between measurements of a dynamic eta; their moving average decays by 0.9."""
    adaptive: bool = False
    """Steer by token: 0 up to low_quantile, gamma / 2 up to quantile, gamma above (Eq. 24-25)."""
    low_quantile: float = ranged(0.4, 0, 1)
    """Lower step of `adaptive`."""
    ratio_clamp: float | None = ranged(None, 0, above=True)
    """Largest |log q - log q_x| inside q*; null does not clamp it (paper)."""
    support: float = ranged(0.0, 0, 1)
    """The log-ratio inside q* counts only where q >= support * max q; 0: everywhere (paper)."""
    watch_both: bool = False
    """Log the visual and the language KL of all tokens, whichever the loss uses. Costs head
    projections, no passes."""
    merged: bool = False
    """Compute the standard and the steering term as one: the same gradient with one teacher
    projection instead of two."""

    steering_term: ClassVar[str] = "visual_kl"

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.merged:
            require_linear_head(
                self.steering_term != "visual_kl",
                self.ratio_clamp is not None,
                self.support > 0,
                self.eta,
            )

    @property
    def requirements(self) -> Requirements:
        """Images: without one the two views of each model are equal."""
        return Requirements(
            needs={Need.IMAGE}, linear_heads=self.merged, gradient_probe=self.norm_probe()
        )

    def blind(self) -> Pass:
        """The student without the image: gradient on gated rows, none if `preserve` is 0."""
        trained = Pass(Reader.STUDENT, View.TEXT_ONLY, gradient=True, rows="gate")
        return trained if self.preserve > 0 else Pass(Reader.OLD, View.TEXT_ONLY)

    def passes(self) -> tuple[Pass, ...]:
        """Four passes: student and teacher, each with and without the image."""
        return (STUDENT, *self.with_log_probs(TEACHER, TEACHER_TEXT_ONLY), self.blind())

    def signals(self, batch: ScoredBatch) -> dict[str, Tensor]:
        """Visual dependency, the gate, and the share of gamma that each token is steered with."""
        r, seen = batch.responses, token_has_image(batch.responses)
        pair = (batch[TEACHER.name], batch[TEACHER_TEXT_ONLY.name])
        dependency, cut = visual_dependency(*pair, r), self.misread_signals(r, *pair)
        high, low = (
            quantile_threshold(dependency, r, s, self.scope, self.scope_prompts, batch.memory)
            for s in (self.quantile, self.low_quantile)
        )
        steps = ((dependency > low).float() + (dependency > high).float()) / 2
        steering = (steps if self.adaptive else torch.ones_like(steps)) * seen
        return {
            "visual_dependency": dependency,
            "gate": (dependency > high) & seen & cut.get("kept", seen),
            "steering": steering,
            "gate_threshold": high,
            "low_threshold": low,
            "token_weight": per_response(r) * cut.get("kept", 1),
            **cut,
        }

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """Standard, steering and preservation, all times eta; q* has no gradient."""
        weights = signals["token_weight"]
        steered = self.standard_and_steering(batch, weights, signals["steering"])
        return self.corrected(batch, weights, *steered, self.preserved(batch, signals))

    def standard_and_steering(
        self, batch: ScoredBatch, weights: Tensor, steering: Tensor
    ) -> tuple[LossTerm, ...]:
        """KL(p||q) and KL(p||q*), or both as one term."""
        if self.merged:
            readings = [batch[p.name] for p in (STUDENT, TEACHER, TEACHER_TEXT_ONLY, self.blind())]
            return (merged_steering(readings, weights, self.gamma * steering),)
        steered, target = weights * steering, (TEACHER, TEACHER_TEXT_ONLY, self.blind())
        trained = self.gamma * steered if self.gamma > 0 else None
        both = ((reverse_kl, (TEACHER,), weights), (self.kl_to_steered(), target, trained))
        standard, visual = apply_rules(batch, STUDENT, *both)
        return LossTerm("reverse_kl", standard, weights), LossTerm(
            "visual_kl", visual, steered, coefficient=self.gamma
        )

    def preserved(self, batch: ScoredBatch, signals: Signals) -> LossTerm:
        """KL(p_x||q_x) on gated rows, the only rows that the head runs on."""
        gated = signals["token_weight"] * signals["gate"]
        with grad_if_learned(self.preserve):
            language = apply_rule(batch, self.blind(), reverse_kl, TEACHER_TEXT_ONLY, weights=gated)
        return LossTerm("language_preservation", language, gated, coefficient=self.preserve)

    def kl_to_steered(self) -> partial[Tensor]:
        """KL(student || q*) with the method's clamps."""
        return partial(reverse_kl_to_steered, ratio_clamp=self.ratio_clamp, support=self.support)

    def remember(self, batch: ScoredBatch, signals: Signals) -> dict[str, float]:
        """The thresholds that scope `running` averages over steps."""
        if self.scope != "running":
            return dict(batch.memory)
        high, low = signals["gate_threshold"], signals["low_threshold"]
        thresholds = {self.quantile: high, self.low_quantile: low}
        running = {threshold_key(share): float(limit[0]) for share, limit in thresholds.items()}
        return {**batch.memory, **running}

"""`eopd`: entropy-gated on-policy distillation (arXiv 2603.07079).

Tokens for which the teacher's distribution has high entropy also get a forward KL.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vistill.batch import LossTerm, Objective, ScoredBatch, Signals
from vistill.functional.divergences import entropy, forward_kl, keep_top
from vistill.functional.rows import per_row
from vistill.objectives.opd import sampled_reverse_kl
from vistill.objectives.shared import (
    STUDENT,
    TEACHER,
    TEACHER_WITH_LOG_PROBS,
    apply_rule,
    grad_if_learned,
    per_response,
)
from vistill.ranges import check_ranges, ranged
from vistill.types import Pass


@dataclass(frozen=True)
class EOPD(Objective):
    """Sampled reverse KL on every token, plus `KL(pT || pS)` where `H(pT) > h`.

    The forward KL is taken on the teacher's top K entries.
    """

    entropy_above: float = ranged(0.8, 0)
    """Teacher entropy in nats above which a token gets the forward term (h)."""
    top_k: int = ranged(16, 1)
    """Entries of the teacher that the forward term is renormalised within."""
    forward_weight: float = ranged(1.0, 0)
    """Weight of the forward term."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def passes(self) -> tuple[Pass, ...]:
        """OPD's passes."""
        return (STUDENT, TEACHER_WITH_LOG_PROBS)

    @torch.no_grad()
    def signals(self, batch: ScoredBatch) -> dict[str, Tensor]:
        """The teacher's entropy and the gate."""
        teacher = batch[TEACHER.name]
        teacher_entropy = per_row(entropy, teacher.states(), teacher.projection())
        return {
            "teacher_entropy": teacher_entropy,
            "gate": teacher_entropy > self.entropy_above,
            "token_weight": per_response(batch.responses),
        }

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """The policy term on all tokens, the forward term on gated tokens."""
        weights, gate = signals["token_weight"], signals["gate"]

        def top_forward(student: Tensor, teacher: Tensor) -> Tensor:
            return forward_kl(*keep_top(student, teacher, self.top_k))

        undecided = weights * gate
        with grad_if_learned(self.forward_weight):
            values = apply_rule(batch, STUDENT, top_forward, TEACHER, weights=undecided)
        forward = LossTerm(
            "forward_kl_undecided", values, undecided, coefficient=self.forward_weight
        )
        return (*sampled_reverse_kl(batch, weights), forward)

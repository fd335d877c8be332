"""`sft`: supervised fine-tuning on written responses: a warm-up, or the chain-of-thought baseline (methods 4.2).

The mean is over all response tokens of the step, end-of-turn included. Where the chains of thought come from is ours.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vistill.batch import LossTerm, Objective, Requirements, ScoredBatch, Signals
from vistill.objectives.shared import STUDENT, log_prob_of
from vistill.types import Pass, Writer


@dataclass(frozen=True)
class SFT(Objective):
    """`-(1 / sum T) sum log pS(y_t | image, question, y_<t)` over written responses."""

    responses: Literal["data", "teacher"] = "data"
    """From the data set's response column, or written once by the teacher; of those one correct one an epoch."""

    @property
    def requirements(self) -> Requirements:
        """The data set writes, or the teacher; of the teacher's chains of thought only correct ones are used."""
        return Requirements(writer=Writer(self.responses), keep_correct=self.responses == "teacher")

    def passes(self) -> tuple[Pass, ...]:
        """The student alone."""
        return (STUDENT,)

    def signals(self, batch: ScoredBatch) -> dict[str, Tensor]:
        """Uniform token weights."""
        return {
            "token_weight": torch.ones(
                batch.responses.num_tokens, device=batch.responses.ids.device
            )
        }

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """Negative log-likelihood, averaged over the step's tokens."""
        weights = signals["token_weight"]
        return (LossTerm("nll", -log_prob_of(batch, STUDENT, weights), weights, per="token"),)

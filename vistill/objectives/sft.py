"""`sft`: supervised fine-tuning, as a warm-up or as the chain-of-thought baseline (methods 4.2).

The mean is over all response tokens of the step, end-of-turn included. The source of the chains of
thought is our choice.
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
    """`-(1 / sum T) sum log pS(y_t | image, question, y_<t)` over stored responses."""

    responses: Literal["data", "teacher"] = "data"
    """`data`: the response column of the data set. `teacher`: written once by the teacher; each
    epoch uses one correct response per prompt."""

    @property
    def requirements(self) -> Requirements:
        """Responses from the data set or the teacher; of the teacher's only correct ones."""
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

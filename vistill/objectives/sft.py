"""`sft`: supervised fine-tuning on written responses (warm-up, and the CoT-SFT baseline).

Departures: none. The mean is over all response tokens of the step (methods.md 4.2), end-of-turn included.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vistill.batch import LossTerm, ScoredBatch, Signals
from vistill.functional.divergences import log_prob_from_hidden
from vistill.objectives.passes import STUDENT
from vistill.types import Pass, View, Writer


@dataclass(frozen=True)
class SFT:
    """`-(1 / sum T) sum log pS(y_t | image, question, y_<t)` over the data set's own responses."""

    writer: ClassVar[Writer] = Writer.DATA
    writer_view: ClassVar[View] = View.FULL

    def passes(self) -> tuple[Pass, ...]:
        """The student alone."""
        return (STUDENT,)

    def signals(self, batch: ScoredBatch) -> dict[str, Tensor]:
        """Uniform token weights."""
        return {"token_weight": torch.ones(batch.responses.num_tokens, device=batch.responses.ids.device)}

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """Negative log-likelihood, averaged over the step's tokens."""
        student = batch[STUDENT.name]
        log_prob = log_prob_from_hidden(student.states(), student.projection(), batch.responses.ids)
        return (LossTerm("nll", -log_prob, signals["token_weight"], per="token"),)

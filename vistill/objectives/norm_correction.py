"""Norm correction of steered methods (arXiv 2606.00564, Eq. 15).

The factor eta scales the steered loss to the gradient norm of the loss without steering.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from vistill.batch import GradientProbe, LossTerm, ScoredBatch, Signals
from vistill.objectives.metrics import dependency_metrics
from vistill.objectives.misreads import MisreadOption
from vistill.objectives.steering import monitored_kls
from vistill.types import Pass


class NormCorrected(MisreadOption):
    """A steered method, whose loss is scaled by eta; its fields say how eta is computed."""

    eta: Literal["constant", "dynamic", "none"]
    eta_value: float
    eta_every: int
    watch_both: bool
    steering_term: ClassVar[str]

    def blind(self) -> Pass:
        """The student without the image."""
        raise NotImplementedError

    def kl_to_steered(self) -> partial[Tensor]:
        """KL(student || q*)."""
        raise NotImplementedError

    def corrected(
        self, batch: ScoredBatch, weights: Tensor, *terms: LossTerm
    ) -> tuple[LossTerm, ...]:
        """The terms times eta, and the logged divergences with `watch_both`."""
        loss = tuple(term.scaled(self.norm_correction(batch.memory)) for term in terms)
        watched = (
            monitored_kls(batch, self.blind(), self.kl_to_steered(), weights, loss)
            if self.watch_both
            else ()
        )
        return (*loss, *watched)

    def metrics(self, batch: ScoredBatch, signals: Signals) -> dict[str, float]:
        """Visual dependency and the gate."""
        return dependency_metrics(signals) | self.misread_metrics(batch.responses, signals)

    def norm_correction(self, memory: Mapping[str, float]) -> float:
        """Eta: it scales the whole loss, so with AdamW it changes little but gradient clipping."""
        return {"constant": self.eta_value, "dynamic": memory.get("eta", 1.0), "none": 1.0}[
            self.eta
        ]

    def norm_probe(self) -> GradientProbe | None:
        """The two gradients of a dynamic eta: standard and steered, without lambda (Eq. 15)."""
        sums = (("reverse_kl",), ("reverse_kl", self.steering_term))
        return GradientProbe(self.eta_every, sums) if self.eta == "dynamic" else None

    def learn_norms(self, norms: Sequence[float], memory: Mapping[str, float]) -> dict[str, float]:
        """Moving average of the ratio of the two norms; a gradient of 0 does not change it."""
        if min(norms) == 0:
            return dict(memory)
        ratio = norms[0] / max(norms[1], 1e-12)
        return {**memory, "eta": 0.9 * memory["eta"] + 0.1 * ratio if "eta" in memory else ratio}

"""Norm correction of steered methods: how large the whole loss is next to the plain one (arXiv 2606.00564, Eq. 15)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from vistill.batch import GradientProbe, LossTerm, Objective, ScoredBatch, Signals
from vistill.objectives.metrics import dependency_metrics
from vistill.objectives.steering import monitored_kls
from vistill.types import Pass


class NormCorrected(Objective):
    """A steered method, whose loss is scaled by eta; its fields say how eta is found."""

    eta: Literal["constant", "dynamic", "none"]
    eta_value: float
    eta_every: int
    watch_both: bool
    steering_term: ClassVar[str]

    def blind(self) -> Pass:
        """The student without the picture."""
        raise NotImplementedError

    def kl_to_steered(self) -> partial[Tensor]:
        """KL(student || q*)."""
        raise NotImplementedError

    def corrected(
        self, batch: ScoredBatch, weights: Tensor, *terms: LossTerm
    ) -> tuple[LossTerm, ...]:
        """The terms with eta in their coefficients, and both divergences to watch where they are asked for."""
        loss = tuple(term.scaled(self.norm_correction(batch.memory)) for term in terms)
        watched = (
            monitored_kls(batch, self.blind(), self.kl_to_steered(), weights, loss)
            if self.watch_both
            else ()
        )
        return (*loss, *watched)

    def metrics(self, batch: ScoredBatch, signals: Signals) -> dict[str, float]:
        """Visual dependency and the gate."""
        return dependency_metrics(signals)

    def norm_correction(self, memory: Mapping[str, float]) -> float:
        """Eta: it scales the whole loss, so AdamW hardly feels it beyond gradient clipping."""
        return {"constant": self.eta_value, "dynamic": memory.get("eta", 1.0), "none": 1.0}[
            self.eta
        ]

    def norm_probe(self) -> GradientProbe | None:
        """Dynamic eta measures the standard gradient and the steered one (lambda is left out, Eq. 15)."""
        sums = (("reverse_kl",), ("reverse_kl", self.steering_term))
        return GradientProbe(self.eta_every, sums) if self.eta == "dynamic" else None

    def learn_norms(self, norms: Sequence[float], memory: Mapping[str, float]) -> dict[str, float]:
        """Moving average of the ratio of the two norms; a gradient of 0 has no ratio and leaves it as it is."""
        if min(norms) == 0:
            return dict(memory)
        ratio = norms[0] / max(norms[1], 1e-12)
        return {**memory, "eta": 0.9 * memory["eta"] + 0.1 * ratio if "eta" in memory else ratio}

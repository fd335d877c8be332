"""Norm correction of steered methods: how large the whole loss is beside the plain one (arXiv 2606.00564, Eq. 15)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from vistill.batch import GradientProbe, Objective


class NormCorrected(Objective):
    """A method whose loss is scaled by eta; its fields say how eta is found."""

    eta: Literal["constant", "dynamic", "none"]
    eta_value: float
    eta_every: int
    steering_term: ClassVar[str]

    def norm_correction(self, memory: Mapping[str, float]) -> float:
        """Eta: it scales the whole loss, so AdamW hardly feels it beyond gradient clipping."""
        return {"constant": self.eta_value, "dynamic": memory.get("eta", 1.0), "none": 1.0}[self.eta]

    def probe(self) -> GradientProbe | None:
        """Dynamic eta measures the standard gradient and the steered one (lambda is left out, Eq. 15)."""
        sums = (("reverse_kl",), ("reverse_kl", self.steering_term))
        return GradientProbe(self.eta_every, sums) if self.eta == "dynamic" else None

    def learn_norms(self, norms: Sequence[float], memory: Mapping[str, float]) -> dict[str, float]:
        """Moving average of the ratio of the two norms."""
        ratio = norms[0] / max(norms[1], 1e-12)
        return {**memory, "eta": 0.9 * memory["eta"] + 0.1 * ratio if "eta" in memory else ratio}

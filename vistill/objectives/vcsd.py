"""`vcsd`: visual contrastive self-distillation (arXiv 2607.21556).

The target amplifies the effect of the image on the distribution.
"""

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from vistill.batch import LossTerm, Need, Requirements, ScoredBatch, Signals
from vistill.functional.divergences import forward_kl
from vistill.functional.targets import contrastive_target
from vistill.objectives.shared import STUDENT, UniformObjective, apply_rule
from vistill.ranges import ranged
from vistill.signals.visual_dependency import token_has_image
from vistill.types import Pass, Reader, View

EMA_FULL = Pass(Reader.EMA, View.FULL)
BLACK = Pass(Reader.EMA, View.BLACK)


@dataclass(frozen=True)
class VCSD(UniformObjective):
    """`(1/T) sum_t KL(q* || p)` at temperature 2, `q* ~ q (q / q_black)^a` where `q >= b max q`."""

    strength: float = ranged(1.0, 0)
    """Exponent of the contrast (alpha)."""
    support: float = ranged(0.1, 0, 1)
    """Tokens below this share of the most likely one leave the target (beta)."""
    temperature: float = ranged(2.0, 0, above=True)
    """Divides the logits of both distributions; the divergence is not multiplied by its square."""
    ema_decay: float = ranged(0.95, 0, 1)
    """Share that the moving average keeps at each update."""

    @property
    def requirements(self) -> Requirements:
        """Images."""
        return Requirements(needs={Need.IMAGE}, ema_rate=1 - self.ema_decay)

    def passes(self) -> tuple[Pass, ...]:
        """The student; its moving average with the image and with a black one."""
        return (STUDENT, EMA_FULL, BLACK)

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """Forward KL to the contrastive target."""
        rule = partial(
            kl_to_contrast,
            strength=self.strength,
            support=self.support,
            temperature=self.temperature,
        )
        weights = signals["token_weight"] * token_has_image(batch.responses)
        return (
            LossTerm(
                "contrastive_kl",
                apply_rule(batch, STUDENT, rule, EMA_FULL, BLACK, weights=weights),
                weights,
            ),
        )


def kl_to_contrast(
    own: Tensor, full: Tensor, black: Tensor, strength: float, support: float, temperature: float
) -> Tensor:
    """KL(q* || student), both at the temperature."""
    return forward_kl(
        own / temperature, contrastive_target(full, black, strength, support) / temperature
    )

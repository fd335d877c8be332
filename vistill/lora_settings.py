"""Settings of LoRA. Needs no torch."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from vistill.ranges import check_ranges, ranged

#: Parts of a model whose linear layers can get adapters. `tower` and `projector` make `vision`.
LoraTarget = Literal["language", "vision", "tower", "projector"]
TARGETS: tuple[LoraTarget, ...] = ("language", "vision", "tower", "projector")


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (LoRA): each adapted layer adds `alpha / rank * B A x` to its output."""

    rank: int = ranged(16, 1)
    """Rank of the matrices A and B. Larger learns more and needs more memory."""
    alpha: float = ranged(32.0, 0, above=True)
    """The adapters count `alpha / rank` times. Larger changes the student faster."""
    targets: tuple[LoraTarget, ...] = dataclasses.field(
        default=("language",), metadata={"items": 1}
    )
    """Parts whose linear layers get adapters: the decoder, the vision tower with its projector, the
    tower alone, the projector alone."""

    def __post_init__(self) -> None:
        check_ranges(self)

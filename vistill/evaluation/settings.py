"""How models are judged. Needs no torch."""

from dataclasses import dataclass
from typing import Literal

from vistill.ranges import check_ranges, ranged


@dataclass(frozen=True)
class EvalSettings:
    """Temperature 1 and the first committed answer as in VA-OPD; fewer samples and shorter responses by default."""

    every: int = ranged(50, 0)
    """Steps between evaluations in a run; 0 never."""
    limit: int | None = ranged(200, 1)
    """Rows of the evaluation set that are used for the accuracy during the run."""
    final_limit: int | None = ranged(None, 1)
    """Rows used before the first and after the last step; empty takes all."""
    extra_limit: int | None = ranged(200, 1)
    """Rows used for greedy accuracy, blind views and visual advantage."""
    samples: int = ranged(1, 1)
    """Responses per question at temperature 1 (the k of avg@k; VA-OPD: 8)."""
    temperature: float = ranged(1.0, 0)
    """Sampling temperature of the accuracy at T = 1."""
    top_p: float = ranged(1.0, 0, 1, above=True)
    """Nucleus."""
    greedy: bool = True
    """Also report greedy accuracy."""
    blind: bool = True
    """Also answer with the picture pixelated, removed and swapped: the visual gap."""
    advantage: bool = True
    """Also measure the teacher's visual advantage of the student's own responses."""
    reading: bool = True
    """On procedural diagrams: change one drawn label and see whether the stated one follows."""
    max_new_tokens: int = ranged(1024, 1)
    """A response longer than this is cut off."""
    answer: Literal["first", "last"] = "first"
    """Which committed answer counts."""
    high_share: float = ranged(0.2, 0, 1, above=True)
    """Share of the tokens in the high group, for the figures on misreads."""
    seed: int = 0
    """Seed of the evaluation's own noise."""
    rows_per_call: int = ranged(512, 1)
    """Rows decoded together."""
    heatmaps: int = ranged(12, 0)
    """Items whose tokens are stored with their visual advantage."""

    def __post_init__(self) -> None:
        check_ranges(self)

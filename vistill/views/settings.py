"""Parameters of the views. Needs no torch."""

from dataclasses import dataclass
from typing import Literal

from vistill.python_fixes import with_python_fixes
from vistill.ranges import check_ranges, ranged
from vistill.registry import thoughts


@with_python_fixes
@dataclass(frozen=True)
class ViewSettings:
    """Views: what a reader sees in place of the original picture."""

    pixelate: float = ranged(0.10, 0, 1, above=True)
    """Side of the reduced picture of the view `pixelated`, as a share of the original. Larger
    leaves more to see."""
    mask_share: float = ranged(0.6, 0, 1)
    """Share of the patches that the view `masked` blackens. Larger hides more."""
    degrade: Literal["either", "downsample", "noise"] = "either"
    """What the view `degraded` does to a picture (S2VOPD): `either` picks one of the two at random
    per prompt."""
    thought: str = "data"
    """Source of visual thoughts: `data` is the column `data.columns.thoughts`; `crop` and `box`
    draw them from the row's boxes (cut out, or framed in red); or a source of a plug-in."""
    noise: Literal["gaussian", "uniform"] = "gaussian"
    """What the views `noise` and `privileged_noise` show: N(0, 1) after preprocessing
    (Visual-OPSD), or uniform pixel values."""

    def __post_init__(self) -> None:
        check_ranges(self)
        thoughts.require("thought", self.thought)

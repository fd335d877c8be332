"""Parameters of the views. Needs no torch."""

from dataclasses import dataclass
from typing import Literal

from vistill.ranges import check_ranges, ranged


@dataclass(frozen=True)
class ViewSettings:
    """Class defaults are the paper's."""

    pixelate: float = ranged(0.10, 0, 1, above=True)
    """Side of the reduced picture of `pixelated` as a share of the original."""
    mask_share: float = ranged(0.6, 0, 1)
    """Share of the patches that `masked` blackens (PAPO p = 0.6, VPPO 0.5)."""
    degrade: Literal["either", "downsample", "noise"] = "either"
    """What `degraded` does to a picture (S2VOPD): one of the two by a keyed coin, or always the same."""
    thought: Literal["data", "crop", "box"] = "data"
    """Visual thoughts: a column of the data, or drawn from the row's boxes (crops of them, or red frames)."""
    noise: Literal["gaussian", "uniform"] = "gaussian"
    """What `noise` and `privileged_noise` show: N(0, 1) of the processed picture (Visual-OPSD), or uniform values."""

    def __post_init__(self) -> None:
        check_ranges(self)

"""Parameters of the views. Needs no torch."""

from dataclasses import dataclass

from vistill.ranges import check_ranges, ranged


@dataclass(frozen=True)
class ViewSettings:
    """Class defaults are the paper's."""

    pixelate: float = ranged(0.10, 0, 1, above=True)
    """Side of the reduced picture as a share of the original."""

    def __post_init__(self) -> None:
        check_ranges(self)

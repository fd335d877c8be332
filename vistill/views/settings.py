"""Parameters of the views. Needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ViewSettings:
    """Class defaults are the paper's."""

    pixelate: float = 0.10
    """Side of the reduced picture as a share of the original."""

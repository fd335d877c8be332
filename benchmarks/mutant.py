"""A mutant: one small defect that is planted in a copy of the package.

The lists are in `mutants_of_losses.py`, `mutants_of_data.py` and `mutants_of_runs.py`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One planted defect."""

    file: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...]


def group(file: str, tests: str, *edits: tuple[str, str, str]) -> list[Mutant]:
    """Mutants of one file, with the tests that must detect them."""
    return [
        Mutant(f"vistill/{file}", *edit, tuple(f"tests/{name}" for name in tests.split()))
        for edit in edits
    ]

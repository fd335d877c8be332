"""A start check: a name, what it ensures, and a function that returns a summary."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vistill.phases import open_phase

if TYPE_CHECKING:  # the data checks run without torch
    from vistill.training.setup import RunSetup

Purpose = Literal["train", "check", "replay", "eval"]
ALL_PURPOSES: tuple[Purpose, ...] = ("train", "check", "replay", "eval")
TRAINING_PURPOSES: tuple[Purpose, ...] = ("train", "check", "replay")
WRITING_PURPOSES: tuple[Purpose, ...] = ("train", "replay")


@dataclass(frozen=True)
class StartCheck:
    """A condition that must hold before the first step."""

    name: str
    ensures: str
    """What holds after the check has passed."""
    run: "Callable[[RunSetup], str]"
    """Raises a coded error or returns a short summary; may fill in fields of the setup."""
    purposes: tuple[Purpose, ...] = TRAINING_PURPOSES
    """Purposes that need the check. Evaluation needs fewer checks; `vistill check` skips those in
    which a model writes responses."""
    phase: str = ""
    """What is shown while it runs; empty for `checking NAME`."""


@dataclass(frozen=True)
class CheckResult:
    """The result of one check that passed."""

    what: str
    """Name of the check."""
    summary: str


def run_checks(setup: "RunSetup", checks: Sequence[StartCheck]) -> list[CheckResult]:
    """Run the checks in order, each once; the first that fails raises its error."""
    results = []
    for check in checks:
        if setup.purpose in check.purposes:
            setup.poll()
            with open_phase(check.phase or f"checking {check.name}"):
                results.append(CheckResult(check.name, check.run(setup)))
    return results

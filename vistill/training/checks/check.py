"""A start check: a name, a sentence on what it makes sure of, and a function that says what it saw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the data checks run without torch
    from vistill.training.setup import RunSetup

Purpose = Literal["train", "check", "replay", "eval"]
ALL_PURPOSES: tuple[Purpose, ...] = ("train", "check", "replay", "eval")
TRAINING_PURPOSES: tuple[Purpose, ...] = ("train", "check", "replay")
WRITING_PURPOSES: tuple[Purpose, ...] = ("train", "replay")


@dataclass(frozen=True)
class StartCheck:
    """One thing that must hold before the first step."""

    name: str
    ensures: str
    """What holds once it has passed."""
    run: "Callable[[RunSetup], str]"
    """Raises a coded error, or says in a few words what it saw; it may fill in what it learnt."""
    purposes: tuple[Purpose, ...] = TRAINING_PURPOSES
    """Who makes it: evaluation needs fewer, and what asks a model to write is left out of `vistill check`."""


@dataclass(frozen=True)
class CheckResult:
    """What one check saw."""

    what: str
    summary: str


def run_checks(setup: "RunSetup", checks: Sequence[StartCheck]) -> list[CheckResult]:
    """Make the checks in order, each once; the first that fails raises its error."""
    findings = []
    for check in checks:
        if setup.purpose in check.purposes:
            setup.poll()
            findings.append(CheckResult(check.name, check.run(setup)))
    return findings

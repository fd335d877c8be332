"""What a run carries from step to step in addition to weights and optimizer; a checkpoint holds it."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass
class RunState:
    """Counters, replaced rows and the method's memory. The data order needs nothing but the step."""

    step: int = 0
    """Updates taken or skipped so far."""
    best: dict[str, float] | None = None
    """Step, value and rows of the best validation result; derived from the log at every start."""
    skipped: int = 0
    """Updates skipped because they were not finite."""
    non_finite_in_a_row: int = 0
    """Skipped updates since the last one that was finite."""
    all_truncated_in_a_row: int = 0
    """Steps since the last one in which a response ended by itself."""
    warned: list[str] = field(default_factory=list)
    """Warnings about rollouts that were given once."""
    gone: dict[str, str] = field(default_factory=dict)
    """Rows that are replaced from here on: id and code of the reason."""
    ladder: dict[str, int] = field(default_factory=dict)
    """How often each phase was halved because memory did not hold it."""
    memory: dict[str, float] = field(default_factory=dict)
    """What the method remembers of earlier steps."""
    reference_sha256: str | None = None
    """Hash of the weights the run began with, where the method compares with them."""
    chain: str = ""
    """What identifies the steps so far (`training/journal.py`)."""

    def to_dict(self) -> dict[str, Any]:
        """For `state.json`."""
        return dataclasses.asdict(self)

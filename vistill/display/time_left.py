"""How long the rest of a run takes, from what its steps, evaluations and saves took so far.

    left = steps left * seconds per step
         + responses left in evaluations * seconds per response of the evaluations so far
         + saves left * seconds per save

The first step of a process is not in the mean: it includes starting up (caches, kernels, memory).
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Steps in the mean: the lengths of responses change during a run.
RECENT_STEPS = 32


def mean(values: "deque[float]") -> float:
    """The mean; 0 without values."""
    return sum(values) / len(values) if values else 0.0


@dataclass
class TimeLeft:
    """Durations of one process, in seconds."""

    first_step: float | None = None
    steps: "deque[float]" = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    saves: "deque[float]" = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    evaluation_seconds: float = 0.0
    evaluation_responses: int = 0

    def add_step(self, seconds: float) -> None:
        """Add a step."""
        if self.first_step is None:
            self.first_step = seconds
        else:
            self.steps.append(seconds)

    def add_evaluation(self, seconds: float, responses: int) -> None:
        """Add an evaluation that wrote so many responses."""
        self.evaluation_seconds += seconds
        self.evaluation_responses += responses

    @property
    def seconds_per_step(self) -> float | None:
        """Mean of the recent steps; the first one alone if there is no other."""
        return mean(self.steps) if self.steps else self.first_step

    @property
    def is_rough(self) -> bool:
        """Whether only the first step is known, which is slower than the others."""
        return not self.steps

    def misses_evaluations(self, record: Mapping[str, Any]) -> bool:
        """Whether evaluations are left and none is measured yet, as after a resume."""
        return bool(record.get("evaluation_responses_left")) and not self.evaluation_responses

    def after(self, record: Mapping[str, Any]) -> float | None:
        """Seconds that are left after the step of a record; None before the first step."""
        if self.seconds_per_step is None:
            return None
        responses = record.get("evaluation_responses_left") or 0
        per_response = self.evaluation_seconds / max(1, self.evaluation_responses)
        steps = (record["steps"] - record["step"]) * self.seconds_per_step
        return steps + responses * per_response + record.get("saves_left", 0) * mean(self.saves)


def duration_text(seconds: float) -> str:
    """`0:41`, `12:05`, `2:03:12` or `3 d 4 h`."""
    whole = max(0, round(seconds))
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days >= 2:
        return f"{days} d {hour} h"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"

"""The engine protocol, and the request that every engine answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from vistill.models.families.base import EncodedPrompt
from vistill.rollouts.settings import RolloutSettings
from vistill.types import Rollout


@dataclass(frozen=True)
class RolloutRequest:
    """K responses to one encoded prompt; `key` and `step` name the noise."""

    key: str
    prompt: EncodedPrompt
    siblings: tuple[int, ...]
    attempt: int = 0


@dataclass(frozen=True)
class Sampling:
    """Seed, step and sampling numbers of one call."""

    seed: int
    step: int
    temperature: float
    top_p: float
    max_new_tokens: int
    rows_per_call: int = 256


def sampling_of(settings: RolloutSettings, seed: int, step: int) -> Sampling:
    """The sampling of a recipe at a step."""
    return Sampling(seed, step, settings.temperature, settings.top_p, settings.max_new_tokens, settings.rows_per_call)


@runtime_checkable
class RolloutEngine(Protocol):
    """Writes responses. The same request and sampling give the same token ids, whatever else is in the batch."""

    def write(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> list[tuple[Rollout, ...]]:
        """The rollouts of each request, in order."""
        ...

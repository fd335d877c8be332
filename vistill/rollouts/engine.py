"""The engine protocol: who writes responses, with which weights, and what a request says."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self, runtime_checkable

from vistill.models.families.base import EncodedPrompt
from vistill.rollouts.settings import RolloutSettings
from vistill.types import Prompt, Rollout


@dataclass(frozen=True)
class RolloutRequest:
    """K responses to one encoded prompt; `key` and `step` name the noise."""

    key: str
    prompt: EncodedPrompt
    """What the response follows, in token ids and image tensors."""
    siblings: tuple[int, ...]
    attempt: int = 0
    source: Prompt | None = field(default=None, compare=False, repr=False)
    """The prompt as the writer sees it, pictures included: for an engine with an image processor of its
    own, which must end at the ids of `prompt`."""


def make_requests(
    seen: Sequence[Prompt], encoded: Sequence[EncodedPrompt], siblings: Sequence[int]
) -> list[RolloutRequest]:
    """One request for each prompt, as its writer sees it."""
    pairs = zip(seen, encoded, strict=True)
    return [
        RolloutRequest(prompt.id, tokens, tuple(siblings), source=prompt)
        for prompt, tokens in pairs
    ]


@dataclass(frozen=True)
class Sampling:
    """Seed, step and sampling numbers of one call."""

    seed: int
    step: int
    temperature: float
    top_p: float
    max_new_tokens: int
    rows_per_call: int = 256
    log_probs: bool = False
    """Whether rollouts carry the log-probability of each token (`Rollout.log_probs`)."""
    weights: int | None = None
    """The weights version that must write; None takes the one that was synced last."""


def sampling_for_step(
    settings: RolloutSettings, seed: int, step: int, weights: int | None = None
) -> Sampling:
    """The sampling of a recipe at a step."""
    return Sampling(
        seed,
        step,
        settings.temperature,
        settings.top_p,
        settings.max_new_tokens,
        settings.rows_per_call,
        weights=weights,
    )


@runtime_checkable
class RolloutEngine(Protocol):
    """Writes responses. What an answer must fulfil is checked in one place: `rollouts/checked_engine.py`.

    `sleep`, `wake` and `close` may be called again and in any state; a closed engine writes no more.
    """

    @property
    def version(self) -> int:
        """Version of the weights that the engine writes with: the number of the update they come from."""
        ...

    @property
    def follows_keyed_noise(self) -> bool:
        """Whether each token is the largest of `logits / T + Gumbel` under the rollout's own keyed noise.

        Then the same request and sampling give the same ids, whatever else is in the batch.
        """
        ...

    @property
    def reports_log_probs(self) -> bool:
        """Whether `Sampling.log_probs` is answered."""
        ...

    def write(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
        """The rollouts of each request, in order."""
        ...

    def sync_weights(self, version: int) -> None:
        """Take over the model's present weights; they are called `version` from now on."""
        ...

    def sleep(self) -> None:
        """Free what writing alone needs (a cache, a copy of the weights)."""
        ...

    def wake(self) -> None:
        """Be ready to write again."""
        ...

    def close(self) -> None:
        """End processes and free memory."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class InProcessEngine:
    """Defaults of an engine that holds the very weights that are trained: nothing to copy, nothing to free."""

    version: int = 0
    follows_keyed_noise: bool = True
    reports_log_probs: bool = True

    def sync_weights(self, version: int) -> None:
        """The weights are shared; only their version is new."""
        self.version = version

    def sleep(self) -> None:
        """Nothing is held between two calls."""

    def wake(self) -> None:
        """Always ready."""

    def close(self) -> None:
        """Nothing to end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class WrappedEngine:
    """An engine that changes what another one writes, and is that engine in everything else."""

    def __init__(self, inner: RolloutEngine) -> None:
        self.inner = inner

    @property
    def version(self) -> int:
        """Of the inner engine."""
        return self.inner.version

    @property
    def follows_keyed_noise(self) -> bool:
        """Of the inner engine."""
        return self.inner.follows_keyed_noise

    @property
    def reports_log_probs(self) -> bool:
        """Of the inner engine."""
        return self.inner.reports_log_probs

    def write(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
        """What the inner engine writes."""
        return self.inner.write(requests, sampling)

    def sync_weights(self, version: int) -> None:
        """Hand on."""
        self.inner.sync_weights(version)

    def sleep(self) -> None:
        """Hand on."""
        self.inner.sleep()

    def wake(self) -> None:
        """Hand on."""
        self.inner.wake()

    def close(self) -> None:
        """Hand on."""
        self.inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

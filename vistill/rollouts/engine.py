"""The engine protocol: requests, sampling numbers, and the methods of every engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self, runtime_checkable

from vistill.models.families.base import EncodedPrompt
from vistill.rollouts.settings import NoiseName, RolloutSettings
from vistill.types import Prompt, Rollout


@dataclass(frozen=True)
class RolloutRequest:
    """Requests K responses to one encoded prompt. `key` and the step select the noise."""

    key: str
    prompt: EncodedPrompt
    """The context of the response: token ids and image tensors."""
    siblings: tuple[int, ...]
    attempt: int = 0
    source: Prompt | None = field(default=None, compare=False, repr=False)
    """The prompt under the writer's view, images included, for an engine with its own image
    processor. The engine must arrive at the ids of `prompt`."""


def make_requests(
    prompts: Sequence[Prompt], encoded: Sequence[EncodedPrompt], siblings: Sequence[int]
) -> list[RolloutRequest]:
    """Make one request per prompt. `prompts` are already under the writer's view."""
    pairs = zip(prompts, encoded, strict=True)
    return [
        RolloutRequest(prompt.id, tokens, tuple(siblings), source=prompt)
        for prompt, tokens in pairs
    ]


@dataclass(frozen=True)
class Sampling:
    """Seed, step and sampling parameters of one call."""

    seed: int
    step: int
    temperature: float
    top_p: float
    max_new_tokens: int
    rows_per_call: int = 256
    log_probs: bool = False
    """Whether to return the log-probability of each token (`Rollout.log_probs`)."""
    weights: int | None = None
    """The weights version that must generate; None means the version of the last sync."""
    noise: NoiseName = "generator"
    """Where the sampling noise comes from, see `RolloutSettings.noise`."""


def sampling_for_step(
    settings: RolloutSettings, seed: int, step: int, weights: int | None = None
) -> Sampling:
    """The sampling parameters of a recipe at one step."""
    return Sampling(
        seed,
        step,
        settings.temperature,
        settings.top_p,
        settings.max_new_tokens,
        settings.rows_per_call,
        weights=weights,
        noise=settings.noise,
    )


@runtime_checkable
class RolloutEngine(Protocol):
    """Generates responses. `rollouts/checked_engine.py` checks them against the contract.

    `sleep`, `wake` and `close` may be called repeatedly and in any state. A closed engine generates
    no more.
    """

    @property
    def version(self) -> int:
        """Version of the engine's weights: the number of the update that made them."""
        ...

    @property
    def follows_keyed_noise(self) -> bool:
        """Whether each token is the argmax of `logits / T + Gumbel` with keyed noise.

        If so, the same request and sampling give the same ids in every batch.
        """
        ...

    @property
    def reports_log_probs(self) -> bool:
        """Whether the engine supports `Sampling.log_probs`."""
        ...

    def generate(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
        """Return the rollouts of each request, in order."""
        ...

    def sync_weights(self, version: int) -> None:
        """Copy the model's current weights and report them as `version` from now on."""
        ...

    def sleep(self) -> None:
        """Free what only generation needs (a cache, a copy of the weights)."""
        ...

    def wake(self) -> None:
        """Prepare for generation again."""
        ...

    def close(self) -> None:
        """Stop processes and free memory."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


Receive = Callable[[RolloutRequest, tuple[Rollout, ...]], None]
"""Called with a request and its finished rollouts."""


@runtime_checkable
class GroupwiseEngine(Protocol):
    """What an engine may offer besides: it passes on finished groups while it writes others."""

    def generate_groups(
        self, requests: Sequence[RolloutRequest], sampling: Sampling, receive: Receive
    ) -> list[tuple[Rollout, ...]]:
        """The same as `generate`. `receive` may be called, once per request, in any order."""
        ...


class InProcessEngine:
    """Base class of an engine that shares the trained weights, so it copies and frees nothing."""

    version: int = 0
    follows_keyed_noise: bool = True
    reports_log_probs: bool = True

    def sync_weights(self, version: int) -> None:
        """Set the version; the weights are shared."""
        self.version = version

    def sleep(self) -> None:
        """Do nothing: the engine holds nothing between calls."""

    def wake(self) -> None:
        """Do nothing: the engine is always ready."""

    def close(self) -> None:
        """Do nothing: there is no process to stop."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def weight_bytes(engine: RolloutEngine) -> int | None:
    """Bytes of a weight of the copy that an engine writes with; None without such a copy."""
    while isinstance(engine, WrappedEngine):
        engine = engine.inner
    return getattr(engine, "copied_weight_bytes", None)


class WrappedEngine:
    """Base class of an engine that changes the output of another one and delegates the rest."""

    def __init__(self, inner: RolloutEngine) -> None:
        self.inner = inner

    @property
    def version(self) -> int:
        """Weights version of the inner engine."""
        return self.inner.version

    @property
    def follows_keyed_noise(self) -> bool:
        """Whether the inner engine follows keyed noise."""
        return self.inner.follows_keyed_noise

    @property
    def reports_log_probs(self) -> bool:
        """Whether the inner engine reports log-probabilities."""
        return self.inner.reports_log_probs

    def generate(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
        """Return the rollouts of the inner engine."""
        return self.inner.generate(requests, sampling)

    def sync_weights(self, version: int) -> None:
        """Sync the inner engine."""
        self.inner.sync_weights(version)

    def sleep(self) -> None:
        """Put the inner engine to sleep."""
        self.inner.sleep()

    def wake(self) -> None:
        """Wake the inner engine."""
        self.inner.wake()

    def close(self) -> None:
        """Close the inner engine."""
        self.inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

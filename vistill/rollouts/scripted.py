"""The scripted engine: responses from a function, for tests and for recorded rollouts."""

from collections.abc import Callable, Sequence

from vistill.rollouts.engine import InProcessEngine, RolloutRequest, Sampling
from vistill.types import Finish, Rollout

LogProbs = Callable[[RolloutRequest, tuple[int, ...]], tuple[float, ...]]


class ScriptedEngine(InProcessEngine):
    """Returns the script's response for (key, sibling), independent of weights and noise."""

    follows_keyed_noise = False

    def __init__(
        self,
        script: Callable[[str, int], tuple[int, ...]],
        stop_id: int,
        log_probs: LogProbs | None = None,
        poll: Callable[[], None] = lambda: None,
    ) -> None:
        self.script, self.stop_id, self.log_probs, self.poll = script, stop_id, log_probs, poll

    @property
    def reports_log_probs(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the script gives log-probabilities."""
        return self.log_probs is not None

    def generate(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
        """Return the scripted rollouts of each request."""
        return [
            tuple(self.rollout(r, sibling, sampling) for sibling in r.siblings) for r in requests
        ]

    def ids(self, request: RolloutRequest, sibling: int, sampling: Sampling) -> tuple[int, ...]:
        """The ids of one response; a subclass may use attempt, step or prompt."""
        return self.script(request.key, sibling)

    def rollout(self, request: RolloutRequest, sibling: int, sampling: Sampling) -> Rollout:
        """One response as a rollout."""
        self.poll()
        ids = self.ids(request, sibling, sampling)
        finish = Finish.STOP if ids and ids[-1] == self.stop_id else Finish.LENGTH
        values = (
            None
            if self.log_probs is None or not sampling.log_probs
            else self.log_probs(request, ids)
        )
        return Rollout(ids, sibling, finish, request.attempt, values)

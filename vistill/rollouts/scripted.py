"""The fake engine: responses from a function. For tests, and for rollouts recorded elsewhere."""

from collections.abc import Callable, Sequence

from vistill.rollouts.engine import RolloutRequest, Sampling
from vistill.types import Finish, Rollout


class ScriptedEngine:
    """Writes whatever the script says for (key, sibling)."""

    def __init__(self, script: Callable[[str, int], tuple[int, ...]], stop_id: int) -> None:
        self.script, self.stop_id = script, stop_id

    def write(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> list[tuple[Rollout, ...]]:
        """The scripted rollouts."""
        return [tuple(self._rollout(request, sibling) for sibling in request.siblings) for request in requests]

    def _rollout(self, request: RolloutRequest, sibling: int) -> Rollout:
        ids = self.script(request.key, sibling)
        finish = Finish.STOP if ids and ids[-1] == self.stop_id else Finish.LENGTH
        return Rollout(ids, sibling, finish, request.attempt)

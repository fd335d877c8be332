"""Rewards from the answer checkers: is the answer right, and does the response have the format?"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from vistill.data.answers import judge_answer
from vistill.data.math_judge import MathJudge
from vistill.models.loading import VLM
from vistill.training.settings import RewardSettings
from vistill.types import RolloutGroup


@dataclass(frozen=True)
class Rewards:
    """`accuracy * correct + format * matches` per rollout.

    Use it as a context manager: `MathJudge` is a process.
    """

    settings: RewardSettings
    vlm: VLM
    math: MathJudge

    def __enter__(self) -> "Rewards":
        self.math.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.math.__exit__(kind, error, at)

    def of(self, groups: Sequence[RolloutGroup]) -> list[float]:
        """One reward per rollout, in the order of the response axis."""
        return [self.one(group, rollout.ids) for group in groups for rollout in group.rollouts]

    def one(self, group: RolloutGroup, ids: tuple[int, ...]) -> float:
        """The reward of one response."""
        text = self.vlm.decode(ids)
        assert group.prompt.answer is not None, "a start check refuses rows without an answer"
        verdict = judge_answer(
            text, group.prompt.answer, group.prompt.choices, self.settings.answer, self.math
        )
        matches = re.search(self.settings.pattern, text, re.S) is not None
        return self.settings.accuracy * verdict.correct + self.settings.format * matches

"""Rewards of responses: is the answer right, is the format kept, and what plug-ins add."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from types import TracebackType

from vistill.answers.math_process import MathJudge
from vistill.data.judging import judge_response
from vistill.data.mixture import set_of
from vistill.models.loading import VLM
from vistill.phases import count_items
from vistill.plugin_calls import plugin_call
from vistill.registry import rewards
from vistill.training.settings import RewardSettings
from vistill.types import Prompt, RolloutGroup


@dataclass(frozen=True)
class Rewards:
    """The weighted sum of the rewards of a response, per rollout.

    Use it as a context manager: `MathJudge` is a process.
    """

    settings: RewardSettings
    vlm: VLM
    math: MathJudge
    by_set: Mapping[str, RewardSettings] = field(default_factory=dict)
    """The settings of data sets that have their own."""
    unparsed: list[bool] = field(default_factory=list)
    """Whether each response of the last `of` commits to no answer."""

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
        self.unparsed.clear()
        pairs = [(group, rollout) for group in groups for rollout in group.rollouts]
        return [self.one(group, r.ids) for group, r in count_items("judging responses", pairs)]

    def metrics(self) -> dict[str, float]:
        """What the judging of a step showed, after `of`.

        Returns:
            How many comparisons exceeded a limit, by limit (`judge/time`, ...; none is no entry),
            and the share of responses without an answer, if answers are rewarded.
        """
        counts = {f"judge/{name}": float(n) for name, n in sorted(self.math.limits.items())}
        if self.settings.accuracy:
            counts["reward/unparsed_share"] = sum(self.unparsed) / len(self.unparsed)
        self.math.limits.clear()
        return counts

    def one(self, group: RolloutGroup, ids: tuple[int, ...]) -> float:
        """The reward of one response."""
        text = self.vlm.decode(ids)
        settings = self.by_set.get(set_of(group.prompt), self.settings)
        weights = {"accuracy": settings.accuracy, "format": settings.format, **settings.extra}
        values = []
        for name, weight in weights.items():
            with plugin_call(rewards, name):
                function = rewards.get(name)
                if function is accuracy:
                    value: object = self.judge(text, group.prompt, settings)
                else:
                    value = function(text, group.prompt, settings, self.math)
                values.append(weight * finite(value))
        return sum(values)

    def judge(self, text: str, prompt: Prompt, settings: RewardSettings) -> float:
        """The reward `accuracy` of a response; its verdict counts in `metrics`."""
        verdict = judge_response(text, prompt, settings, self.math)
        self.unparsed.append(verdict.unparsed)
        return float(verdict.correct)


def finite(value: object) -> float:
    """A reward as a number.

    Raises:
        ValueError: it is no number, or none that can be compared.
    """
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"it returned {value!r:.80}, which is no finite number")
    return float(value)


def accuracy(response: str, prompt: Prompt, settings: RewardSettings, math: MathJudge) -> float:
    """1 for a right answer, by `reward.checker`."""
    return float(judge_response(response, prompt, settings, math).correct)


def format_match(response: str, prompt: Prompt, settings: RewardSettings, math: MathJudge) -> float:
    """1 for a response that matches `reward.pattern`."""
    return float(re.search(settings.pattern, response, re.S) is not None)

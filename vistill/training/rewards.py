"""Rewards of responses: is the answer right, is the format kept, and what plug-ins add."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from vistill.data.math_judge import MathJudge
from vistill.errors import ConfigError
from vistill.models.loading import VLM
from vistill.plugin_calls import checked_function, plugin_call
from vistill.registry import checkers, rewards
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
        weights = {
            "accuracy": self.settings.accuracy,
            "format": self.settings.format,
            **self.settings.extra,
        }
        values = []
        for name, weight in weights.items():
            with plugin_call(rewards, name):
                value = float(rewards.get(name)(text, group.prompt, self.settings, self.math))
            values.append(weight * value)
        return sum(values)

    def value_of(self, name: str, text: str, prompt: Prompt) -> float:
        """The value of one reward.

        Raises:
            ConfigError: C106, a reward of a plug-in fails, or returns no finite number.
        """
        reward = rewards.get(name)
        if name in rewards.builtin:
            return float(reward(text, prompt, self.settings, self.math))
        try:
            value = reward(text, prompt, self.settings, self.math)
        except Exception as error:  # code of a plug-in can raise anything; it is named and chained
            raise faulty_reward(name, f"{type(error).__name__}: {error}") from error
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise faulty_reward(name, f"it returned {value!r:.80}, which is no finite number")
        return float(value)


def faulty_reward(name: str, reason: str) -> ConfigError:
    """C106 for a reward of a plug-in."""
    entry = rewards.entry(name)
    function = entry.target.partition(":")[2] or name
    return ConfigError(
        "C106",
        f"the reward {name} failed on a response",
        where=str(entry.origin),
        why=reason,
        fix=f"correct {function}: return a finite number for every response",
    )


def accuracy(response: str, prompt: Prompt, settings: RewardSettings, math: MathJudge) -> float:
    """1 for a right answer, by `reward.checker`."""
    assert prompt.answer is not None, "a start check refuses rows without an answer"
    check = checked_function(checkers, settings.checker)
    return float(check(response, prompt.answer, prompt.choices, settings.answer, math).correct)


def format_match(response: str, prompt: Prompt, settings: RewardSettings, math: MathJudge) -> float:
    """1 for a response that matches `reward.pattern`."""
    return float(re.search(settings.pattern, response, re.S) is not None)

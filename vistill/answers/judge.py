"""The verdict of a checker on one reply."""

from collections.abc import Sequence
from dataclasses import dataclass

from vistill.answers.checkers.maze import read_grid, shortest_plan
from vistill.answers.checkers.yes_no import GOLD
from vistill.answers.extract import Take
from vistill.answers.math_process import MathJudge, VerdictMath
from vistill.answers.verdict import Verdict
from vistill.plugin_calls import plugin_call
from vistill.registry import checkers


@dataclass(frozen=True)
class Question:
    """What a checker knows of the question."""

    choices: tuple[str, ...]
    """The options of a multiple-choice question."""
    take: Take
    """Which commitment of the reply counts."""


def verdict_of(
    checker: str, reply: str, gold: str | Sequence[str], question: Question, math: MathJudge
) -> Verdict:
    """The verdict of a checker by its name; its mathematics has one limit of time.

    Raises:
        ConfigError: C106, the checker of a plug-in fails or returns something else.
    """
    with plugin_call(checkers, checker):
        mathematics = VerdictMath(math)
        verdict = checkers.get(checker)(reply, gold, question.choices, question.take, mathematics)
        if not isinstance(verdict, Verdict):
            raise TypeError(f"it returned {verdict!r:.80}, which is no vistill.answers.Verdict")
    return verdict


def gold_response(answer: str) -> str:
    """A response that commits to the gold answer, to test a checker."""
    return f"The answer is \\boxed{{{answer}}}."


def right_answer(checker: str, gold: str) -> str:
    """What a right reply states: the gold answer; yes or no for `1` and `0`, a plan for a maze."""
    if checker == "yes_no":
        says_yes = GOLD.get(gold.strip().casefold())
        return gold if says_yes is None else "yes" if says_yes else "no"
    if checker in ("maze", "maze_strict"):
        return ",".join(shortest_plan(read_grid(gold))) or gold
    return gold

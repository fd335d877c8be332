"""`vistill.judge`: the verdict of a checker on one reply."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vistill.answers.extract import Take
from vistill.answers.math_process import MathJudge, shared_judge
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


def judge(
    reply: str,
    gold: str | Sequence[str],
    choices: Sequence[str] = (),
    checker: str = "auto",
    take: Take = "last",
) -> Verdict:
    """Judge a reply: which span is its answer, by which rule, and whether it is correct.

    One math-verify process serves all calls.

    Args:
        reply: what a model said.
        gold: the gold answer; several mean any of them.
        choices: the options of a multiple-choice question.
        checker: a name of `vistill list checkers`.
        take: the `first` commitment (VA-OPD) or the `last` one (the usual harnesses).

    Raises:
        ConfigError: C105, there is no such checker; C106, that of a plug-in fails.
        RolloutError: R409, the process of math-verify gives no answer.
    """
    checkers.require("checker", checker)
    options = tuple(str(c) for c in choices)
    verdict = verdict_of(checker, reply, gold, Question(options, take), shared_judge())
    return verdict if verdict.checker else replace(verdict, checker=checker)


def verdict_of(
    checker: str, reply: str, gold: str | Sequence[str], question: Question, math: MathJudge
) -> Verdict:
    """The verdict of a checker by its name.

    Raises:
        ConfigError: C106, the checker of a plug-in fails or returns something else.
    """
    with plugin_call(checkers, checker):
        verdict = checkers.get(checker)(reply, gold, question.choices, question.take, math)
        if not isinstance(verdict, Verdict):
            raise TypeError(f"it returned {verdict!r:.80}, which is no vistill.answers.Verdict")
    return verdict


def gold_response(answer: str) -> str:
    """A response that commits to the gold answer, to test a checker."""
    return f"The answer is \\boxed{{{answer}}}."

"""`vistill.judge`: the verdict of a checker on one reply."""

from collections.abc import Sequence
from dataclasses import replace

from vistill.answers.extract import Take
from vistill.answers.math_process import shared_judge
from vistill.answers.verdict import Verdict
from vistill.registry import checkers


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
        ConfigError: C105, there is no such checker.
        RolloutError: R409, the process of math-verify gives no answer.
    """
    checkers.require("checker", checker)
    check = checkers.get(checker)
    verdict = check(reply, gold, tuple(str(c) for c in choices), take, shared_judge())
    return verdict if verdict.checker else replace(verdict, checker=checker)


def gold_response(answer: str) -> str:
    """A response that commits to the gold answer, to test a checker."""
    return f"The answer is \\boxed{{{answer}}}."

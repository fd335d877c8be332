"""Judge a response to a prompt by the checker of its row or of the recipe."""

from typing import Protocol

from vistill.answers.extract import Take
from vistill.answers.math_process import MathJudge
from vistill.answers.verdict import Verdict
from vistill.registry import checkers
from vistill.types import Prompt


class JudgeSettings(Protocol):
    """The settings of `eval` and of `reward` that judge."""

    @property
    def checker(self) -> str:
        """The checker of rows that name none."""
        ...

    @property
    def answer(self) -> Take:
        """Which commitment counts."""
        ...


def judge_response(
    response: str, prompt: Prompt, settings: JudgeSettings, math: MathJudge
) -> Verdict:
    """The verdict on a response; `data.columns.checker` of the row comes before the recipe."""
    assert prompt.answer is not None, "a start check refuses rows without an answer"
    check = checkers.get(prompt.labels.get("checker") or settings.checker)
    return check(response, prompt.answer, prompt.choices, settings.answer, math)

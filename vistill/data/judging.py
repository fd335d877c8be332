"""Judge a response to a prompt by the checker of its row or of the recipe."""

from typing import Protocol

from vistill.answers.extract import Take
from vistill.answers.judge import Question, verdict_of
from vistill.answers.math_process import MathJudge
from vistill.answers.verdict import Verdict
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
    """The verdict on a response; `data.columns.checker` of the row comes before the recipe.

    Raises:
        ConfigError: C106, the checker of a plug-in fails or returns no verdict.
    """
    assert prompt.answer is not None, "a start check refuses rows without an answer"
    name = prompt.labels.get("checker") or settings.checker
    question = Question(prompt.choices, settings.answer)
    return verdict_of(name, response, prompt.answer, question, math)

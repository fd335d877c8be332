"""Judge a response to a prompt by the checker of its row or of the recipe; `vistill.judge`."""

from dataclasses import replace
from typing import Any, Protocol, get_args

from vistill.answers.extract import Take
from vistill.answers.judge import Question, verdict_of
from vistill.answers.math_process import MathJudge, shared_judge
from vistill.answers.verdict import Verdict
from vistill.data.gold import read_gold, read_options
from vistill.errors import ConfigError, DataError, closest
from vistill.registry import checkers
from vistill.types import Prompt

#: What the arguments of `vistill.judge` are called in its messages.
WHERE = "vistill.judge"


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


def judge(
    reply: str, gold: Any, choices: Any = (), checker: str = "auto", take: Take = "last"
) -> Verdict:
    """Judge a reply: which span is its answer, by which rule, and whether it is correct.

    One math-verify process serves all calls. Gold answer and options are read as those of a row.

    Args:
        reply: what a model said.
        gold: the gold answer, such as a text, a number or a mapping; several mean any of them.
        choices: the options of a multiple-choice question, as a list or a mapping of letters.
        checker: a name of `vistill list checkers`.
        take: the `first` commitment (VA-OPD) or the `last` one (the usual harnesses).

    Raises:
        ConfigError: C002, an argument cannot be read; C105, there is no such checker; C106, that
            of a plug-in fails.
        RolloutError: R409, the process of math-verify gives no answer.
    """
    if not isinstance(reply, str):
        raise argument_error(f"reply is {reply!r:.60}", "it is no text", "pass a text")
    if not isinstance(checker, str):
        why = f"checkers: {', '.join(checkers.names())}"
        raise argument_error(f"checker is {checker!r:.60}", why, "pass one of these names")
    if take not in get_args(Take):
        why = "it chooses which commitment of the reply counts"
        raise argument_error(f"take is {take!r:.60}", why, 'pass take as "first" or "last"')
    near = next(iter(closest(checker, checkers.names())), "auto")
    checkers.require("checker", checker, f"vistill.judge(..., checker={near!r})")
    try:
        if isinstance(gold, list | tuple) and not gold:  # none is right
            golds, options = (), read_options(choices, WHERE)
        else:
            golds, options = read_question(gold, choices, WHERE)
    except DataError as error:
        fix = "pass what a row of a data file may have, such as a text or a list of texts"
        raise argument_error(error.what, error.why, fix) from error
    return verdict_by_name(reply, golds, Question(options, take), checker)


def is_option_letter(gold: Any, options: tuple[str, ...]) -> bool:
    """Whether a gold answer is the letter of an option."""
    return isinstance(gold, str) and gold in [chr(ord("A") + i) for i in range(len(options))]


def read_question(
    gold: Any, choices: Any, where: str, numbers_are_values: bool = False
) -> tuple[str | tuple[str, ...], tuple[str, ...]]:
    """The gold answer and the options of a question, by the conventions of rows.

    Raises:
        DataError: D104, there is no convention for one of them, or no gold answer.
    """
    options = read_options(choices, where)
    try:
        golds = read_gold(gold, options, where, numbers_are_values)
    except DataError:
        if not (options and is_option_letter(gold, options)):
            raise
        golds = gold  # a letter that is the text of another option: the letter counts
    if golds is None:
        what = f"there is no gold answer: {gold!r:.60}"
        why = "a reply is compared with a gold answer"
        raise DataError("D104", what, where=where, why=why, fix="write the gold answer")
    return golds, options


def verdict_by_name(
    reply: str, golds: str | tuple[str, ...], question: Question, checker: str
) -> Verdict:
    """The verdict of a checker with the shared process; it names its checker."""
    verdict = verdict_of(checker, reply, golds, question, shared_judge())
    return verdict if verdict.checker else replace(verdict, checker=checker)


def argument_error(what: str, why: str, fix: str) -> ConfigError:
    """C002 for an argument of `vistill.judge`."""
    return ConfigError("C002", what, where=WHERE, why=why, fix=fix)

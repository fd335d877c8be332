"""`auto`: the checker that fits a row, by its options and its gold answer."""

import re
from dataclasses import replace

from vistill.answers.checkers import choice, text, yes_no
from vistill.answers.checkers import math as mathematics
from vistill.answers.compare import Mathematics
from vistill.answers.extract import Take
from vistill.answers.letters import MARKED
from vistill.answers.normalise import math_form, strip_markup
from vistill.answers.reading import with_gold
from vistill.answers.values import is_mathematical, is_time_or_date, parse_value
from vistill.answers.verdict import Verdict

LETTERS = re.compile(r"[A-J](?:\s?[,;]\s?[A-J]){0,9}")
YES_NO = re.compile(r"yes|no", re.IGNORECASE)


def kind_of(answer: str, choices: tuple[str, ...]) -> str:
    """The checker of a row: `choice`, `yes_no`, `math` or `text`.

    Without options, a gold answer of one capital letter is an option that the question shows.
    """
    if choices:
        return "choice"
    plain = strip_markup(answer)
    if LETTERS.fullmatch(plain) or MARKED.fullmatch(plain):
        return "choice"
    if YES_NO.fullmatch(plain):
        return "yes_no"
    value = parse_value(plain)
    if value.number is not None and not value.label:
        return "math"
    if is_time_or_date(value.form) and any(c.isdigit() for c in plain):
        return "math"
    return "math" if is_mathematical(math_form(plain)) or "\\" in plain or "$" in answer else "text"


DECIDE = {
    "choice": choice.decide,
    "yes_no": yes_no.decide,
    "math": mathematics.decide,
    "text": text.decide,
}


@with_gold
def check(
    response: str, answer: str, choices: tuple[str, ...], take: Take, math: Mathematics | None
) -> Verdict:
    """By row: `choice` with options or a gold letter, `yes_no`, `math` for values, else words."""
    kind = kind_of(answer, choices)
    verdict = DECIDE[kind](response, answer, choices, take, math)
    return replace(verdict, checker=kind)

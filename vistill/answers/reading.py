"""What an answer may be read as: without a clause, behind `=`, behind a denial."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps

from vistill.answers.characters import plain_characters, readable
from vistill.answers.extract import Take
from vistill.answers.languages import Language
from vistill.answers.translate import find_language, gold_readings, readings, translate_option
from vistill.answers.values import parse_value
from vistill.answers.verdict import Verdict

#: Checkers that read replies in other languages as if they were English.
TRANSLATED = frozenset(["auto", "choice", "math", "number", "relaxed", "text", "yes_no"])

CLAUSE = re.compile(
    r",?\s(?:because|since|due to|given that|assuming|so that|rather than|instead of|and not"
    r"|but not|when rounded|after|as (?:the|it|this|shown|we|there))\b"
    r"|,\s(?:as|so|which|where|and the|and it|but|with|when|if|meaning|making|therefore|not)\b"
    r"|,\sfollowed by\b|;\s|。|，因|,因|\s?而(?:不是|非)"
    r"|(?<!Mr)(?<!Mrs)(?<!Dr)(?<!St)(?<!\.[A-Z])\.\s(?=[A-Z])"
    r"|\s(?:when|for|if|where)\s[a-z]\s?=|\s\([A-Za-z][^()]{1,80}\)$",
    re.IGNORECASE,
)
DENIAL = re.compile(
    r"^(?:(?:it|that|this|the (?:correct |right |best )?(?:answer|option))(?: is|'s|(?= isn't)) ?)?"
    r"(?:definitely |clearly |certainly |probably |likely )?(?:not|neither|n't|isn't"
    r"|(?:cannot|can't) be(?=\s[$\\(]{0,3}-?\d))\b"
    r"|^(?:应该|可能|肯定|一定|绝对)?(?:不是|不选|并非|非)",
    re.IGNORECASE,
)
INSTEAD = re.compile(
    r"(?:\bbut(?: rather)?|\bit is|\bit's|\binstead|\brather)[,:]?\s"
    r"|(?:而是|[,;]\s?(?:而?应该?)?(?:是|选))\s?",
    re.IGNORECASE,
)
LEAD_IN = re.compile(
    r"^(?:(?:now|therefore|thus|hence|so|then|approximately|approx\.?|about|around|roughly|nearly"
    r"|exactly|in(?=\s\d{4}$)|at(?=\s[(\d\\$])|on(?=\s[A-Z\d])|simply|just|clearly"
    r"|indeed|only|also|equal to|equals|given by"
    r"|likely|probably|most likely|definitely|therefore,|that|it is|it's|is|=|≈|~|\\approx|:|->)"
    r"\s?,?\s?){1,4}",
    re.IGNORECASE,
)
COPULA = re.compile(
    r"\s(?:is|are|was|were|be|equals|equal to|reads|says|shows|measures"
    r"|has coordinates|=|≈|\\approx)\s"
    r"|,?\s(?:i\.e\.,?|that is,|namely,?)\s|(?:为|是|等于|^答:)\s?(?=[\d\\$√-])",
    re.IGNORECASE,
)
#: A second value in brackets in another unit: `25 °C (77 °F)`.
IN_OTHER_UNIT = re.compile(r"\s\((?:or |about |approximately |\u2248\s?|~\s?)?([^()]{1,40})\)$")
#: `1.5 hours, i.e. 90 minutes`.
THAT_IS = re.compile(r",?\s(?:i\.e\.,?|that is,|namely,?)\s", re.IGNORECASE)
#: The noun before a range: `Ages 25-34`.
RANGE_NOUN = re.compile(r"(?:ages?|aged|years?|pages?)\s(?=\d)", re.IGNORECASE)
LABEL = re.compile(r"^[(\[]?[A-J][)\].:]\s{0,3}(?=\S)")


def cut_clause(plain: str) -> str:
    """An answer without the clause behind it: `12, because 3*4=12` is `12`."""
    match = CLAUSE.search(plain)
    return plain[: match.start()].strip() if match and match.start() > 0 else plain


def after_negation(plain: str) -> str:
    """What stands for a denied answer: `not A, it is B` is `B`; "" if nothing does."""
    denial = DENIAL.match(plain)
    if denial is None:
        return plain
    match = INSTEAD.search(plain, denial.end())
    return plain[match.end() :].strip() if match else ""


def without_lead_in(plain: str) -> str:
    """An answer without `therefore`, `approximately` and the like before it."""
    return LEAD_IN.sub("", plain).strip() or plain


def right_side(plain: str) -> str:
    """What stands behind the last `=` or `≈`; "" if there is none."""
    at = max(plain.rfind("="), plain.rfind("≈"), plain.rfind("\\approx"))
    if at < 0 or plain[at - 1 : at] in ("<", ">", "!", "\\"):
        return ""
    return plain[at:].lstrip("=≈").removeprefix("\\approx").strip()


def predicate(plain: str) -> str:
    """What stands behind the last `is` of a sentence; "" if there is none."""
    ends = [m.end() for m in COPULA.finditer(plain)]
    return plain[ends[-1] :].strip() if ends else ""


def first_values(stated: str) -> list[str]:
    """What an answer states before the same in another unit, or behind a noun before a range."""
    forms: list[str] = []
    value = without_lead_in(predicate(stated) or stated)
    if (other := IN_OTHER_UNIT.search(value)) and parse_value(other.group(1)).unit:
        forms.append(value[: other.start()])
    before = stated[: that_is.start()] if (that_is := THAT_IS.search(stated)) else ""
    if before:
        forms += [before, predicate(before)]
    if noun := RANGE_NOUN.match(stated):
        forms.append(stated[noun.end() :])
    return forms


def with_golds(check: Callable[..., Verdict]) -> Callable[..., Verdict]:
    """A checker that gets a reply without thoughts, in plain characters, and a list of golds."""
    name = check.__module__.rpartition(".")[2]

    @wraps(check)
    def on_readable(
        response: str,
        answer: str | Sequence[str],
        choices: Sequence[str] = (),
        take: Take = "first",
        math: object = None,
    ) -> Verdict:
        golds = [
            plain_characters(str(a)) for a in ([answer] if isinstance(answer, str) else answer)
        ]
        options = tuple(plain_characters(str(c)) for c in choices)
        text = readable(response)
        language = find_language(text) if name in TRANSLATED else None
        if language is None:
            verdict = check(text, golds, options, take, math)
        else:
            verdict = read_translated(check, text, language, (golds, options, take, math))
        if verdict.position is not None:
            start, end = verdict.position
            if verdict.extracted != (extracted := response[start:end].strip()):
                verdict = replace(verdict, extracted=extracted)
        return verdict if verdict.checker else replace(verdict, checker=name)

    return on_readable


def read_translated(
    check: Callable[..., Verdict],
    text: str,
    language: Language,
    row: tuple[list[str], tuple[str, ...], Take, object],
) -> Verdict:
    """The verdict on a reply in another language: correct if one reading of its numbers is.

    Args:
        check: the checker.
        text: a reply after `readable`.
        language: of the reply.
        row: the gold answers and options as they are, which commitment counts, and mathematics.
    """
    golds, options, take, math = row
    golds = [reading for gold in golds for reading in gold_readings(gold, language)]
    options = tuple(translate_option(option, language) for option in options)
    verdicts: list[Verdict] = []
    for reading in readings(text, language):
        verdict = check(reading.text, golds, options, take, math)
        if verdict.position is not None:
            start, end = verdict.position
            verdict = replace(verdict, position=(reading.places[start], reading.places[end]))
        if verdict.correct:
            return verdict
        verdicts.append(verdict)
    return verdicts[0]


def with_gold(check: Callable[..., Verdict]) -> Callable[..., Verdict]:
    """The same for a checker that gets one gold answer: several mean any of them."""

    @with_golds
    @wraps(check)
    def any_gold(
        response: str,
        answer: Sequence[str],
        choices: tuple[str, ...],
        take: Take,
        math: object,
    ) -> Verdict:
        verdict = Verdict(None, False, reason="the row has no gold answer")
        for gold in answer:
            verdict = check(response, gold, choices, take, math)
            if verdict.correct:
                break
        return verdict

    return any_gold

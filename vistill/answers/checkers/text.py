"""Words as an answer: equal in normal form. `auto` uses it where the gold answer is a text."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from vistill.answers.compare import Mathematics, same_value
from vistill.answers.corrections import settle
from vistill.answers.denials import is_no_statement
from vistill.answers.extract import Commitment, Take, find_explicit, is_cut_in_box, sentences, whole
from vistill.answers.normalise import MOST_CHARACTERS, strip_markup, text_form
from vistill.answers.reading import (
    after_negation,
    cut_clause,
    predicate,
    with_gold,
    without_lead_in,
)
from vistill.answers.verdict import Verdict

#: What may follow `answer is` and is no answer in words.
NO_ANSWER = re.compile(
    r"^(?:also )?(?:found|used|based|obtained|determined|calculated|derived|computed|reached"
    r"|explained|shown|given|helpful|correct|useful|clear|as follows|below|here"
    r"|the (?:one|option|choice) (?:that|which))\b",
    re.IGNORECASE,
)
#: `Brand: Nike`, and `The text says "Nike"`.
NAMED = re.compile(r"[A-Za-z]{2,20}(?: [a-z]{1,20}){0,2}:\s{1,3}(?=\S)(.{1,100})$")
ONE_QUOTE = re.compile(r'[^"]{1,100}"([^"]{1,100})"')
#: A number in brackets behind words: `Germany (34%)`.
AMOUNT = re.compile(r"(?<=[^\W\d_])\s\([-+$]?[\d.,]{1,20}\s?[^\s()\d]{0,8}\)$")
#: The other one, denied: `Samsung, not Apple`.
NOT_OTHER = re.compile(
    r", (?:and )?not (?!sure|certain|really|quite|exactly|necessarily|clear|correct|right|true"
    r"|the answer)[\w' -]{1,30}\.?$",
    re.IGNORECASE,
)
#: A hyphen between words is a space: `Coca-Cola` is `coca cola`.
HYPHEN = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_]{2})|(?<=[^\W\d_]{2})-(?=[^\W\d_])")
#: Words of a short reply.
MOST_WORDS = 16


@dataclass(frozen=True)
class Words:
    """The readings of an answer in words."""

    forms: tuple[str, ...]


def read_words(plain: str, rule: str) -> Words | None:
    """The readings of an answer: whole, without a clause, and behind `is` in a short reply."""
    if rule not in ("box", "tag", "bare") and NO_ANSWER.match(plain):
        return None
    plain = after_negation(plain) or plain
    bare = without_lead_in(plain)
    forms = [plain, bare, cut_clause(bare), AMOUNT.sub("", bare)]
    if rule == "bare" and not is_no_statement(NOT_OTHER.sub("", plain)):
        stated = predicate(cut_clause(bare))
        forms += [stated, without_lead_in(stated)]
        forms += [m.group(1) for m in [NAMED.match(plain) or ONE_QUOTE.fullmatch(plain)] if m]
    forms = [form for form in dict.fromkeys(forms) if text_form(form)]
    return Words(tuple(forms)) if forms else None


def find_words(text: str, take: Take) -> Commitment[Words] | None:
    """The words that a reply commits to, and the rule that found them."""
    explicit = find_explicit(text, take, read_words)
    if explicit is not None:
        return settle(text, explicit, take, read_later)
    span = whole(text)
    raw = text[span.start : span.end]
    short = len(raw) <= 200 and len(raw.split()) <= MOST_WORDS and len(sentences(raw, 3)) == 1
    if not raw or not short or is_cut_in_box(text):
        return None
    form = read_words(strip_markup(raw), "bare")
    return Commitment(span.start, span.end, raw, "bare", form) if form else None


def read_later(text: str) -> None:
    """No words behind a correction are an answer."""


def score_words(
    response: str,
    take: Take,
    gold_form: str,
    rate: Callable[[tuple[str, ...]], tuple[str, float, str]],
) -> Verdict:
    """The verdict of a checker that gives parts of the credit.

    Args:
        response: a reply after `readable`.
        take: which commitment counts.
        gold_form: the gold answers as the verdict shows them.
        rate: from the readings of an answer the best one, its score, and why it is not correct.
    """
    commit = find_words(response, take)
    if commit is None or commit.form is None:
        reason = "the reply commits to no answer"
        return Verdict(None, False, gold_form=gold_form, reason=reason, score=0.0)
    form, score, reason = rate(commit.form.forms)
    where = (commit.start, commit.end)
    return Verdict(
        commit.text, not reason, commit.rule, where, form, gold_form, reason, score=score
    )


def decide(
    response: str, answer: str, choices: tuple[str, ...], take: Take, math: Mathematics | None
) -> Verdict:
    """The verdict on a reply after `readable`, with one gold answer."""
    gold_form = text_form(answer)
    if gold_form and len(response) <= MOST_CHARACTERS and text_form(response) == gold_form:
        span = whole(response)  # however long the gold answer is, and whatever it says
        where = (span.start, span.end)
        return Verdict(response.strip(), True, "bare", where, gold_form, gold_form)
    commit = find_words(response, take)
    if commit is None or commit.form is None:
        return Verdict(None, False, gold_form=gold_form, reason="the reply commits to no answer")
    same = [
        form
        for form in commit.form.forms
        if same_value(form, answer, None)
        or HYPHEN.sub(" ", text_form(form)) == HYPHEN.sub(" ", gold_form)
    ]
    form = text_form(same[0] if same else commit.form.forms[0])
    reason = "" if same else "other words"
    where = (commit.start, commit.end)
    return Verdict(commit.text, bool(same), commit.rule, where, form, gold_form, reason)


@with_gold
def check(
    response: str, answer: str, choices: tuple[str, ...], take: Take, math: Mathematics | None
) -> Verdict:
    """Equal words: without case, articles, wrappers and punctuation at the ends."""
    return decide(response, answer, choices, take, math)

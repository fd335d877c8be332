"""`yes_no`: yes or no, as in HallusionBench, POPE and MME; gold answers `1` and `0` too."""

import re

from vistill.answers.compare import Mathematics
from vistill.answers.corrections import WINDOW, settle
from vistill.answers.denials import NEW_CLAUSE, is_unreal
from vistill.answers.extract import (
    Commitment,
    Take,
    find_explicit,
    first_sentence,
    sentences,
    whole,
)
from vistill.answers.normalise import strip_markup
from vistill.answers.reading import with_gold, without_lead_in
from vistill.answers.verdict import Verdict

WORD = re.compile(
    r"(?<![A-Za-z])(?:(yes|yeah|yep|correct|true|right)|(no|nope|false|incorrect|wrong))(?![A-Za-z])|(是)|(否|不)",
    re.I,
)
STRICT = re.compile(
    r"(?<![A-Za-z])(?:(yes|true)|(no|false))(?![A-Za-z])|((?<!不)(?:是的?(?!不是)|对))|(否|不是|不对)",
    re.I,
)
#: A reply that does not know.
UNKNOWN = re.compile(
    r"\bno (?:\w{1,12} )?(?:idea|way|information|clue|answer|means|doubt|conclusion)\b"
    r"|\bno (?:image|picture|photo|figure|attachment)\w? (?:was|were|is|are|has|have|provided"
    r"|attached|given|available|uploaded)\b|\bneither yes\b"
    r"|\b(?:can't|cannot|unable to)"
    r" (?:be )?(?:tell|determine|say|know|answer|see)|\bnot (?:sure|certain|clear|possible to)\b"
    r"|\bunclear\b|\bdon't know\b|\bnot know\b",
    re.IGNORECASE,
)
#: `No problem, ...` begins a reply and is no answer.
POLITE = re.compile(
    r"no (?:problem|worries)\b"
    r"|yes, (?:of course|please|i (?:can|will|'d be happy to) (?:help|assist))\b",
    re.IGNORECASE,
)
#: Behind yes or no: the other one, too.
BOTH = re.compile(r"\s?(?:or|and)\s|\s?/|\s(?:yes|no)(?![A-Za-z])(?=\W{0,3}$)", re.IGNORECASE)
#: A first `Yes` or `No`, and the words that take it back.
FIRST = re.compile(r"\W{0,4}(?:yes|no)\b", re.IGNORECASE)
TURN = re.compile(r"\b(?:wait|hold on|actually|on second thought|sorry|i mean|correction)\b", re.I)
#: Yes or no as a sentence or clause of its own.
ALONE_WORD = re.compile(
    r"(?:[.,;:!?\n\u2026-]\s{0,3}|\b(?:is|so)\s)[*_\"]{0,3}(?:(yes)|no)[*_\"]{0,3}\s{0,2}(?=[.,;!\n]|$)",
    re.IGNORECASE,
)
#: `I would not say no.`
NOT_SAID = re.compile(
    r"(?:\bnot|n't|\bcannot|\bnever) (?:\w{1,8} )?(?:say|answer)(?: simply)? \W?(?:yes|no)\b", re.I
)
WAIT = re.compile(r"\b(?:wait|hold on)\b", re.IGNORECASE)
#: A quotation is no answer, unless it is one word.
QUOTED = re.compile(r"\"[^\"]{1,60} [^\"]{1,60}\"")
#: The conclusion of a sentence: `There are no people, so yes, it is empty.`
SO = re.compile(r"[,;]\s(?:so|therefore|thus|hence)\b", re.IGNORECASE)
#: A word that `not` turns into its opposite.
TURNED = re.compile(
    r"(?:\bnot|n't)\s(?:a\s)?(?:true|correct|right|yes)\b|n't (?:true|correct|right)", re.IGNORECASE
)
ALONE = re.compile(r"(?:(?:that|this|it|which)(?: is|'s) )?", re.IGNORECASE)
#: The verb of a denied statement: `The image does not contain a cat.`
NOT_SO = re.compile(
    r"^[^,;:.]{1,80}?\b(?:(?:is|are|was|were|do|does|did|has|have|can) not|(?:is|are|was|were|do"
    r"|does|did|has|have)n't)\b",
    re.IGNORECASE,
)
#: Short replies with neither word.
SHORT_YES = re.compile(
    r"certainly|absolutely|definitely|of course|indeed|有的?|存在"
    r"|(?:it|he|she|this|that) (?:is|does|was|has)|(?:they|these|those) (?:are|do|were)",
    re.IGNORECASE,
)
SHORT_NO = re.compile(
    r"没有|不存在|not (?:really|at all)|(?:absolutely|certainly|definitely|of course|clearly) not",
    re.IGNORECASE,
)
GOLD = {"1": True, "0": False, "yes": True, "no": False, "true": True, "false": False}
GOLD |= {"y": True, "n": False, "是": True, "否": False}


def words_of(plain: str) -> set[bool]:
    """Yes and no, as a sentence states them."""
    if NOT_SAID.search(plain):
        return set()
    if TURNED.search(plain):
        return {False}
    plain = QUOTED.sub("", plain)
    plain = plain[concluded[-1].end() :] if (concluded := list(SO.finditer(plain))) else plain
    return {bool(m.group(1) or m.group(3)) for m in STRICT.finditer(plain)}


def read_yes_no(plain: str, rule: str) -> bool | None:
    """Whether an answer is yes; None where it says neither or both."""
    bare = without_lead_in(plain)
    if UNKNOWN.search(bare):
        return None
    match = WORD.match(bare)
    if match and not BOTH.match(bare[match.end() :]):
        return bool(match.group(1) or match.group(3))
    words = words_of(bare)
    return words.pop() if len(words) == 1 else None


def read_alone(text: str) -> bool | None:
    """A reply of one word or one denied statement: `Correct.`, `It is wrong`."""
    span = whole(text)
    raw = text[span.start : span.end]
    if len(raw) > 120 or len(sentences(raw, 2)) != 1 or raw.endswith("?"):
        return None
    plain = strip_markup(raw)
    lead = ALONE.match(plain)
    word = WORD.fullmatch(plain, lead.end() if lead else 0)
    if word:
        return bool(word.group(1) or word.group(3))
    if SHORT_YES.fullmatch(plain) or SHORT_NO.fullmatch(plain):
        return bool(SHORT_YES.fullmatch(plain))
    known = not UNKNOWN.search(plain) and not words_of(plain)
    return False if known and NOT_SO.match(plain) else None


def find_yes_no(text: str, take: Take) -> Commitment[bool] | None:
    """The yes or no that a reply commits to: explicit, first word, last sentence."""
    explicit = find_explicit(text, take, read_yes_no)
    if explicit is not None:
        return settle(text, explicit, take, read_last_sentence)
    span = first_sentence(text)
    plain = strip_markup(text[span.start : span.end])
    match = STRICT.match(without_lead_in(plain))
    asked = text[span.end : span.end + 1] == "?"
    if asked or UNKNOWN.search(plain) or POLITE.match(plain) or WAIT.search(plain):
        match = None
    if take == "last" and (turned := read_turn(text, span.start)) is not None:
        return turned
    if match and BOTH.match(plain[match.end() :]):
        return None
    if match:
        yes = bool(match.group(1) or match.group(3))
        return Commitment(span.start, span.end, text[span.start : span.end], "lead", yes)
    if (alone := read_alone(text)) is not None:
        return Commitment(span.start, span.end, text[span.start : span.end], "bare", alone)
    return read_last_sentence(text)


def read_turn(text: str, at: int) -> Commitment[bool] | None:
    """The yes or no behind a first one that the reply takes back: `Yes... wait, no`."""
    first = FIRST.match(text, at)
    turn = TURN.search(text, first.end(), first.end() + WINDOW) if first else None
    if turn is None:
        return None
    alone = list(ALONE_WORD.finditer(text, turn.end(), turn.end() + WINDOW))
    if not alone:
        return None
    last = alone[-1]
    start, end = last.start(), last.end()
    return Commitment(start, end, text[start:end], "conclusion", bool(last.group(1)))


def read_last_sentence(text: str) -> Commitment[bool] | None:
    """The yes or no of the last sentence; behind `I am not sure` that of another clause."""
    for span in sentences(text, 1):
        raw = text[span.start : span.end]
        if raw.endswith("?") or is_unreal(raw):
            return None
        unknown = UNKNOWN.search(raw)
        rest = raw[unknown.end() :] if unknown else raw
        clause = NEW_CLAUSE.search(rest) if unknown else None
        if unknown and clause is None:
            return None
        words = words_of(strip_markup(rest[clause.end() :] if clause else rest))
        if len(words) == 1:
            return Commitment(span.start, span.end, raw, "conclusion", words.pop())
    return None


def decide(
    response: str, answer: str, choices: tuple[str, ...], take: Take, math: Mathematics | None
) -> Verdict:
    """The verdict on a reply after `readable`, with one gold answer."""
    gold = GOLD.get(strip_markup(answer).casefold())
    commit = find_yes_no(response, take)
    gold_form = answer if gold is None else "yes" if gold else "no"
    if commit is None or commit.form is None:
        return Verdict(None, False, gold_form=gold_form, reason="the reply says neither yes nor no")
    correct = gold is not None and commit.form == gold
    reason = (
        ""
        if correct
        else "the gold answer is neither yes nor no"
        if gold is None
        else "the opposite"
    )
    form, where = "yes" if commit.form else "no", (commit.start, commit.end)
    return Verdict(commit.text, correct, commit.rule, where, form, gold_form, reason)


@with_gold
def check(
    response: str, answer: str, choices: tuple[str, ...], take: Take, math: Mathematics | None
) -> Verdict:
    """Yes or no: explicit, as the first word, or alone in the last sentence.

    Source: the rules of HallusionBench and MME; a reply with both is no answer.
    """
    return decide(response, answer, choices, take, math)

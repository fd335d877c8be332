r"""`math`: numbers with units, fractions, roots, sets, intervals, equations.

Equal normal forms, then equal exact numbers, then math-verify in a process. Words are no
mathematics.
"""

import re
from dataclasses import dataclass

from vistill.answers.compare import Mathematics, same_number, same_value
from vistill.answers.corrections import settle
from vistill.answers.denials import is_no_statement, is_taken_back
from vistill.answers.extract import (
    Commitment,
    Take,
    find_explicit,
    is_cut_in_box,
    sentences,
    whole,
)
from vistill.answers.normalise import math_form, strip_markup
from vistill.answers.number_words import find_word_numbers
from vistill.answers.reading import (
    LABEL,
    after_negation,
    cut_clause,
    first_values,
    predicate,
    right_side,
    with_gold,
    without_lead_in,
)
from vistill.answers.values import is_mathematical, parse_number, parse_value
from vistill.answers.verdict import Verdict

#: A word between others, which is no function as in `2 log 7`.
WORD_BETWEEN = re.compile(r"\w\s(?!(?:sin|cos|tan|cot|sec|csc|log)\s)\w{3,}\s\w")
NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.^])[-+]?(?:\d{1,3}(?:,\d{3}){1,6}|\d{1,40})(?:\.\d{1,40})?(?:/\d{1,20})?(?![A-Za-z0-9_^])"
)
OPERATOR = re.compile(r"[\^√π*+=<>\\²³]|\d\s?[-/]\s?\d|[A-Za-z]\d|\d[A-Za-z]")
GRID = re.compile(r"\brows?\W{0,6}(\d{1,4})\W{0,12}(?:and\s)?col(?:umn)?s?\W{0,6}(\d{1,4})", re.I)
HEDGE = re.compile(
    r"\b(?:or|between|either|not|never|\w{1,8}n't|at least|at most|than|no|cannot|unknown|to|from"
    r"|per cent of|out of|over|under|above|below|beyond|exceed\w{0,3}|minus|negative|half|third of"
    r"|quarter of|twice|double|triple|thrice|times|square root|cube root|root of|squared|cubed"
    r"|dozens?|doubled|tripled|halved|factorial|suppose|assume|if|unless|maybe|perhaps|doubt|wrong|incorrect)\b"
    r"|[大小多少高低]于|至[少多]|超过|不[到足是]|[万亿倍]|分之|或",
    re.IGNORECASE,
)
#: A reply that asks for something.
REQUEST = re.compile(
    r"^\W{0,4}(?:please|sorry|(?:could|can) you|i(?:'m| am) (?:sorry|unable)"
    r"|i (?:need|would need|cannot|can't))\b",
    re.IGNORECASE,
)
#: A complete last sentence that states a value: `The length of AB is 10.`
STATES = re.compile(
    r"^\W{0,4}(?:the|its|there (?:is|are)|it (?:should|must) be|we (?:get|have|obtain))"
    r"\s[^.\n]{0,200}$",
    re.IGNORECASE,
)
CONDITION = re.compile(
    r"\b(?:if|suppose|assume|given|let|when|where|not|cannot|never|doubt|\w{1,8}n't)\b",
    re.IGNORECASE,
)
#: Words of a sentence.
PROSE = re.compile(r"[A-Za-z]{2,20} [A-Za-z]{1,20}|[\u4e00-\u9fff]{4}")
#: A display at the end of a reply.
DISPLAY = re.compile(r"(?:\\\[|\$\$)([^$\[\]]{1,300}?)(?:\\\]|\$\$)\s{0,9}\.?\s{0,9}$")
#: Words for a sign before a number.
NEGATIVE = re.compile(r"^(?:minus|negative)\s(?=[\d.]|\\frac|\\sqrt)", re.IGNORECASE)
#: A number that a word behind it changes, or that is only a bound.
CHANGED = re.compile(
    r"\bnot quite\b|\d\s(?:squared|cubed|dozens?)\b|\d\s?\+$"
    r"|\((?:wrong|incorrect|false|not (?:right|correct))\)"
    r"|^(?:half|twice|double|triple|thrice|over|under|exceeds|above|below)\b",
    re.IGNORECASE,
)
#: A number that goes on in words: `12 million people`.
SCALED = re.compile(
    r"[-+]?[\d.,]{1,20}\s?(?:hundred|thousand|[mb]illion|trillion|lakh|crore|bn|mn)s?\b", re.I
)
#: A point with its coordinates: `A(2, 3)`.
POINT = re.compile(r"^[A-Z]'?\s?(?=\([^()]{1,60},[^()]{1,60}\)$)")
#: The conclusion of a sentence: `AC² = 169, therefore AC = 13`.
SO = re.compile(r",\s(?:and )?(?:so|therefore|thus|hence)\b,?\s(?=[^\n]{0,80}\d)", re.IGNORECASE)
#: The conclusion of a reason: `Since a length is positive, x = 7`.
SINCE = re.compile(
    r"^\W{0,4}(?:since|because|as)\b[^.\n]{1,160},\s(?:so |then |we (?:get|have) )?"
    r"[A-Za-z\\]{1,12}\s?=\s?[^=]{1,40}$",
    re.IGNORECASE,
)
#: What is asked for, and its value: `The question asks for the median: 8`.
ASKED_FOR = re.compile(
    r"\b(?:asks? for|asked for|need|want|looking for)\b[^.:\n]{1,80}:\s(?=[-\d$\\])"
)
#: What only checks an answer: `so the perimeter is 24, which matches`.
CONFIRMS = re.compile(
    r"\b(?:match\w{0,2}|consistent|confirm\w{0,3}|verif\w{1,4}|as expected)\b", re.I
)
#: Several equations: the right side of the last one is not the answer.
EQUATIONS = re.compile(
    r"=[^=]{1,60}?(?:[,;和或]|\band\b|\bor\b|\\(?:lor|vee|land|wedge)(?![a-z]))\s?"
    r"\\?[A-Za-z∠]{1,9}_?\{?\d?\}?\s?="
)
#: Another number in brackets.
OR_OTHER = re.compile(
    r"\s\((?:or|maybe|perhaps|possibly|alternatively|or maybe|or perhaps),?\s([^()]{1,60})\)$",
    re.IGNORECASE,
)
#: Two forms of one value: `1/4, or 25%`.
TWO_FORMS = re.compile(
    r"([^,;()]{1,60}?),?\s(?:or(?: equivalently)?|which (?:is|equals))\s([^,;()]{1,60})"
)
#: The name of a length, an angle or a variable.
NAME = re.compile(r"(?:\\angle\s?|∠\s?)?(?:[A-Z]{1,4}|[a-z])")
#: The total at the end of a sentence: `6 apples and 2 pears; total 8`.
TOTAL = re.compile(r"[;,]\s(?:so |for |with |in )?(?:a |the )?total(?: is| of|:| =)?\s(?=[-\d$\\])")
PERCENT = re.compile(r"\s?%")
#: The mark of a last line (GSM8K).
HASHES = re.compile(r"#{2,6}\s?(?=\S)")
#: Several numbers: none of them is the answer.
SEVERAL = re.compile(r"\d\s?[|;]\s?[-+]?\d")
CONCLUDES = re.compile(
    r"^#### ?\S"
    r"|^\W{0,4}(?:therefore|thus|hence|so|consequently|in conclusion|the final|in total)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Reading:
    """The readings of one answer: as it is, and without what is around the value."""

    forms: tuple[str, ...]

    def __str__(self) -> str:
        return self.forms[0] if self.forms else ""


def read_math(plain: str, rule: str) -> Reading | None:
    """The readings of an answer as a value; None for a sentence that states none."""
    plain = NEGATIVE.sub("-", after_negation(plain))
    if rule == "bare" and (steps := list(SO.finditer(plain))):
        plain = plain[steps[-1].end() :]
    bare = without_lead_in(plain)
    if rule not in ("box", "tag") and (CHANGED.search(bare) or is_taken_back_number(bare)):
        return None
    if both := same_in_two_forms(bare) or same_in_two_forms(predicate(bare)):
        return Reading(both)
    if SEVERAL.search(bare):
        return Reading((plain,)) if "|" not in bare or rule in ("box", "tag") else None
    stated = cut_clause(bare)
    candidates = [plain, bare, LABEL.sub("", bare), stated, POINT.sub("", stated), grid_size(plain)]
    candidates += first_values(stated)
    if not EQUATIONS.search(stated):
        behind = predicate(stated)
        candidates += [behind, without_lead_in(behind)]
        candidates += [right_side(stated), left_side(stated)]
    forms = [c for c in dict.fromkeys(candidates) if c and is_value(c)]
    hedged = rule == "bare" and (HEDGE.search(stated) or is_no_statement(stated))
    if (hedged and not is_value(plain)) or offers_another(bare):
        return None
    if not forms and (only := only_number(cut_clause(bare))):
        forms = [only]
    if forms:
        return Reading(tuple(forms))
    return Reading((plain,)) if rule in ("box", "tag") else None


def same_in_two_forms(plain: str) -> tuple[str, ...]:
    """The forms of one number: of `1/4, or 25%`, but not of `1/4 or 1/3`; else none."""
    match = TWO_FORMS.fullmatch(plain)
    if match is None:
        return ()
    forms = match.group(1).strip(), match.group(2).strip()
    return forms if same_number(*map(parse_value, forms)) else ()


def offers_another(plain: str) -> bool:
    """Whether another number follows in brackets: `12 (or 13)`, but not `1/2 (or 0.5)`."""
    match = OR_OTHER.search(plain)
    if match is None:
        return False
    before = plain[: match.start()]
    value, other = parse_value(predicate(before) or before), parse_value(match.group(1))
    return same_number(other, value) is False


def left_side(plain: str) -> str:
    """The number before the name that it has: `5` of `5 = AB`; "" if there is none."""
    number, _, name = plain.partition("=")
    named = NAME.fullmatch(name.strip()) and parse_value(number.strip()).number is not None
    return number.strip() if named else ""


def is_taken_back_number(plain: str) -> bool:
    """Whether the clause behind a number takes it back: `12, but that is wrong`."""
    match = NUMBER.match(plain)
    return bool(match) and is_taken_back(plain[match.end() :])


def grid_size(plain: str) -> str:
    """`5,6` for `rows={5} columns={6}` (VLMs are blind); "" for anything else."""
    match = GRID.search(plain)
    return f"{match.group(1)},{match.group(2)}" if match else ""


def is_value(text: str) -> bool:
    """Whether a text is a number with at most a unit, or mathematics."""
    value = parse_value(text)
    if value.number is not None:
        return True
    form = value.form
    return len(form) <= 400 and is_mathematical(form) and not WORD_BETWEEN.search(text)


def only_number(sentence: str) -> str:
    """The only number of a sentence of plain words; "" if it has none, several, or mathematics."""
    if OPERATOR.search(sentence) or HEDGE.search(sentence):
        return ""
    numbers = [(m.start(), m.group(0)) for m in NUMBER.finditer(sentence)]
    if len(numbers) > 1:
        return ""
    words = [(w.start, str(w.number)) for w in find_word_numbers(sentence)]
    if len(numbers) == 1:  # `five (5)`
        value = str(parse_number(numbers[0][1]))
        words = [word for word in words if word[1] != value]
    numbers += [word for word in words if word[1] != "1"]
    if len(numbers) != 1:
        return ""
    start, alone = numbers[0]
    if parse_value(sentence[start:]).number is not None:
        return sentence[start:]
    if SCALED.match(sentence, start):
        return ""
    is_share = PERCENT.match(sentence, start + len(alone)) and sentence[start - 1 : start] != "("
    return f"{alone}%" if is_share else alone


def find_math(text: str, take: Take) -> Commitment[Reading] | None:
    """The value that a reply commits to, and the rule that found it."""
    explicit = find_explicit(text, take, read_math)
    if explicit is not None:
        return settle(text, explicit, take, read_corrected)
    span = whole(text)
    raw = text[span.start : span.end]
    if not raw or is_cut_in_box(text):
        return None
    asks = REQUEST.match(raw) or raw.endswith("?")
    if len(raw) <= 200 and len(sentences(raw, 3)) == 1 and not asks:
        reading = read_math(strip_markup(HASHES.sub("", raw, count=1)), "bare")
        if reading is not None:
            return Commitment(span.start, span.end, raw, "bare", reading)
    return read_conclusion(text)


def read_conclusion(text: str) -> Commitment[Reading] | None:
    """The value at the end of the last sentence, if that sentence draws a conclusion."""
    if displayed := read_display(text) or read_last_line(text):
        return displayed
    for span in sentences(text, 1):
        raw = text[span.start : span.end]
        stop = text[span.end : span.end + 6].lstrip("*_`$) ")
        states = (STATES.match(raw) and stop.startswith(".")) or SINCE.match(raw)
        total = list(TOTAL.finditer(raw)) or list(ASKED_FOR.finditer(raw))
        if not CONCLUDES.match(raw) and not states and not total:
            continue
        plain = strip_markup(raw)
        if CONDITION.search(plain) or is_no_statement(plain):
            continue
        several = EQUATIONS.search(plain)
        value = plain if several else predicate(plain) or right_side(plain)
        if total:
            value = strip_markup(raw[total[-1].end() :])
        if raw.startswith("####"):  # GSM8K
            value = plain.lstrip("# ")
        reading = read_math(value, "conclusion") if value else None
        if reading is not None:
            return Commitment(span.start, span.end, raw, "conclusion", reading)
    return None


def read_corrected(text: str) -> Commitment[Reading] | None:
    """The conclusion behind a correction, also in the last clause: `3*5=15, so the area is 15`."""
    if (concluded := read_conclusion(text)) is not None:
        return concluded
    for span in sentences(text, 1):
        raw = text[span.start : span.end]
        clauses = list(SO.finditer(raw))
        if not clauses or CONFIRMS.search(raw) or CONDITION.search(raw) or is_no_statement(raw):
            return None
        plain = strip_markup(raw[clauses[-1].end() :])
        value = predicate(plain) or right_side(plain)
        reading = read_math(value, "conclusion") if value else None
        if reading is not None:
            return Commitment(span.start, span.end, raw, "conclusion", reading)
    return None


def read_last_line(text: str) -> Commitment[Reading] | None:
    """A value alone on the last line, behind prose: `... so we add.`, a blank line, `42`."""
    end = len(text.rstrip())
    start = max(0, end - 80, text.rfind("\n", 0, end) + 1)
    raw = text[start:end].strip()
    before = text[max(0, start - 400) : start].rstrip()
    line = before.rsplit("\n", 1)[-1].strip(" *_")
    blank = "\n\n" in text[len(text[:start].rstrip()) : start].replace(" ", "")
    value = parse_value(strip_markup(raw))
    if value.number is None or value.label or not PROSE.search(line) or line.endswith("?"):
        return None
    if not blank and not line.endswith((".", ":", "!")):
        return None
    if is_no_statement(line) and line.endswith(":"):
        return None
    reading = read_math(strip_markup(raw), "conclusion")
    return Commitment(start, end, raw, "conclusion", reading) if reading else None


def read_display(text: str) -> Commitment[Reading] | None:
    """The right side of an equation in a display at the end, behind a conclusion and a colon."""
    tail_start = max(0, len(text) - 600)
    match = DISPLAY.search(text, tail_start)
    if match is None:
        return None
    line = text[tail_start : match.start()].rstrip().rsplit("\n", 1)[-1].strip(" *_")
    if not line.endswith(":") or not (CONCLUDES.match(line) or line.endswith("is:")):
        return None
    start, end = match.span(1)
    raw = text[start:end]
    plain = strip_markup(raw)
    reading = read_math(right_side(plain) or plain, "conclusion")
    return Commitment(start, end, raw, "conclusion", reading) if reading else None


def gold_forms(gold: str) -> list[str]:
    """A gold answer as it is, and the side of an equation that a reply may give alone."""
    plain = strip_markup(gold)
    forms = [gold]
    if (
        match := re.match(r"^(?:[A-Za-z\s]{0,20}|[A-Za-z]_?\{?\w?\}?)\s?=\s?(?=\S)", plain)
    ) and plain.count("=") == 1:
        forms.append(plain[match.end() :])
    return forms


def is_same(reading: Reading, gold: str, math: Mathematics | None) -> bool:
    """Whether any reading of an answer equals the gold answer."""
    gold_is_equation = "=" in strip_markup(gold)
    both = gold_is_equation and "=" in reading.forms[0]
    for form in reading.forms:
        if both and "=" not in form:
            continue
        several = EQUATIONS.search(form) and parse_value(strip_markup(gold)).number is not None
        if same_value(form, gold, None if several else math):
            return True
        sides = gold_forms(gold)[1:] if gold_is_equation and not both else []
        if any(same_value(form, side, math) for side in sides):
            return True
    return False


def reading_verdict(
    commit: Commitment[Reading] | None, gold: str, math: Mathematics | None
) -> Verdict:
    """The verdict on the readings of a commitment."""
    gold_form = str(parse_value(strip_markup(gold))) or math_form(strip_markup(gold))
    if commit is None or commit.form is None:
        return Verdict(None, False, gold_form=gold_form, reason="the reply commits to no value")
    correct = is_same(commit.form, gold, math)
    form = str(parse_value(commit.form.forms[0]))
    reason = "" if correct else "another value"
    where = (commit.start, commit.end)
    return Verdict(commit.text, correct, commit.rule, where, form, gold_form, reason)


def decide(
    response: str, answer: str, choices: tuple[str, ...], take: Take, math: Mathematics | None
) -> Verdict:
    """The verdict on a reply after `readable`, with one gold answer."""
    return reading_verdict(find_math(response, take), answer, math)


@with_gold
def check(
    response: str, answer: str, choices: tuple[str, ...], take: Take, math: Mathematics | None
) -> Verdict:
    """Exact numbers with units, and mathematics by math-verify; words are never mathematics.

    Source: math-verify 0.9 (Hugging Face), behind normalised Unicode.
    """
    return decide(response, answer, choices, take, math)

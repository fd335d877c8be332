r"""Find the span of a reply that is its answer: boxes, tags, `answer is`, or a bare short reply.

Each rule scans the reply once, from left to right, with patterns of bounded length.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from vistill.answers.boxes import (
    AND_BOX,
    MOST_MARKS,
    WINDOW,
    Span,
    Take,
    find_boxes,
    is_echo,
    pick_strong,
)
from vistill.answers.characters import lower_case
from vistill.answers.denials import OTHERS, STOP, is_denied_before, is_unreal
from vistill.answers.normalise import MOST_CHARACTERS, strip_markup

Form = TypeVar("Form")

#: Words that may begin a commitment, in lower case. Every alternative begins with a letter, and
#: `\b` stands behind its word: `re` skips to a first letter five times as fast.
MARK = re.compile(
    r"answer|ans(?<=\bans)(?=\s?[:.=])|final(?<=\bfinal)(?=[*_]{0,2}:)"
    r"|solution(?<=\bsolution)(?=[*_]{0,2}:)"
    r"|option|choice|choose|select|conclusion|答案|正确|故选|应选|选"
)
#: `Ans: B`, `**Conclusion:** B`; a heading over a long text is no answer.
SHORT_LABEL = re.compile(r"(?:ans|conclusion)[.*_\s]{0,3}[:=.]", re.IGNORECASE)
MOST_LABELLED = 60
#: `Final: B`, `Solution: 12` on a line of its own.
LABEL_LINE = re.compile(r"(?:final|solution)[*_]{0,2}:[*_ ]{1,4}(?=[^\n]{1,24}(?:\n|$))", re.I)
LINE_BEGIN = re.compile(r"(?:^|\n)[\s*_#>-]{0,6}$")
#: Behind an answer: another one replaces it, `12... actually 13`, `12 → corrected: 13`.
REPLACES = re.compile(
    r"(?:(?:\.{1,3}|\u2026|[,;(-]|\u2014|\u2192|->)\s{0,2}(?:(?:no|wait|sorry|oh|hmm)[,.]?\s{1,2})?"
    r"(?:actually|i mean|make (?:that|it)|correction|corrected(?: to)?|or rather)[,:]?\s{1,3}"
    r"|(?:\.{2,3}|\u2026|[,;]|\u2014)\s{0,2}(?:no|wait, no),\s{1,2}(?:wait,\s{1,2})?"
    r"|,?\sbut\s{1,2}(?=(?:it|that)(?:'s| is)\s))"
    r"(?:it(?:'s| is)\s|that(?:'s| is)\s|the answer is\s)?"
    r"(?=[(\[$*\\]{0,3}(?:-?\d|[A-Z](?![A-Za-z]))\S{0,20}(?:\s[a-z]{1,9})?[.)!]?\s{0,9}(?:\n|$))",
    re.IGNORECASE,
)
#: `{"answer": "B"}`, `{"final_answer": 12}`.
JSON_ANSWER = re.compile(
    r"answer(?:\"\s{0,4}:\s{0,4}(?:\"([^\"\\\n]{1,300})\"|(-?[\d.]{1,40}|true|false)(?=\s{0,9}[,}]))"
    r"|'\s{0,4}:\s{0,4}'([^'\\\n]{1,300})'(?=\s{0,9}[,}]))",
    re.IGNORECASE,
)
#: The end of the key of another answer: `{"wrong_answer": "C"}`.
OTHER_KEY = re.compile(
    r"[\"']\w{0,20}?(?:wrong|incorrect|false|rejected|previous|initial|student|other|old|worst)\w{0,3}$",
    re.IGNORECASE,
)
#: A letter, and the value behind its full stop: `B. 50`.
LONE_LETTER = re.compile(r"[*_]{0,2}[A-Z]")
ITS_VALUE = re.compile(
    r"\.[*_]{0,2} [*_$(]{0,3}-?\d[\d.,/]{0,12}\s?[^\s\d.,;]{0,6}(?=[.*_$)]{0,3}\s{0,3}(?:\n|$))"
)
#: Another option behind the text of the first: `A. 30 or B. 40`.
ANOTHER = re.compile(r"\.\s[^.\n]{1,60}?\s(?:or|and)\s[(\[]?[A-Z][.)\]]\s[^.\n]{1,60}")
#: `Answer - B` on a line of its own.
DASHED = re.compile(r"answer\s?-\s(?=[(\[]?[A-Z\d])", re.IGNORECASE)
#: Between `answer` and its value: `to the question`, `(final)`, then `is` or `:`.
VERB = (
    r"(?:(?<![A-Za-z])(?:is(?=n't)|(?:is|are|was|were|be|would be|should be|must be|will be"
    r"|has to be|can only be|seems to be|appears to be|becomes|comes out to(?: be)?|to be)"
    r"(?![A-Za-z]))|'s(?=\s)|=|:|->|为|是)"
)
DECORATION = r"[*_`\s#]{0,8}"
ANSWER = re.compile(
    r"answers?(?:\s(?:choice|option|letter|value))?(?:\s\([^()\n]{0,30}\))?"
    r"(?:,?\s(?:to|for|of|that|which|in|from|among|we|i)\b[^.:\n=<>]{0,90}?)?"
    rf"(?:,\s\w{{2,12}}(?:\s\w{{1,12}}){{0,2}},)?{DECORATION}\s?(?:{VERB}{DECORATION})(?::\s?)?(?:{VERB}(?=[\s(\\$*])\s?)?",
    re.IGNORECASE,
)
#: `Correct answers:` and a list.
SEVERAL_BEHIND = re.compile(
    r"answers[*_]{0,2}:[*_]{0,2}\s{0,3}\n\s{0,4}[-*\u2022]\s", re.IGNORECASE
)
#: `I'd answer B`.
I_ANSWER = re.compile(
    r"answer\s(?:with\s)?(?:option\s|choice\s)?(?=[(\[*]{0,3}(?:[A-Z](?![A-Za-z'])|-?\d))",
    re.IGNORECASE,
)
I_WOULD = re.compile(r"\bi(?:'d| would|'ll| will)?\s$", re.IGNORECASE)
HEADING = re.compile(r"answer[*_:\s]{0,6}\n", re.IGNORECASE)
CHINESE = re.compile(
    r"(?:答案|正确选项|正确的选项|正确答案)\]?[^\S\n]?[是为:：]{0,3}[\s*]{0,4}"
    r"|(?:故选|应选|选择|选)\s?[:：]?\s?(?=[(\[*]{0,3}[A-Z])"
    r"|选项\s?(?=[(\[]?[A-Z][)\]]?\s?(?:是|为)?(?:正确|对))"
)
CHOICE = re.compile(
    r"(?:option|choice|image|statement)(?:\s(?:for|to|of|that|which|in|from|among|here|given)\b[^.:\n]{0,90}?)?"
    rf"{DECORATION}\s?(?:{VERB}{DECORATION})",
    re.IGNORECASE,
)
CHOOSE = re.compile(
    r"(?:choose|select|pick)s?\s(?:the\s)?(?:option|choice|answer)?\s?[:：]?\s?", re.IGNORECASE
)
#: Before `choose`: the task is repeated.
SOUGHT = re.compile(r"\b(?:for|want|need|know)\s(?:the|our|an)\s$", re.IGNORECASE)
ASKED = re.compile(r"(?<!have )(?<!had )\bto\s$|\bshould\s$", re.IGNORECASE)
BEFORE_CHOICE = re.compile(
    r"\b(?:correct|right|best|appropriate|likely|suitable|accurate|plausible|final|selected|chosen|my|closest|matching|only|the)"
    r"(?:\s(?:answer|multiple))?[\s-]{1,2}$",
    re.IGNORECASE,
)
#: Before a mark: what follows is a question, a condition, or still to be found.
DOUBT = re.compile(
    r"\b(?:need|(?:to|then|can|could|will|would|please) (?:find|get|obtain|determine"
    r"|reach|compute|express)"
    r"|if|whether|suppose|assum\w{1,4}|unless|is|check that|verify that|not|had|in case"
    r"|what|how|maybe,?|perhaps,?|not (?:sure|certain),?)\s(?:that\s)?"
    r"(?:the\s|my\s|our\s|your\s)?(?:(?:correct|right|final|best|possible)\s){0,2}$",
    re.IGNORECASE,
)
#: Characters that a match of `DOUBT` has at most.
LONGEST_DOUBT = 50
#: A stop that ends a sentence: not that of `Mr.`, `i.e.`, `U.S.` and `3.5`. It begins with the
#: characters, and looks behind from them: `re` skips to one of them ten times as fast.
SENTENCE_END = re.compile(
    r"[.!?\n](?:(?<=[?\n])|(?<!\.[A-Z]\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bMrs\.)"
    r"(?<!\bvs\.)(?<!\bi\.e\.)(?<!\be\.g\.)(?!(?<=\b[A-Z]\.) [a-z]{2})"
    r"(?=[\s*<\"\u4e00-\u9fff]|$|\\[)\]]|\$(?:\s|$)))"
)
#: An item of a list that is an option; `- 5` is a number.
ITEM = re.compile(r"- [(\[]?[A-Z](?![A-Za-z])")
DISPLAY = re.compile(r"\s{0,4}(?:\\\[|\$\$)")
DISPLAY_END = re.compile(r"\\\]|\$\$")
#: Sentences that are read as an answer.
MOST_READ = 24


@dataclass(frozen=True)
class Commitment(Generic[Form]):
    """A span of a reply that states its answer, and how a checker reads it."""

    start: int
    end: int
    text: str
    rule: str
    form: Form | None
    """What the checker read; None if the span is no answer of the kind that it knows."""


def sentence_span(text: str, at: int, rule: str) -> Span:
    """The sentence that begins at a position, after spaces, decoration and line breaks."""
    start = at
    limit = min(len(text), at + 40)
    while start < limit and (text[start].isspace() or text[start] in "*_`#:>"):
        start += 1
    if ITEM.match(text, start):
        start += 2
    if display := DISPLAY.match(text, start):
        end = DISPLAY_END.search(text, display.end(), display.end() + WINDOW)
        return Span(display.end(), end.start() if end else display.end(), rule)
    end = SENTENCE_END.search(text, start, start + WINDOW)
    stop = end.start() if end else min(len(text), start + WINDOW)
    if end and LONE_LETTER.fullmatch(text, start, stop) and (own := ITS_VALUE.match(text, stop)):
        return Span(start, own.end(), rule)
    if end and LONE_LETTER.fullmatch(text, start, stop) and (more := ANOTHER.match(text, stop)):
        return Span(start, more.end(), rule)
    if end and end.group(0) == "?":
        return Span(start, start, rule)
    return Span(start, stop, rule)


def mark_at(text: str, match: "re.Match[str]") -> Span | None:
    """The sentence behind a mark such as `answer is`; None if the word is no mark here."""
    at, word = match.start(), match.group(0)
    before = text[max(0, at - 80) : at]
    if word == "answer":
        return json_answer(text, at) or answer_at(text, at, before)
    if word in ("ans", "conclusion") and (label := SHORT_LABEL.match(text, at)):
        span = sentence_span(text, label.end(), "phrase")
        return span if span.end - span.start <= MOST_LABELLED else None
    if word in ("final", "solution"):
        label = LABEL_LINE.match(text, at) if LINE_BEGIN.search(before) else None
        return sentence_span(text, label.end(), "phrase") if label else None
    if word in ("option", "choice", "conclusion"):
        full = CHOICE.match(text, at) if BEFORE_CHOICE.search(before) else None
        rule = "option"
    elif word in ("choose", "select"):
        others = ASKED.search(before) or OTHERS.search(before)
        full, rule = (None if others else CHOOSE.match(text, at)), "option"
    else:
        full, rule = CHINESE.match(text, at), "phrase"
    return sentence_span(text, full.end(), rule) if full else None


def is_doubted_at(text: str, at: int) -> bool:
    """Whether the words before a mark deny or doubt it, or its sentence is about another case."""
    if DOUBT.search(text, max(0, at - LONGEST_DOUBT), at):
        return True
    return is_denied_before(text[max(0, at - 80) : at]) or is_unreal_at(text, at)


def is_unreal_at(text: str, at: int) -> bool:
    """Whether the sentence at a position says what would hold in another case."""
    near = text[max(0, at - 160) : at + 160].lower()
    if not any(word in near for word in ("would", "if ", "when ")):
        return False
    before = STOP.split(text[max(0, at - 160) : at])[-1]
    return is_unreal(before + STOP.split(text[at : at + 160], maxsplit=1)[0])


def json_answer(text: str, at: int) -> Span | None:
    """The value of `"answer"` in a JSON object."""
    match = JSON_ANSWER.match(text, at)
    if match is None or OTHER_KEY.search(text[max(0, at - 40) : at]):
        return None
    return Span(*match.span(match.lastindex or 0), "line")


def answer_at(  # noqa: PLR0911 - one return per form
    text: str, at: int, before: str
) -> Span | None:
    """The sentence behind `answer is`, `Answer:`, or a heading `Answer`."""
    if text[at + 6 : at + 8] == ", " and SOUGHT.search(before):
        return None
    if before[-1:].isalpha() or before.endswith(("<", "_", "</")):
        return None
    full = ANSWER.match(text, at)
    if full is None and I_WOULD.search(before) and (full := I_ANSWER.match(text, at)):
        return sentence_span(text, full.end(), "phrase")
    if full is not None and SEVERAL_BEHIND.match(text, at):
        return None
    if full is not None:
        rule = "line" if ":" in full.group(0)[-6:] else "phrase"
        return sentence_span(text, full.end(), rule)
    heading = HEADING.match(text, at) or DASHED.match(text, at)
    line = before.rsplit("\n", 1)[-1].lower()
    if heading is None or re.sub(r"final|correct|the|[#*_\s]", "", line):
        return None
    return sentence_span(text, heading.end(), "phrase")


def find_phrases(text: str, take: Take) -> Iterator[Span]:
    """The sentences behind `answer is` and the like, from the side that counts."""
    marks = list(MARK.finditer(lower_case(text)))
    ordered = marks[:MOST_MARKS] if take == "first" else marks[-MOST_MARKS:][::-1]
    for match in ordered:
        span = mark_at(text, match)
        if span is not None and span.end > span.start and not is_doubted_at(text, match.start()):
            yield span.of(text)


def find_explicit(
    text: str,
    take: Take,
    read: Callable[[str, str], Form | None],
    is_listing: Callable[[int], bool] = lambda at: False,
) -> Commitment[Form] | None:
    r"""The first or last explicit commitment: a box, a tag, or a sentence behind `answer is`.

    A box or a tag commits whatever it holds. A sentence commits if the checker can read it; in a
    reply with boxes or tags only one behind `Answer:`.

    Args:
        text: a reply after `readable`.
        take: the first (VA-OPD) or the last (the usual harnesses).
        read: what the checker reads from an answer without wrappers, and the rule.
        is_listing: whether a list of all options begins at a position.
    """
    best = pick_strong(text, take)
    read_before: set[str] = set()
    for span in find_phrases(text, take):
        if best is not None and (span.start > best.start) == (take == "first"):
            break
        if best is not None and span.start < best.end and best.start <= span.end:
            continue
        if best is not None and span.rule != "line":
            continue
        if "\\boxed" in text[span.start : span.end]:  # its closing brace was cut off
            continue
        if is_echo(text, span) or is_listing(span.start):
            continue
        raw = text[span.start : span.end]
        if raw in read_before:
            continue
        read_before.add(raw)
        if len(read_before) > MOST_READ:
            break
        if (commit := read_phrase(text, span, take, read)) is not None:
            return commit
    if best is None:
        return None
    content = text[best.start : best.end]
    if len(content) > MOST_CHARACTERS:
        return Commitment(best.start, best.end, content[:MOST_CHARACTERS], best.rule, None)
    return Commitment(
        best.start,
        best.end,
        content,
        best.rule,
        read(strip_markup(AND_BOX.sub(", ", content)), best.rule),
    )


def replaced_by(text: str, span: Span) -> Span | None:
    """What replaces an answer behind it in the same line: 13 of `12... actually 13`."""
    match = REPLACES.search(text, span.start, span.end + 60)
    if match is None or "\n" in text[span.start : match.end()]:
        return None
    return sentence_span(text, match.end(), span.rule).of(text)


def read_phrase(
    text: str, span: Span, take: Take, read: Callable[[str, str], Form | None]
) -> Commitment[Form] | None:
    """The answer of a sentence, or what replaces it in the same line if the last one counts."""
    later = replaced_by(text, span) if take == "last" else None
    for part in [later, span] if later else [span]:
        content = text[part.start : part.end]
        form = read(strip_markup(content), part.rule)
        if form is not None:
            return Commitment(part.start, part.end, content, part.rule, form)
    return None


def is_cut_in_box(text: str) -> bool:
    r"""Whether the last `\boxed{` has no closing brace: the reply was cut off in its answer."""
    at = text.rfind("\\boxed")
    return at >= 0 and not find_boxes(text[at:])


def whole(text: str) -> Span:
    """The whole reply without spaces at its ends."""
    start = len(text) - len(text.lstrip())
    return Span(start, max(start, len(text.rstrip())), "bare")


def sentences(text: str, most: int) -> list[Span]:
    """Up to `most` sentences of the end of a text, last one first."""
    start = max(0, len(text) - 4000)
    spans: list[Span] = []
    at = start
    for end in SENTENCE_END.finditer(text, start):
        spans.append(Span(at, end.start() + (end.group(0) == "?"), "sentence"))
        at = end.end()
    spans.append(Span(at, len(text), "sentence"))
    trimmed = (span.of(text) for span in reversed(spans))
    return list(islice((span for span in trimmed if span.end > span.start), most))


def first_sentence(text: str) -> Span:
    """The first sentence of a text."""
    span = whole(text)
    end = SENTENCE_END.search(text, span.start, span.start + WINDOW)
    return Span(span.start, end.start() if end else min(span.end, span.start + WINDOW), "lead")

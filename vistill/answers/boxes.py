r"""Find the boxes and tags of a reply: `\boxed{4}`, `<answer>4</answer>`."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from vistill.answers.normalise import strip_markup

Take = Literal["first", "last"]
BRACE = re.compile(r"\\(?:(?P<box>boxed|fbox|framebox)\s{0,4}\{|.)|\{|\}", re.DOTALL)
BARE_BOX = re.compile(r"\\boxed\s{1,4}(?:\\text\s?)?([A-Za-z0-9]{1,20})(?![A-Za-z0-9{])")
TAG = re.compile(
    r"<(?:(?P<close>/?)(?:answer|final_answer|final answer|conclusion)>"
    r"|(?P<begin>\|begin_of_box\|>)|(?P<end>\|end_of_box\|>))",
    re.IGNORECASE,
)
OR_BOX = re.compile(
    r"(?:\}|</\w{1,12}>)[\s$)\\,*]{0,6}(?:or|或)[\s$(\\*]{0,6}(?:[a-z]{0,8}box(?:ed)?\s{0,4}\{|<\w{1,12}>)",
    re.IGNORECASE,
)
#: Between two boxes that are one answer: `\boxed{2} and \boxed{3}`.
AND_BOX = re.compile(
    r"\}[\s$)\\,*]{0,6}(?:,|and|、|和|与)[\s$(\\*]{0,6}boxed\s{0,4}\{", re.IGNORECASE
)
#: A sign or factor before a box, and a power, factor or digit behind it: the value is another.
SIGN_BEFORE = re.compile(r"(?<![A-Za-z\d\-)])-$|(?<![A-Za-z\d.])-?(?:\d{1,9}|\d{1,9}\.\d{1,9})$")
GOES_ON = re.compile(
    r"\s?\^\s?\{?\s?-?[\da-z]{1,3}\}?|\d{1,9}|[-+*/]\d{1,9}|\.\d{1,9}|\\(?:pi|sqrt|times|cdot|frac)"
)
BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s{0,4}\{$")
#: Behind a box: it is the value of another person, or wrong.
NOT_MINE = re.compile(
    r"^[})\]$\\\s*]{0,6}(?:,?\s?(?:but|which|however,?|though)\s(?:(?:this|that|it)\s)?)?"
    r"(?:(?:is|was|would be|may be|might be|looks|seems)\s[^.;\n]{0,60}?"
    r"\b(?:naive|wrong|incorrect|false|tempting|trap|mistake|mistaken|erroneous)\b"
    r"|(?:(?:is|was) not|isn't|wasn't|(?:cannot|can't|can not) be)"
    r"\s(?:(?:the )?(?:right|correct|final|true) (?:answer|value|result|solution|option|one)"
    r"|the answer"
    r"|(?:quite )?(?:right|correct|true|valid)(?! (?:angle|triangle|side|for|if|when|only)))\b)",
    re.IGNORECASE,
)
#: Before a box: it is denied.
DENIED_BOX = re.compile(
    r"(?:\bnot|n't|\bcannot|\bnever|不[是为]|不等于)(?: (?:be|equal(?: to)?))?[\s$(\\*:]{0,6}$",
    re.IGNORECASE,
)
#: A number or letter that its own box calls wrong.
DENIED_INSIDE = re.compile(
    r"[-\d.,/]{1,20}[\s\\{]{0,4}(?:text\{)?\s{0,2}(?:is|would be) "
    r"(?:wrong|incorrect|not (?:right|correct|the answer))\W{0,6}"
)
#: Words of the instruction that a reply repeats instead of an answer.
ECHO = frozenset(
    [
        "answer",
        "your answer",
        "final answer",
        "your final answer",
        "the answer",
        "the final answer",
        "letter",
        "option",
        "...",
        "your answer here",
        "answer here",
        "number",
        "value",
        "x.x",
        "ans",
        "your choice",
        "option letter",
    ]
)
#: Marks that are looked at, from the side that counts.
MOST_MARKS = 1000
#: Characters of a sentence that are read as an answer.
WINDOW = 300


class Span(NamedTuple):
    """A part of a reply, with the rule that found it."""

    start: int
    end: int
    rule: str

    def of(self, text: str) -> "Span":
        """The span without spaces and decoration at its ends."""
        start, end = self.start, self.end
        while start < end and (text[start].isspace() or text[start] in "*_`:"):
            start += 1
        while end > start and (text[end - 1].isspace() or text[end - 1] in "*_`"):
            end -= 1
        return Span(start, end, self.rule)


def find_boxes(text: str) -> list[Span]:
    r"""The contents of all balanced `\boxed{...}` that are in no other box, in order."""
    if "\\boxed" not in text and "\\fbox" not in text and "\\framebox" not in text:
        return []
    stack: list[int] = []
    boxes: list[Span] = []
    for token in BRACE.finditer(text, text.find("\\")):
        mark = token.group()
        if token.group("box"):
            stack.append(token.end())
        elif mark == "{":
            stack.append(-1)
        elif mark == "}" and stack:
            start = stack.pop()
            if start >= 0:
                while boxes and boxes[-1].start > start:
                    boxes.pop()
                boxes.append(Span(start, token.start(), "box"))
    boxes += [Span(m.start(1), m.end(1), "box") for m in BARE_BOX.finditer(text)]
    return sorted(boxes, key=lambda span: span.start)


def find_tags(text: str) -> list[Span]:
    """The contents of `<answer>...</answer>` and of GLM's box tokens; the last may lack its end."""
    spans: list[Span] = []
    if "<" not in text:
        return spans
    start = -1
    for token in TAG.finditer(text):
        if token.group("begin") or (token.group("close") == "" and not token.group("end")):
            start = token.end()
        elif start >= 0:
            spans.append(Span(start, token.start(), "tag"))
            start = -1
    if start >= 0 and len(text) - start <= WINDOW:
        spans.append(Span(start, len(text), "tag"))
    return spans


def find_strong(text: str) -> list[Span]:
    """Boxes and tags in order; a box inside a tag belongs to the tag."""
    tags = find_tags(text)
    boxes = find_boxes(text)
    inside: list[Span] = []
    at = 0
    for box in boxes:
        while at < len(tags) and tags[at].end <= box.start:
            at += 1
        if not (at < len(tags) and tags[at].start <= box.start):
            inside.append(box)
    return sorted([*tags, *inside], key=lambda span: span.start)


def pick_strong(text: str, take: Take) -> Span | None:
    """The first or last box or tag that is not empty and does not repeat the instruction."""
    spans = find_strong(text)
    ordered = spans if take == "first" else spans[::-1]
    for i, span in enumerate(ordered[:MOST_MARKS]):
        trimmed = span.of(text)
        if trimmed.end > trimmed.start and not is_echo(text, trimmed):
            if is_denied_box(text, span):
                continue
            if (wider := widen_box(text, span)) != span:
                return wider
            return join_boxes(text, trimmed, ordered[i + 1 : i + 10])
    return None


def is_denied_box(text: str, span: Span) -> bool:
    """Whether the words around a box or tag, or inside it, call its answer wrong."""
    if NOT_MINE.match(text[span.end : span.end + 120]):
        return True
    if span.rule != "box":
        return False
    opening = BOX.search(text[max(0, span.start - 60) : span.start])
    at = max(0, span.start - 60) + opening.start() if opening else span.start
    content = text[span.start : span.end]
    return bool(
        DENIED_BOX.search(text[max(0, at - 40) : at])
        or (len(content) <= 80 and DENIED_INSIDE.fullmatch(content))
    )


def widen_box(text: str, box: Span) -> Span:
    r"""A box with a number and the sign, factor or power that touches it: `-\boxed{12}`."""
    if box.rule != "box" or not any(map(str.isdigit, text[box.start : box.end])):
        return box
    at = max(0, box.start - 60)
    opening = BOX.search(text[at : box.start])
    if opening is None:
        return box
    at += opening.start()
    before = SIGN_BEFORE.search(text[max(0, at - 20) : at])
    behind = GOES_ON.match(text, box.end + 1)
    if before is None and behind is None:
        return box
    start = at - len(before.group(0)) if before else at
    return Span(start, behind.end() if behind else box.end + 1, box.rule)


def join_boxes(text: str, chosen: Span, others: Sequence[Span]) -> Span | None:
    """A box with those that `and` joins to it; None where `or` stands between it and the next."""
    span = chosen
    for other in others:
        one, two = sorted((span, other))
        between = text[one.end : two.start]
        if len(between) > 40:
            break
        if OR_BOX.fullmatch(between):
            return None
        if not AND_BOX.fullmatch(between):
            break
        span = Span(one.start, two.end, span.rule)
    return span


def is_echo(text: str, span: Span) -> bool:
    """Whether a span repeats the instruction (`your answer`) instead of an answer."""
    if span.end - span.start > 60:
        return False
    plain = strip_markup(text[span.start : span.end]).casefold().strip("[]<>()")
    return not plain.strip("_ .?") or plain in ECHO

"""Read option letters: `B`, `(B)`, `B. 40`, `Option B`, `A, C`, `AC`. An article is no letter."""

import re
from dataclasses import dataclass

#: Option letters where the number of options is unknown.
MOST_LETTERS = 10
LEAD = re.compile(
    r"^(?:assistant:\s?)?(?:both\s)?(?:(?:therefore|thus|hence|so|then|clearly|likely|probably|definitely|simply|actually|indeed"
    r"|only|also|most likely|therefore it|i think|i believe)[, ]\s?)?"
    r"(?:(?:it|this|that|which) (?:is|would be|must be|should be|has to be)\s)?(?:the\s)?"
    r"(?:(?:correct|right|best|final|following|given)\s)?(?:(?:answer|ans(?=[.:])|option|choice|letter|statement"
    r"|选项|答案|选)[s.]?\s?(?:is|are)?\s?[:：]?\s?)?",
    re.IGNORECASE,
)
#: Words before a letter that make it a letter: also in lower case.
NAMES_OPTION = re.compile(r"(?:option|choice|letter|选项|选)s?\s?[:：]?\s?$", re.IGNORECASE)
MARKED = re.compile(r"[(\[{<]\s?\\?([A-Za-z])\s?[)\]}>]")
BARE = re.compile(r"([A-Z])(?![A-Za-z0-9'_^])")
CLOSED = re.compile(r"([A-Za-z])(?:[).\]:](?![A-Za-z])|、(?!\s?[A-Za-z]))")
#: A set of letters: `(A, C)`, `{A, C}`.
GROUP = re.compile(r"\\?[({\[]\s?[A-Za-z]\s?(?:[,;、&]\s?[A-Za-z]\s?){1,9}\\?[)}\]]")
LOWER_GROUP = re.compile(r"[a-j](?:\s?[,;、]\s?[a-j]){1,9}")
RUN = re.compile(r"[A-Z]{2,10}")
SEPARATOR = re.compile(
    r"\s?(?:,\s?(?:and|or)\b|[,;、/|&+]|\b(?:and|or)\b|和|或|以及|还是选?)\s?"
    r"(?:possibly |maybe |perhaps )?"
    r"(?:(?:option|choice)s?\s)?",
    re.IGNORECASE,
)
#: Two letters that are compared, not chosen: `A and B are similar`.
JOINED = re.compile(
    r"\s?(?:\b(?:and|or|vs\.?)\b|[/|&])\s?(?:option\s)?[(\[]?[A-Z](?![A-Za-z])", re.IGNORECASE
)
#: `B - blue`; `A - B` is a difference.
DASH_TEXT = re.compile(r"\s-{1,2}\s(?=[A-Za-z]{2}|\d)")
DASH = re.compile(r"^[-:=]{1,2}\s")
OR = re.compile(r"\bor\b|/|[|]|或|还是", re.IGNORECASE)
#: `B选项`: the noun behind a letter.
NOUN_BEHIND = re.compile(r"^(?:选项|项)(?!是)")
#: What may follow a bare letter that stands for an option.
AFTER = re.compile(
    r"^\s?(?:$|[.,;:!)\]\n\-(\"']|\d|\\|\$|and not\b|not\b|but\b|rather\b|because\b|since\b|as\b"
    r"|for\b|instead\b|due\b|based\b|where\b|with\b|which\b"
    r"|is (?:the )?(?:correct|right|best|most|true)|is (?:the )?answer|因为|是?正确|选项"
    r"|而(?:不是|非))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Letters:
    """Option letters that a text names, and the text behind them."""

    letters: frozenset[str]
    rest: str
    marked: bool
    """Whether the first letter has a bracket or a dot, so that it cannot be an article."""
    hedged: bool = False
    """Whether `or` stands between two of them."""


def in_range(letter: str, num_options: int) -> bool:
    """Whether a letter can name an option."""
    return 0 <= ord(letter.upper()) - ord("A") < (num_options or MOST_LETTERS)


def parse_letters(text: str, num_options: int) -> Letters | None:
    """Read the letters at the beginning of an answer without wrappers; None if there are none.

    Args:
        text: an answer after `strip_markup`.
        num_options: number of options; 0 if unknown.
    """
    lead = LEAD.match(text)
    start = lead.end() if lead else 0
    named = bool(NAMES_OPTION.search(text[:start]))
    body = text[start:].strip()
    if LOWER_GROUP.fullmatch(body):
        body = body.upper()
    if GROUP.fullmatch(body):
        body = body.strip("\\(){}[] ")
    first = read_item(body, num_options, single=len(body) == 1 or named)
    if first is None:
        return read_run(body, num_options)
    letters, at, marked = first
    group, hedged = {letters}, False
    while separator := separator_at(body, at, marked, num_options):
        item = read_item(body[separator.end() :], num_options, single=False)
        if item is None:
            break
        group.add(item[0])
        hedged = hedged or bool(OR.search(separator.group(0)))
        at = separator.end() + item[1]
    if JOINED.match(body, at):
        return None
    rest = DASH.sub("", body[at:].strip())
    marked = marked or bool(DASH_TEXT.match(body, at))
    if NOUN_BEHIND.match(rest):
        rest, marked = NOUN_BEHIND.sub("", rest).strip(), True
    if len(group) == 1 and not marked and not named and not stands_alone(letters, rest):
        return read_run(body, num_options)
    return Letters(frozenset(group), rest, marked or named, hedged)


def separator_at(body: str, at: int, marked: bool, num_options: int) -> "re.Match[str] | None":
    """What separates two letters, if another letter follows."""
    match = SEPARATOR.match(body, at)
    if match is None and (body[at : at + 1] == " " or marked) and body[at:].strip():
        spaced = re.match(r"\s{0,2}", body[at:])
        rest = body[at:].strip()
        only_letters = all(len(w) == 1 and w.isupper() for w in rest.split()) and not marked
        if spaced and (only_letters or MARKED.match(rest)):
            match = re.compile(r"\s{0,2}").match(body, at)
    if match is None:
        return None
    rest = body[match.end() :]
    item = read_item(rest, num_options, single=False)
    if item is None:
        return None
    after = rest[item[1] :]
    # `A, B is wrong` and `A, I think` go on with another sentence.
    if (
        not item[2]
        and after.strip()
        and not re.match(
            r"\s?(?:[,;、/&+.)]|and\b|or\b|和|或"
            r"|are (?:both |all )?(?:the )?(?:correct|right|true)\b|都?是?(?:正确|对))",
            after,
        )
    ):
        return None
    return match


def read_item(body: str, num_options: int, single: bool) -> tuple[str, int, bool] | None:
    """A letter at the beginning: itself, where it ends, and whether it is marked."""
    match = MARKED.match(body)
    if match and in_range(match.group(1), num_options):
        return match.group(1).upper(), match.end(), True
    match = CLOSED.match(body)
    if match and in_range(match.group(1), num_options):
        end = match.end()
        if match.group(1).isupper() or body[end : end + 1] in ("", " "):
            return match.group(1).upper(), end, True
    match = BARE.match(body)
    if match and in_range(match.group(1), num_options):
        return match.group(1), 1, False
    alone = single and re.match(r"[A-Za-z](?![A-Za-z0-9])", body)
    return (body[0].upper(), 1, False) if alone and in_range(body[0], num_options) else None


def read_run(body: str, num_options: int) -> Letters | None:
    """Several letters without separators: `AC`."""
    match = RUN.fullmatch(body)
    if not match or len(set(body)) != len(body) or list(body) != sorted(body):
        return None
    if not all(in_range(letter, num_options) for letter in body):
        return None
    return Letters(frozenset(body), "", marked=False)


def stands_alone(letter: str, rest: str) -> bool:
    """Whether a bare letter with this text behind it is an option, and no article or name."""
    return bool(AFTER.match(rest)) if rest else True

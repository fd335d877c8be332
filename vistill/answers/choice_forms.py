"""Forms of replies to questions with options: turns, verdicts per option, yes and no as options."""

import re

from vistill.answers.checkers.yes_no import UNKNOWN, find_yes_no
from vistill.answers.choice_reader import ChoiceReader
from vistill.answers.corrections import WINDOW
from vistill.answers.denials import IFS, is_unreal
from vistill.answers.extract import Commitment, Span, Take, first_sentence, sentences
from vistill.answers.letters import in_range, parse_letters
from vistill.answers.normalise import strip_markup

#: A sentence behind an answer that turns to another option: `However, ..., so D is correct`.
TURNS = re.compile(r"^\W{0,4}(?:however|but|yet|though)\b", re.IGNORECASE)
ENDS_IN_OPTION = re.compile(
    r"[,;]\s(?:and )?(?:so|therefore|thus|hence"
    r"|(?:which|that) (?:corresponds to|matches|means|is)),?"
    r"\s(?:it(?:'s| is| must be| should be)\s|the (?:correct |right )?(?:answer|option|choice)"
    r" (?:is|must be|should be)\s)?(?:option\s|choice\s)?[(\[*]{0,3}([A-Z])[)\]*]{0,3}"
    r"(?:\s(?:is|must be|should be) (?:the )?(?:correct|right)(?: answer| option| choice| one)?)?"
    r"\W{0,3}$"
)
#: The verdict on one option in a list: `- B: correct`.
OPTION_VERDICT = re.compile(
    r"\W{0,6}(?:option\s)?[(\[]?([A-Z])[)\]]?[*_]{0,2}\s?[:.)-][*_]{0,2}\s{0,3}"
    r"(?:(yes|true|correct|right|[\u2713\u2714\u2705])|no|false|incorrect|wrong|not correct"
    r"|[\u2717\u2718\u274c])\W{0,4}",
    re.IGNORECASE,
)
#: A letter and its text on two lines.
TWO_LINES = re.compile(r"([(\[*]{0,3}[A-Z][)\]*.:]{0,4})\s{0,3}\n\s{0,4}([^\n]{1,40})")
#: A row of a table: its cells are a letter and a verdict.
TABLE_ROW = re.compile(r"\s{0,4}\|\s{0,9}[*_]{0,2}([A-Z])[*_]{0,2}\s{0,9}\|([^|\n]{1,40})\|\s{0,4}")
YES = {True: "yes", False: "no"}
VERDICT_WORDS = frozenset(["yes", "no", "true", "false", "correct", "incorrect", "right", "wrong"])


def commitment(text: str, span: Span, letters: frozenset[str]) -> Commitment[frozenset[str]]:
    """A commitment to letters."""
    return Commitment(span.start, span.end, text[span.start : span.end], span.rule, letters)


def read_special(
    text: str, span: Span, take: Take, reader: ChoiceReader
) -> Commitment[frozenset[str]] | None:
    """A reply in a form of its own: a verdict per option, two lines, or yes and no as options.

    Letters that are empty say that the reply names no option.
    """
    raw = text[span.start : span.end]
    if judged := judged_letters(raw, reader):
        return commitment(text, span, judged)
    two = TWO_LINES.fullmatch(raw)
    if two and reader.read(strip_markup(f"{two.group(1)} {two.group(2)}"), "bare") == frozenset():
        return commitment(text, span, frozenset())
    if sorted(reader.options.forms) != ["no", "yes"]:
        return None
    if parse_letters(strip_markup(raw[:200].split("\n", 1)[0]), 2) or reader.mentions(raw[-4000:]):
        return None
    says = find_yes_no(text, take)
    if says is None:
        first = first_sentence(text)
        unknown = UNKNOWN.search(text[first.start : first.end])
        return commitment(text, span, frozenset()) if unknown else None
    own = Span(says.start, says.end, says.rule)
    return commitment(
        text, own, reader.letters_of([reader.options.forms.index(YES[bool(says.form)])])
    )


def judged_letters(raw: str, reader: ChoiceReader) -> frozenset[str]:
    """The only option that a list of verdicts on all options calls right; else empty."""
    lines = [line for line in raw[:2000].split("\n") if line.strip()]
    if rows := [row for line in lines if (row := TABLE_ROW.fullmatch(line))]:
        lines = [f"{row.group(1)}: {row.group(2).strip()}" for row in rows]
        raw = "\n".join(lines)
    if not 2 <= len(lines) == len(reader.options) or len(raw) > 60 * len(lines):
        return frozenset()
    if any(form in VERDICT_WORDS for form in reader.options.forms):
        return frozenset()
    verdicts = [OPTION_VERDICT.fullmatch(line) for line in lines]
    letters = {v.group(1).upper() for v in verdicts if v}
    right = [v.group(1).upper() for v in verdicts if v and v.group(2)]
    every = letters == {reader.options.letter(i) for i in range(len(lines))}
    return frozenset(right if every and len(right) == 1 else "")


def read_turn(text: str, at: int, reader: ChoiceReader) -> Commitment[frozenset[str]] | None:
    """The option that a sentence behind an answer turns to: `However, ..., so D is correct`."""
    for span in sentences(text[at : at + WINDOW], 12):
        raw = text[at + span.start : at + span.end]
        if TURNS.match(raw) and (letters := ends_in_option(raw, reader)):
            return commitment(text, Span(at + span.start, at + span.end, "conclusion"), letters)
    return None


def ends_in_option(raw: str, reader: ChoiceReader) -> frozenset[str]:
    """The option that ends a sentence as its conclusion: `..., so D is correct`; else empty."""
    match = ENDS_IN_OPTION.search(raw)
    if match is None or IFS.search(raw) or is_unreal(raw):
        return frozenset()
    return frozenset(match.group(1) if in_range(match.group(1), len(reader.options)) else "")

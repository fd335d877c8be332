"""The options of a row, the letters that its gold answer names, and the option an answer names."""

import re
from dataclasses import dataclass
from functools import lru_cache

from vistill.answers.compare import Mathematics, same_mathematics, same_number
from vistill.answers.denials import is_denied_text_before, is_taken_back
from vistill.answers.letters import MARKED, Letters, parse_letters
from vistill.answers.normalise import fold_case, math_form, strip_markup, text_form
from vistill.answers.values import parse_value

LABEL = re.compile(r"^\s{0,3}[(\[]?([A-Za-z])(?:[)\].:、,]|\s-(?=\s))\s{0,3}(?=\S)")
#: `A 30`: a label only if every option has one.
SPACED_LABEL = re.compile(r"^\s{0,3}([A-Z])\s{1,3}(?=\S)")
#: A label inside a list of options.
LABELLED = re.compile(r"(?:^|[,;]\s?(?:and\s)?|\sand\s|\s)[(\[]?([A-Z])[)\].:]\s{0,3}(?=\S)")
INDEX = re.compile(r"\d{1,2}")
QUESTION = re.compile(r"[^.!?]{0,80}\?")
#: Words before a number that make it a bound, or another number.
BOUND = re.compile(
    r"\b(?:(?:less|more|greater|fewer|smaller|larger|higher|lower|other) than|at least|at most"
    r"|out of|\d of|over|under|above|below|exceed(?:s|ing)?|up to|half(?: of)?|twice|double|triple"
    r"|times|minus|negative|between(?: [^\s,]{1,12} and)?|from(?: [^\s,]{1,12} to)?)\s(?:the )?$"
)
#: Behind the text of an option: it is a part of the answer only.
AND_MORE = re.compile(r"\s(?:and|or|then)\s")
#: Behind a number: it is another one, such as `60^2` and `20% of 50`.
CHANGED = re.compile(
    r"\s?\^|\s(?:squared|cubed|of (?=\d)|out of|or more|or less|times|plus|minus|dozen)"
)
#: An option that only stands for its letter.
STAND_IN = re.compile(
    r"^\(?(?:shown|see (?:the )?(?:image|figure|picture)|image|figure)?\)?\s?", re.IGNORECASE
)


@dataclass(frozen=True)
class Options:
    """The options of a row without their own labels."""

    texts: tuple[str, ...]
    forms: tuple[str, ...]
    """Normal forms of the texts."""
    only_letters: bool
    """Whether the options show nothing but their letters, or there are none."""

    def __len__(self) -> int:
        return len(self.texts)

    def longest(self) -> int:
        """Characters of the longest option."""
        return max((len(text) for text in self.texts), default=0)

    def letter(self, index: int) -> str:
        """The letter of an option; options after Z have a number."""
        return chr(ord("A") + index) if index < 26 else f"#{index + 1}"

    def by_text(self, form: str) -> list[int]:
        """The options whose text has this normal form."""
        return [i for i, own in enumerate(self.forms) if own == form and form]


def read_labels(
    choices: tuple[str, ...], pattern: "re.Pattern[str]"
) -> tuple[list["re.Match[str] | None"], bool]:
    """The labels of options, and whether each option has its own letter."""
    labels = [pattern.match(choice) for choice in choices]
    own = [label and label.group(1).upper() == chr(ord("A") + i) for i, label in enumerate(labels)]
    return labels, bool(choices) and all(own[:26])


@lru_cache(maxsize=4096)
def read_options(choices: tuple[str, ...]) -> Options:
    """The options of a row; `A. 30`, `B. 40` loses its labels."""
    labels, labelled = read_labels(choices, LABEL)
    if not labelled and len(choices) > 1:
        labels, labelled = read_labels(choices, SPACED_LABEL)
    texts = tuple(
        choice[label.end() :] if labelled and label else choice
        for choice, label in zip(choices, labels, strict=True)
    )
    forms = tuple(text_form(text) for text in texts)
    only = all(
        re.sub(r"[()\s.]", "", STAND_IN.sub("", form)) in ("", chr(ord("a") + i))
        for i, form in enumerate(forms[:26])
    )
    return Options(texts, forms, only)


def read_labelled(plain: str, options: Options) -> frozenset[str] | None:
    """The letters of `A. 11, C. 33`: at least two options with their labels and texts.

    None if a text is not that of its option, or if all options are listed.
    """
    marks = list(LABELLED.finditer(plain))[: len(options) + 1]
    if not 2 <= len(marks) < max(len(options), 3) or marks[0].start() > 0:
        return None
    letters: set[str] = set()
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        text = plain[mark.end() : following.start() if following else len(plain)]
        index = ord(mark.group(1)) - ord("A")
        if index >= len(options) or text_form(text) != options.forms[index]:
            return None
        letters.add(mark.group(1))
    return frozenset(letters) if len(letters) == len(marks) else None


@lru_cache(maxsize=4096)
def gold_letters(  # noqa: PLR0911 - one return per form
    gold: str, options: Options
) -> frozenset[str]:
    """The letters that a gold answer names: by letter, by `B. 40`, by text, by value, by index.

    A letter outside the options is the text of an option, or nothing.
    """
    plain = strip_markup(gold)
    form = text_form(gold)
    letters = parse_letters(plain, len(options))
    if len(plain) == 1 and letters:
        return letters.letters
    named = options.by_text(form)
    if len(named) == 1:
        return frozenset({options.letter(named[0])})
    if labelled := read_labelled(plain, options):
        return labelled
    if letters and is_gold_form(letters, options):
        return letters.letters
    same = [i for i in range(len(options)) if same_option(plain, options.texts[i], None)]
    if len(same) == 1:
        return frozenset({options.letter(same[0])})
    if INDEX.fullmatch(plain) and int(plain) < len(options):
        return frozenset({options.letter(int(plain))})
    return frozenset()


def is_gold_form(letters: Letters, options: Options) -> bool:
    """Whether letters with a text behind them are a gold answer: `B. 40` with option B `40`."""
    if not letters.rest or not len(options) or len(letters.letters) > 1:
        return not letters.rest
    own = options.forms[ord(min(letters.letters)) - ord("A")]
    return letters.marked or text_form(letters.rest) == own


def same_option(answer: str, option: str, math: Mathematics | None) -> bool:
    """Whether an answer has the value of an option; a missing unit is no difference."""
    value, other = parse_value(answer), parse_value(strip_markup(option))
    decided = same_number(value, other)
    if decided is not None:
        no_unit = not value.unit and not value.label and value.number == other.number
        return (decided and not (value.unit and not other.unit and other.label)) or no_unit
    if fold_case(value.form) == fold_case(other.form) and value.form:
        return not value.unit or not other.unit or value.unit == other.unit
    if value.unit and other.unit and value.unit != other.unit:
        return False
    return same_mathematics(value, other, math)


def option_of(answer: str, options: Options, math: Mathematics | None) -> list[int]:
    """The options that an answer names by text or by value; one is a commitment.

    Args:
        answer: an answer after `strip_markup`.
        options: of the row.
        math: compares expressions; None compares text and numbers.
    """
    form = text_form(answer)
    named = options.by_text(form)
    if named:
        return named
    value = parse_value(answer)
    exact = [
        i
        for i, text in enumerate(options.texts)
        if (other := parse_value(strip_markup(text))).number is not None
        and other.number == value.number
        and other.unit == value.unit
    ]
    if exact:
        return exact
    return [i for i, text in enumerate(options.texts) if same_option(answer, text, math)]


def option_in(text: str, options: Options) -> list[int]:
    """The options whose text occurs in a sentence as whole words; longer ones hide shorter."""
    form = f" {text_form(text)} "
    hits: list[tuple[int, int, int]] = []
    for i, own in enumerate(options.forms):
        if len(own) < 2 and not own.isdigit():
            continue
        at = form.find(own)
        while at >= 0:
            end = at + len(own)
            if is_whole(form, at, end) and not is_part_of_number(form, own, at):
                hits.append((at, end, i))
            at = form.find(own, at + 1)
    kept = [
        (end, i)
        for at, end, i in hits
        if not any(a <= at and end <= b and (a, b) != (at, end) for a, b, _ in hits)
        and not is_denied_text(form, at, end)
    ]
    named = sorted({i for _, i in kept})
    partial = len(named) == 1 and all(AND_MORE.match(form, end) for end, _ in kept)
    return [] if partial else named


def is_whole(form: str, at: int, end: int) -> bool:
    """Whether whole words stand at a position; Chinese words have no spaces between them."""
    return all(
        not form[outer : outer + 1].isalnum() or "\u4e00" <= form[inner] <= "\u9fff"
        for outer, inner in ((at - 1, at), (end, end - 1))
    )


def is_part_of_number(form: str, own: str, at: int) -> bool:
    """Whether a number at a position goes on to either side: 30 in `30.5` or `30-60-90`."""
    end = at + len(own)
    if own[:1].isdigit() and form[at - 1] in ".,-/^":
        return True
    goes_on = form[end : end + 1] in tuple(".,-/") and form[end + 1 : end + 2].isdigit()
    changed = bool(CHANGED.match(form, end)) and own[:1].isdigit()
    return changed or (own[-1:].isdigit() and goes_on)


def is_denied_text(form: str, at: int, end: int) -> bool:
    """Whether a sentence denies the option at a position, or asks for it."""
    before = form[max(0, at - 60) : at]
    if is_denied_text_before(before):
        return True
    if form[at].isdigit() and BOUND.search(before):
        return True
    return bool(QUESTION.match(form, end) or is_taken_back(form[end : end + 40]))


def labelled_options(text: str, options: Options) -> list[str]:
    """The letters of a text that their own options follow: `B. 40`, `C. 60`."""
    letters = []
    for mark in LABELLED.finditer(text[:2000]):
        index = ord(mark.group(1)) - ord("A")
        own = options.forms[index] if index < len(options) else ""
        if own and text_form(text[mark.end() : mark.end() + len(own) + 20]).startswith(own):
            letters.append(mark.group(1))
    return letters


def marked_letters(text: str, num_options: int) -> list[str]:
    """The letters in brackets of a text, in order."""
    return [
        m.group(1)
        for m in MARKED.finditer(text)
        if m.group(1).isupper() and (not num_options or ord(m.group(1)) - 65 < num_options)
    ]


def forms_of(options: Options) -> str:
    """The options for messages."""
    return ", ".join(f"{options.letter(i)} {math_form(t)}" for i, t in enumerate(options.texts))

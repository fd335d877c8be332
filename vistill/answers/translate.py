"""Replies in other languages, with English phrases around their answers and decimal points.

The rules of answers read English and Chinese. A reply in another language gets the English
phrases of its table (`languages/`) in place of its own; options and gold answers get the same ones,
so that their words stay equal. Positions lead back to the reply as it was written.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from vistill.answers.characters import lower_case
from vistill.answers.languages import LANGUAGES, Language

#: Characters at both ends of a reply that tell its language.
WINDOW = 200
#: Characters of a reply whose language one word tells.
SHORT = 40
#: Characters at both ends of a reply that are translated.
MOST_TRANSLATED = 5_000
WORD = re.compile(r"[^\W\d_]+")
ENGLISH = frozenset(
    [
        *["the", "is", "of", "and", "answer", "to", "that", "this", "are", "in", "with", "we"],
        *["so", "it", "not", "for", "on", "has", "which", "was", "be", "from", "there"],
    ]
)
CLUES = {lang.name: frozenset(lang.clues.split()) for lang in LANGUAGES if not lang.script}
ANSWER_WORDS = {
    lang.name: frozenset(lang.answer_words.split()) for lang in LANGUAGES if not lang.script
}
ANY_CLUE = frozenset().union(*CLUES.values(), *ANSWER_WORDS.values())
LONG_ANSWER_WORDS = [w for words in ANSWER_WORDS.values() for w in sorted(words) if len(w) > 4]
FIRST_WORD = re.compile(r"\W{0,4}([^\W\d_]{1,20})")
SCRIPTS = [(lang, re.compile(f"[{lang.script}]", re.I)) for lang in LANGUAGES if lang.script]
LATIN_LETTER = re.compile("[a-z]", re.IGNORECASE)
#: `not` before a stop is an answer: `No, la imagen ...`.
NOT_ALONE = re.compile(r"\bnot(?=[,.;!]|\s{0,9}$)")
#: `Manche würden sagen, die Antwort ...`
COMMA_BEHIND_THAT = re.compile(r"\bthat, (?=the )")
#: More than one space, and spaces before a stop.
EXTRA_SPACES = re.compile(r" {1,9}(?= |[,.?!])")
SPACES = re.compile(r"[,\s]{1,4}")

# Numbers in languages with a decimal comma. What may not stand before a number is looked at behind
# its first digit: `re` skips to a digit.
#: `1.234,5` and `1 234,5`.
GROUPS_AND_COMMA = re.compile(r"\d(?<![\d.,].)\d{0,2}(?:[. ]\d{3}){1,6},\d{1,20}(?!\d|,\d)")
#: `1.234.567`
SEVERAL_GROUPS = re.compile(r"\d(?<![\d.,].)\d{0,2}(?:\.\d{3}){2,6}(?!\d|[.,]\d)")
#: `1,234`, `3{,}125`: no groups.
THREE_DECIMALS = re.compile(r"\d(?<![\d.,].)\d{0,2}(?:,|\{,\})\d{3}(?!\d|[.,]\d)")
DECIMALS = re.compile(r"\d(?<![\d.,].)\d{0,8}(?:,|\{,\})\d{1,20}(?!\d|,\d)")
#: `1.234`: groups, or three decimals in the English way.
ONE_GROUP = re.compile(r"[1-9](?<![\d.,].)\d{0,2}\.\d{3}(?!\d|[.,]\d)")
COMMA = re.compile(r"\{?,\}?")


@dataclass(frozen=True)
class Translation:
    """A text with other words in it, and where its characters stand in the original."""

    text: str
    places: Sequence[int]
    """For each character, and for the end, its position in the original."""

    def replace(
        self, pattern: "re.Pattern[str]", write: Callable[["re.Match[str]"], str], by: str = ""
    ) -> "Translation":
        """With what a function writes in place of the matches of a pattern.

        Args:
            pattern: what is replaced.
            write: the replacement of a match.
            by: the text in lower case if the pattern needs it; as long as the text.
        """
        parts: list[str] = []
        places: list[int] = []
        at = 0
        for match in pattern.finditer(by or self.text):
            written = write(match)
            start, end = match.span()
            parts += [self.text[at:start], written]
            places += self.places[at:start]
            places += [self.places[start]] * len(written)
            at = end
        if not at:
            return self
        return Translation("".join([*parts, self.text[at:]]), [*places, *self.places[at:]])


def original(text: str, start: int = 0) -> Translation:
    """A text as its own translation; it begins at a position of the whole one."""
    return Translation(text, range(start, start + len(text) + 1))


def join(parts: Sequence[Translation]) -> Translation:
    """Translations of the parts of a text, in order, as one."""
    places: list[int] = []
    for part in parts:
        places += part.places[:-1]
    places.append(parts[-1].places[-1])
    return Translation("".join(part.text for part in parts), places)


def begins_in_other_language(lower: str) -> bool:
    """Whether a text without frequent words of another language has its word for the answer."""
    first = FIRST_WORD.match(lower)
    if first and first.group(1) in ANY_CLUE:
        return True
    return any(map(lower.__contains__, LONG_ANSWER_WORDS))


def find_language(text: str) -> Language | None:
    """The language of a reply that has a table; None for English, Chinese and all others."""
    text = text.strip()
    ends = text if len(text) <= 2 * WINDOW else f"{text[:WINDOW]} {text[-WINDOW:]}"
    if not ends.isascii():
        latin = len(LATIN_LETTER.findall(ends))
        for language, script in SCRIPTS:
            # formulas and letters of options are Latin in every language
            if 4 * len(script.findall(ends)) > latin:
                return language
    lower = ends.lower()
    is_long = len(lower) > 3 * SHORT
    if is_long and ANY_CLUE.isdisjoint(lower.split()) and not begins_in_other_language(lower):
        return None
    words = set(WORD.findall(lower))
    if words.isdisjoint(ANY_CLUE):
        return None
    scores = {
        name: len(words & clues) + 2 * len(words & ANSWER_WORDS[name])
        for name, clues in CLUES.items()
    }
    best = max(scores, key=scores.__getitem__)
    least = 1 if len(ends) <= SHORT else 2
    if scores[best] < least or scores[best] <= len(words & ENGLISH):
        return None
    return next(language for language in LANGUAGES if language.name == best)


@cache
def phrase_pattern(language: Language) -> tuple["re.Pattern[str]", dict[str, str]]:
    """What finds the phrases of a language in lower case, and their English words."""
    english: dict[str, str] = {}
    by_first: dict[str, list[str]] = defaultdict(list)
    for words, phrases in language.phrases.items():
        for phrase in phrases.split("|"):
            english[SPACES.sub(" ", phrase)] = words
    for phrase in sorted(english, key=len, reverse=True):
        rest = r",?\s{1,2}".join(re.escape(word) for word in phrase[1:].split(" "))
        by_first[phrase[0]].append(rest)
    either = "|".join(f"{re.escape(c)}(?:{'|'.join(rests)})" for c, rests in by_first.items())
    if language.has_spaces:
        either = rf"(?<![\w\\])(?:{either})(?:(?<=')|(?!\w))"
    return re.compile(either), english


@cache
def other_patterns(language: Language) -> tuple[tuple["re.Pattern[str]", str], ...]:
    """The patterns of a language and their replacements."""
    return tuple((re.compile(pattern), written) for pattern, written in language.patterns)


def translate(text: str, language: Language) -> Translation:
    """A text with the English phrases of a language in place of its own.

    The middle of a text of more than 10,000 characters stays as it is.
    """
    end = len(text.rstrip())
    start = len(text) - len(text.lstrip())
    if end - start <= 2 * MOST_TRANSLATED:
        return translate_part(original(text), language)
    first, last = start + MOST_TRANSLATED, end - MOST_TRANSLATED
    begin = translate_part(original(text[:first]), language)
    tail = translate_part(original(text[last:], last), language)
    return join([begin, original(text[first:last], first), tail])


def translate_part(text: Translation, language: Language) -> Translation:
    """A part of a text with the English phrases of a language in place of its own."""
    pattern, english = phrase_pattern(language)

    def words_of(match: "re.Match[str]") -> str:
        words = english[SPACES.sub(" ", match.group(0))]
        return words if language.has_spaces else f" {words} "

    result = text.replace(pattern, words_of, by=lower_case(text.text))
    for other, written in other_patterns(language):
        result = result.replace(other, lambda m, w=written: m.expand(w))
    if not language.has_spaces:
        return result.replace(EXTRA_SPACES, lambda match: "")
    result = result.replace(COMMA_BEHIND_THAT, lambda match: "that ")
    return result.replace(NOT_ALONE, lambda match: "no")


def is_pair(match: "re.Match[str]") -> bool:
    r"""Whether brackets stand around two numbers: `(3,5)` and `\{3,5\}`, not `\boxed{3,5}`."""
    text, start, end = match.string, match.start(), match.end()
    start -= text[start - 1 : start] == "-"
    before, behind = text[max(0, start - 2) : start], text[end : end + 1]
    return (before[-1:] in ("(", "[") and behind in (")", "]")) or before == "\\{"


def with_point(match: "re.Match[str]") -> str:
    """A number with a point for its decimal comma and without groups."""
    if is_pair(match):
        return match.group(0)
    whole, _, decimals = COMMA.sub(",", match.group(0)).partition(",")
    return re.sub("[. ]", "", whole) + (f".{decimals}" if decimals else "")


def without_points(match: "re.Match[str]") -> str:
    """A number without the points between its groups."""
    return match.group(0).replace(".", "")


def plain_numbers(text: Translation, language: Language) -> Translation:
    """A text with those numbers of a language as English ones that can mean nothing else."""
    if not language.decimal_comma:
        return text
    text = text.replace(GROUPS_AND_COMMA, with_point).replace(SEVERAL_GROUPS, without_points)
    return text if language.comma_groups else text.replace(THREE_DECIMALS, with_point)


def readings(text: str, language: Language) -> Iterator[Translation]:
    """The translation of a reply, with its numbers in each way that they can be read.

    `3,5` is two numbers, or 3.5; `1.234` is a decimal in the English way, or 1234.
    """
    translated = translate(text, language)
    result = plain_numbers(translated, language)
    yield result
    if not language.decimal_comma:
        return
    decimals = result.replace(DECIMALS, with_point)
    if decimals.text != result.text:
        yield decimals
    if language.point_groups and ONE_GROUP.search(translated.text):
        joined = plain_numbers(translated.replace(ONE_GROUP, without_points), language)
        yield joined.replace(DECIMALS, with_point)


def gold_readings(gold: str, language: Language) -> list[str]:
    """A gold answer with the English phrases of a language, its numbers also as in the language."""
    result = translate(gold, language)
    return list(dict.fromkeys([gold, result.text, plain_numbers(result, language).text]))


def translate_option(option: str, language: Language) -> str:
    """An option with the English phrases of a language; an English `no` stays one."""
    is_english = option.strip().casefold() in ("yes", "no")
    return option if is_english else translate(option, language).text

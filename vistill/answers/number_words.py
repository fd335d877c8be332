"""Numbers in English words: `twenty-one`, `one hundred and five`, `two thirds`."""

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

ONES = {
    word: value
    for value, word in enumerate(
        ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], 1
    )
}
TEENS = {
    word: value
    for value, word in enumerate(
        [
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ],
        10,
    )
}
TENS = {
    word: 10 * value
    for value, word in enumerate(
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], 2
    )
}
#: Words of one number below 100.
SMALL = {"zero": 0, **ONES, **TEENS, **TENS}
GROUPS = {"thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SHORT_GROUPS = {"lakh": 10**5, "lakhs": 10**5, "crore": 10**7, "crores": 10**7}
SHORT_GROUPS |= {"mn": 10**6, "bn": 10**9}
SCALES = {"dozen": 12, "hundred": 100, **GROUPS, **SHORT_GROUPS, "万": 10**4, "亿": 10**8}
SCALES |= {"億": 10**8, "만": 10**4, "억": 10**8}
PARTS = {
    **dict.fromkeys(["half", "halves"], 2),
    **dict.fromkeys(["third", "thirds"], 3),
    **dict.fromkeys(["quarter", "quarters", "fourth", "fourths"], 4),
    **{
        form: value
        for value, word in enumerate(["fifth", "sixth", "seventh", "eighth", "ninth", "tenth"], 5)
        for form in (word, word + "s")
    },
    **dict.fromkeys(["hundredth", "hundredths"], 100),
}
TEN = "|".join(TENS)
ONE = "|".join(ONES)
BELOW_100 = rf"(?:(?:{TEN})(?:[\s-](?:{ONE})\b)?|{'|'.join(TEENS)}|{ONE}|zero)\b"
BELOW_1000 = (
    rf"(?:(?:(?:{ONE}|an?)[\s-])?hundred\b(?:(?:\sand\s|[\s-]){BELOW_100})?|{BELOW_100}"
    r"|an?(?=[\s-](?:thousand|million)\b))"
)
#: A whole number below 10^9.
WHOLE = (
    rf"(?:{BELOW_1000}[\s-]million\b(?:,?\s(?:and\s)?)?)?(?:{BELOW_1000}[\s-]thousand\b"
    rf"(?:,?\s(?:and\s)?|-)?)?(?:{BELOW_1000})?"
)
#: A number that no hyphen ties to another word: not `one` in `one-way`.
NUMBER = re.compile(
    rf"(?<![a-z\d-])(?=[a-z]{{1,9}})(?P<whole>{WHOLE})"
    rf"(?:(?<=[a-z])[\s-](?P<part>{'|'.join(PARTS)})\b)?"
    r"(?![a-z]|-[a-z]|[\s-](?:hundred|thousand|million|billion|trillion|dozen|point)\b)",
    re.IGNORECASE,
)
A_PART = re.compile(rf"an?[\s-](?P<part>{'|'.join(PARTS)})", re.IGNORECASE)
SIGN = re.compile(r"(?:minus|negative)\s", re.IGNORECASE)
WORDS = re.compile(r"[a-z]{1,9}")


class WordNumber(NamedTuple):
    """A number in words, and where it stands."""

    start: int
    end: int
    number: Fraction


def find_word_numbers(text: str) -> Iterator[WordNumber]:
    """The numbers in words of a text, in order."""
    for match in NUMBER.finditer(text):
        words = [
            w for w in WORDS.findall(match.group("whole").lower()) if w not in ("and", "a", "an")
        ]
        if not words:
            continue
        number = Fraction(add_words(words), PARTS.get((match.group("part") or "").lower(), 1))
        end = match.start() + len(match.group(0).rstrip(" ,-"))
        yield WordNumber(match.start(), end, number)


def add_words(words: list[str]) -> int:
    """The number of words without `and`: `two`, `thousand`, `three`, `hundred`."""
    total = below = 0
    for word in words:
        if word in GROUPS:
            total += (below or 1) * GROUPS[word]
            below = 0
        elif word == "hundred":
            below = (below or 1) * 100
        else:
            below += SMALL[word]
    return total + below


def parse_word_number(text: str) -> Fraction | None:
    """The number that a text is, in words; None if it is none."""
    if sign := SIGN.match(text):
        number = parse_word_number(text[sign.end() :]) if not SIGN.match(text, sign.end()) else None
        return None if number is None else -number
    if match := A_PART.fullmatch(text):
        return Fraction(1, PARTS[match.group("part").lower()])
    first = next(find_word_numbers(text), None)
    return first.number if first and (first.start, first.end) == (0, len(text)) else None

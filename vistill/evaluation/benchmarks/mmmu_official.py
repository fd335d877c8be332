"""MMMU's own rule: the last letter or option text of a reply, or its key phrases and numbers.

It has errors (a letter of the prose counts; `cannot be (A)` chooses A), so the benchmark's accuracy
is judged by `auto` and this rule is reported next to it. The authors choose an option at random for
a reply without one; here such a reply is wrong. Source: evaluation of
github.com/MMMU-Benchmark/MMMU.
"""

import re
from collections.abc import Iterator, Sequence

from vistill.answers.extract import Take
from vistill.answers.math_process import MathJudge
from vistill.answers.verdict import Verdict
from vistill.evaluation.benchmarks.benchmark import BenchmarkRow

#: Removed from both ends of a reply, one after the other, each as often as it occurs.
ENDS = ",.!?;:'"
#: A reply of more words than this may name an option by its text.
WORDS = 5
#: What stands before an answer; the text behind the last one that leaves least is a key phrase.
INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
#: Counts in the last line only.
EQUALS = "="
NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
DECIMALS = 2


def chosen_letter(reply: str, options: Sequence[str]) -> str:
    """The letter of the option that a reply names last; empty if it names none."""
    text = reply
    for end in ENDS:
        text = text.strip(end)
    text = f" {text} "
    letters = [chr(ord("A") + i) for i in range(len(options))]
    for form in ("({})", " {} "):
        if last := last_of(text, letters, [form.format(letter) for letter in letters]):
            return last
    if len(text.split()) <= WORDS:
        return ""
    return last_of(text.lower(), letters, [option.lower() for option in options])


def last_of(text: str, letters: Sequence[str], forms: Sequence[str]) -> str:
    """The letter whose form begins last in the text, of equal places the first; or empty."""
    places = [text.rfind(form) for form in forms]
    place = max(places, default=-1)
    return letters[places.index(place)] if place >= 0 else ""


def key_phrases(reply: str) -> list[str]:
    """What stands behind an indicator, per line; the whole reply if there is none.

    The authors mean sentences, but look for capital letters after removing them.
    """
    text = reply.strip().strip(".").lower()
    lines = text.split("\n")
    phrases = []
    for i, line in enumerate(lines):
        indicators = (*INDICATORS, EQUALS) if i == len(lines) - 1 else INDICATORS
        tails = [line.split(word)[-1].strip() for word in indicators if word in line]
        shortest = ""
        for tail in tails:
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in tuple(ENDS):
            phrases.append(shortest)
    return phrases or [text]


def normalised(text: str) -> Iterator[str | float]:
    """A number at two decimals, else the words; one letter only next to a blank."""
    words = text.strip()
    try:
        yield round(float(words.replace(",", "")), DECIMALS)
    except ValueError:
        words = words.lower()
        yield from (f" {words}", f"{words} ") if len(words) == 1 else (words,)


def values_of(reply: str) -> list[str | float]:
    """The key phrases of a reply and the numbers in them."""
    phrases = key_phrases(reply)
    numbers = [n for phrase in phrases for form in NUMBERS for n in form.findall(phrase)]
    return [value for text in (*phrases, *numbers) for value in normalised(text)]


def is_open_answer(reply: str, golds: Sequence[str]) -> bool:
    """Whether a gold answer occurs in a key phrase, or is one of the numbers."""
    wanted = [value for gold in golds for value in normalised(gold)]
    words = [gold for gold in wanted if isinstance(gold, str)]
    return any(
        any(gold in value for gold in words) if isinstance(value, str) else value in wanted
        for value in values_of(reply)
    )


def judge(reply: str, row: BenchmarkRow, take: Take, math: MathJudge) -> Verdict:
    """The letter of a question with options, else a phrase or number, whatever is to be taken."""
    golds = (row.answer,) if isinstance(row.answer, str) else tuple(row.answer)
    if row.choices:
        answer = chosen_letter(reply, row.choices)
        right = answer in golds
    else:
        answer = " | ".join(key_phrases(reply))
        right = is_open_answer(reply, golds)
    reason = "" if right else "another answer" if answer else "no answer"
    gold = " | ".join(golds)
    return Verdict(answer or None, right, "official", None, answer, gold, reason, "official")

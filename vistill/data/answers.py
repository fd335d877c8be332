"""Find the answer that a response commits to, and decide whether it is correct.

Never uses `eval`. A response without an answer that can be parsed is wrong and counted.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from vistill.data.math_judge import MathJudge

Take = Literal["first", "last"]

THINK = re.compile(r"<think>.*?</think>", re.S)
ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.S)
#: `Answer: X`, `the answer is X`; X runs to the end of the line or sentence.
ANSWER_LINE = re.compile(r"\banswer(?:\s+is)?\s*:?\s*([^\n]+)", re.I)
#: Several letters: `A, C`, `A and C`, one per line.
LETTERS = re.compile(r"\(?[A-J]\)?(?:(?:\s*,\s*|\s+and\s+|\s*\n\s*)\(?[A-J]\)?)*")
LETTER = re.compile(r"(?<![A-Za-z\\])\(?([A-J])\)?(?![A-Za-z'])")
NUMBER = re.compile(r"^[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:/\d+)?$")
UNITS = re.compile(
    r"(?:\\text\{[^{}]*\}|\\mathrm\{[^{}]*\}|\\(?:,|;|!| )|cm|mm|km|m|°"
    r"|\^\\circ|\^\{\\circ\}|\\%|%|\\degree)+$"
)


@dataclass(frozen=True)
class Verdict:
    """The answer extracted from a response, and whether it is correct."""

    extracted: str | None
    correct: bool

    @property
    def unparsed(self) -> bool:
        """Whether the response commits to no answer."""
        return self.extracted is None


def find_boxes(text: str) -> list[tuple[int, str]]:
    r"""Position and content of every balanced `\boxed{...}`."""
    boxes = []
    for match in re.finditer(r"\\boxed\s*\{", text):
        depth, start = 1, match.end()
        for i in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                boxes.append((match.start(), text[start:i].strip()))
                break
    return boxes


def find_committed_answer(response: str, take: Take, has_choices: bool) -> str | None:
    """Find the first or last committed answer: a box, an answer tag, `Answer: X`.

    For choices, also a letter if the response names only one. VA-OPD takes the first answer, the
    usual harnesses take the last.
    """
    text = THINK.sub("", response)
    candidates = find_boxes(text) + [
        (m.start(), m.group(1).strip()) for m in ANSWER_TAG.finditer(text)
    ]
    candidates += [
        (m.start(), m.group(1).strip().rstrip(".").strip())
        for m in ANSWER_LINE.finditer(text)
        if m.group(1).strip() and "\\boxed" not in m.group(1)
    ]
    candidates.sort(key=lambda item: item[0])
    if candidates:
        return candidates[0 if take == "first" else -1][1]
    letters = LETTER.findall(text) if has_choices else []
    return letters[0] if len(set(letters)) == 1 else None


def parse_letters(text: str) -> frozenset[str]:
    """Parse the option letters that an answer names: `B`, `(B)`, `A, C`."""
    bare = text.strip().strip("$.()[]{} ")
    if LETTERS.fullmatch(bare):
        return frozenset(re.findall(r"[A-J]", bare))
    match = re.match(r"^\(?([A-J])[).:\s]", bare + " ")
    return frozenset(match.group(1)) if match else frozenset()


def normalize_answer(text: str) -> str:
    r"""Normalize for comparison: no dollars, spaces, units, final dots; `\dfrac` is `\frac`."""
    out = text.strip().strip("$").strip()
    out = (
        re.sub(r"\\(?:left|right|displaystyle)", "", out)
        .replace("\\dfrac", "\\frac")
        .replace("\\tfrac", "\\frac")
    )
    out = (
        re.sub(r"\\text\{\s*([A-Za-z ]+)\s*\}", r"\1", out)
        if re.fullmatch(r"\\text\{[^}]*\}", out)
        else out
    )
    out = UNITS.sub("", out.replace(" ", "")).rstrip(".")
    return out.lower()


def parse_fraction(text: str) -> Fraction | None:
    """Parse an exact number; None if the text is not a number."""
    bare = normalize_answer(text)
    if not bare or not NUMBER.match(bare) or bare in {".", "+", "-"}:
        return None
    try:
        return Fraction(bare.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def is_letter_row(answer: str, choices: tuple[str, ...]) -> bool:
    """Whether the row asks for a letter: it has choices and its gold answer names letters."""
    return bool(choices) and LETTERS.fullmatch(answer.strip()) is not None


def judge_answer(
    response: str,
    answer: str,
    choices: tuple[str, ...] = (),
    take: Take = "first",
    math: MathJudge | None = None,
) -> Verdict:
    """Compare a response with the gold answer.

    With choices: the letter, or the text of exactly one option. Otherwise: normal form, exact
    number, then math-verify in a separate process with a time limit.
    """
    extracted = find_committed_answer(response, take, bool(choices))
    if extracted is None:
        return Verdict(None, correct=False)
    if is_letter_row(answer, choices):
        return Verdict(extracted, chosen_letters(extracted, choices) == parse_letters(answer))
    if choices:
        letters = chosen_letters(extracted, choices)
        texts = [
            choices[ord(letter) - ord("A")]
            for letter in letters
            if ord(letter) - ord("A") < len(choices)
        ]
        if len(texts) == 1 and normalize_answer(texts[0]) == normalize_answer(answer):
            return Verdict(extracted, correct=True)
    return Verdict(extracted, is_same_value(extracted, answer, math))


def chosen_letters(extracted: str, choices: tuple[str, ...]) -> frozenset[str]:
    """The letters an answer names, or the letter of the one option whose text it gives."""
    letters = parse_letters(extracted)
    if letters:
        return letters
    same = [
        chr(ord("A") + i)
        for i, choice in enumerate(choices)
        if normalize_answer(choice) == normalize_answer(extracted)
    ]
    return frozenset(same) if len(same) == 1 else frozenset()


def is_same_value(extracted: str, gold: str, math: MathJudge | None) -> bool:
    """Whether two answers are equal: in normal form, as exact numbers, or as mathematics."""
    if normalize_answer(extracted) == normalize_answer(gold) and normalize_answer(gold):
        return True
    number, gold_number = parse_fraction(extracted), parse_fraction(gold)
    if number is not None and gold_number is not None:
        return number == gold_number
    if gold_number is not None and not any(c.isdigit() for c in extracted):
        return False
    return math is not None and math.equal(gold, extracted)


def gold_response(answer: str) -> str:
    """A response that commits to the gold answer, to test the checker."""
    return f"The answer is \\boxed{{{answer}}}."

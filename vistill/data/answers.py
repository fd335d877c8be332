"""Answers: what a response committed to, and whether it is right. Never `eval`; unparsed is wrong and counted."""

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
#: Several letters: `A, C`, `A and C`, one a line.
LETTERS = re.compile(r"\(?[A-J]\)?(?:(?:\s*,\s*|\s+and\s+|\s*\n\s*)\(?[A-J]\)?)*")
LETTER = re.compile(r"(?<![A-Za-z\\])\(?([A-J])\)?(?![A-Za-z'])")
NUMBER = re.compile(r"^[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:/\d+)?$")
UNITS = re.compile(
    r"(?:\\text\{[^{}]*\}|\\mathrm\{[^{}]*\}|\\(?:,|;|!| )|cm|mm|km|m|°|\^\\circ|\^\{\\circ\}|\\%|%|\\degree)+$"
)


@dataclass(frozen=True)
class Verdict:
    """What was read out of a response, and whether it is right."""

    extracted: str | None
    correct: bool

    @property
    def unparsed(self) -> bool:
        """No committed answer was found."""
        return self.extracted is None


def find_boxes(text: str) -> list[tuple[int, str]]:
    r"""Position and content of every balanced `\boxed{...}`."""
    found = []
    for match in re.finditer(r"\\boxed\s*\{", text):
        depth, start = 1, match.end()
        for i in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                found.append((match.start(), text[start:i].strip()))
                break
    return found


def find_committed_answer(response: str, take: Take, has_choices: bool) -> str | None:
    """The first or last committed answer: a box, an answer tag, `Answer: X`; for choices also a lone letter.

    VA-OPD takes the first, the usual harnesses the last.
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
    """The option letters an answer names: `B`, `(B)`, `A, C`."""
    bare = text.strip().strip("$.()[]{} ")
    if LETTERS.fullmatch(bare):
        return frozenset(re.findall(r"[A-J]", bare))
    match = re.match(r"^\(?([A-J])[).:\s]", bare + " ")
    return frozenset(match.group(1)) if match else frozenset()


def normalize_answer(text: str) -> str:
    r"""A normal form for string comparison: no dollars, spaces, units, trailing dots; `\dfrac` is `\frac`."""
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
    """An exact number, or None where the text is no plain number."""
    bare = normalize_answer(text)
    if not bare or not NUMBER.match(bare) or bare in {".", "+", "-"}:
        return None
    try:
        return Fraction(bare.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def is_letter_row(answer: str, choices: tuple[str, ...]) -> bool:
    """Whether the row asks for a letter: it has choices, and its gold answer names letters. Decided by the row."""
    return bool(choices) and LETTERS.fullmatch(answer.strip()) is not None


def judge_answer(
    response: str,
    answer: str,
    choices: tuple[str, ...] = (),
    take: Take = "first",
    math: MathJudge | None = None,
) -> Verdict:
    """Compare a response with the gold answer.

    Choices: the letter, or exactly one option's text. Otherwise: normal form, exact number, then math-verify in a
    separate process with a time limit.
    """
    found = find_committed_answer(response, take, bool(choices))
    if found is None:
        return Verdict(None, correct=False)
    if is_letter_row(answer, choices):
        return Verdict(found, chosen_letters(found, choices) == parse_letters(answer))
    if choices:
        gold = answer
        letters = chosen_letters(found, choices)
        texts = [
            choices[ord(letter) - ord("A")]
            for letter in letters
            if ord(letter) - ord("A") < len(choices)
        ]
        if len(texts) == 1 and normalize_answer(texts[0]) == normalize_answer(gold):
            return Verdict(found, correct=True)
    return Verdict(found, is_same_value(found, answer, math))


def chosen_letters(found: str, choices: tuple[str, ...]) -> frozenset[str]:
    """Letters named, or the letter of the one option whose text was given."""
    letters = parse_letters(found)
    if letters:
        return letters
    same = [
        chr(ord("A") + i)
        for i, choice in enumerate(choices)
        if normalize_answer(choice) == normalize_answer(found)
    ]
    return frozenset(same) if len(same) == 1 else frozenset()


def is_same_value(found: str, gold: str, math: MathJudge | None) -> bool:
    """Equal as normal form, as exact numbers, or as mathematical expressions."""
    if normalize_answer(found) == normalize_answer(gold) and normalize_answer(gold):
        return True
    ours, theirs = parse_fraction(found), parse_fraction(gold)
    if ours is not None and theirs is not None:
        return ours == theirs
    if theirs is not None and not any(c.isdigit() for c in found):
        return False
    return math is not None and math.equal(gold, found)


def gold_response(answer: str) -> str:
    """A response that commits to the gold answer, for checking the checker."""
    return f"The answer is \\boxed{{{answer}}}."

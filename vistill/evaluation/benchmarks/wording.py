"""How questions and options are written in prompts."""

import re
from collections.abc import Sequence

from vistill.evaluation.benchmarks.benchmark import BenchmarkRow

DIRECT_LETTER = "Answer with the option's letter from the given choices directly."
#: The last line of VisualPuzzles and MMMU-Pro.
LAST_LINE = (
    "The last line of your response should be of the following format: 'Answer: $LETTER' (without"
    " quotes) where LETTER is one of options. Think step by step before answering."
)
#: What the protocol `vgs` leaves to its system message.
PLAIN = "vgs"
PLACEHOLDER = re.compile(r"<image ?(\d+)>")


def letters(count: int) -> list[str]:
    """A, B, C, ..."""
    return [chr(ord("A") + i) for i in range(count)]


def option_lines(choices: Sequence[str], form: str = "{letter}. {text}") -> str:
    """The options, one a line."""
    pairs = zip(letters(len(choices)), choices, strict=True)
    return "\n".join(form.format(letter=letter, text=text) for letter, text in pairs)


def lines(*parts: str) -> str:
    """The parts that are not empty, one below the other."""
    return "\n".join(part for part in parts if part)


def ask_letter(row: BenchmarkRow, protocol: str) -> str:
    """Question and options with `Answer with the option's letter`; `vgs` without it."""
    request = "" if protocol == PLAIN else DIRECT_LETTER
    return lines(row.question, option_lines(row.choices), request)


def one_picture(question: str) -> str:
    """A question whose only picture holds the figures of all its placeholders.

    The picture stands at the first placeholder; the others become `[figure 2]`.
    """
    seen = False

    def place(match: re.Match[str]) -> str:
        nonlocal seen
        if seen:
            return f"[figure {match[1]}]"
        seen = True
        return "<image1>"

    return PLACEHOLDER.sub(place, question)


def referenced(question: str, images: Sequence[object]) -> tuple[object, ...]:
    """The pictures with a placeholder in the question, in their places; all if there is none."""
    numbers = {int(number) for number in PLACEHOLDER.findall(question)}
    if not numbers:
        return tuple(images)
    return tuple(image if i + 1 in numbers else None for i, image in enumerate(images))

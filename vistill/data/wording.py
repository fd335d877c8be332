"""The text of a diagram: the question, and a chain of thought with few image-bound tokens."""

import re
from dataclasses import dataclass

import numpy as np

#: Names of the values of each kind, then its questions.
NAMES = {
    "triangle": ("a", "b", "c"),
    "segment": ("p", "q", "r"),
    "bars": ("x", "y", "z"),
    "rectangle": ("w", "h"),
}
QUESTIONS = {
    "triangle": ("What is the perimeter of the triangle?", "Find the perimeter of the triangle."),
    "segment": ("How long is the whole segment?", "Find the length of the segment."),
    "bars": (
        "What is the difference between the largest and the smallest number?",
        "Find the range of the numbers.",
    ),
    "rectangle": (
        "What is the perimeter of the rectangle?",
        "Find the perimeter of the rectangle.",
    ),
}
QUESTIONS_VISION_ONLY = ("Solve the problem in the picture.",)
SHAPES = {
    "triangle": "triangle",
    "segment": "segment",
    "bars": "bar chart",
    "rectangle": "rectangle",
}
OPENINGS = ("The figure shows a", "In the picture there is a", "We are given a")
LABEL_PHRASES = ("Reading its labels:", "The labels say", "From the figure:")
RULES = {
    "triangle": ("The perimeter is the sum of the three sides.", "We add the three sides."),
    "segment": ("The whole length is the sum of its parts.", "We add the three parts."),
    "bars": (
        "The range is the largest value minus the smallest.",
        "We subtract the smallest from the largest.",
    ),
    "rectangle": (
        "The perimeter is twice the sum of the sides.",
        "We add both sides and double the sum.",
    ),
}
CLOSINGS = ("The answer is", "Hence the answer is", "So the final answer is")


@dataclass(frozen=True)
class Wording:
    """The facts that the question and the solution mention."""

    kind: str
    colour: str
    values: tuple[int, ...]
    in_text: tuple[bool, ...]
    version: str
    answer: int


def format_values(names: tuple[str, ...], values: tuple[int, ...]) -> str:
    """`a=7, b=4, c=9`."""
    return ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))


def pick_phrase(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """Pick one of several phrases."""
    return options[int(rng.integers(len(options)))]


def question_text(wording: Wording, rng: np.random.Generator) -> str:
    """The question, after the values that the version gives in the text."""
    question = pick_phrase(
        rng, QUESTIONS_VISION_ONLY if wording.version == "vision_only" else QUESTIONS[wording.kind]
    )
    in_text = [i for i, given in enumerate(wording.in_text) if given]
    if not in_text:
        return question
    names = tuple(NAMES[wording.kind][i] for i in in_text)
    return f"Given {format_values(names, tuple(wording.values[i] for i in in_text))}. {question}"


def arithmetic_text(wording: Wording, verbose: bool) -> str:
    """The calculation, in one or two steps; `verbose` first states what it uses."""
    v = wording.values
    if wording.kind == "bars":
        high, low = max(v), min(v)
        lead = f"The largest is={high} and the smallest is={low}. " if verbose else ""
        return f"{lead}Then {high}-{low}={high - low}."
    if wording.kind == "rectangle":
        half = v[0] + v[1]
        return f"First w+h={v[0]}+{v[1]}={half}. Then 2*{half}={2 * half}."
    first, second = NAMES[wording.kind][:2]
    half = v[0] + v[1]
    return f"First {first}+{second}={v[0]}+{v[1]}={half}. Then {half}+{v[2]}={half + v[2]}."


def solution_text(wording: Wording, rng: np.random.Generator) -> str:
    """A chain of thought: layout, labels, rule, arithmetic, boxed answer."""
    labels = format_values(NAMES[wording.kind], wording.values)
    parts = [
        f"{pick_phrase(rng, OPENINGS)} {wording.colour} {SHAPES[wording.kind]}.",
        f"{pick_phrase(rng, LABEL_PHRASES)} {labels}.",
        pick_phrase(rng, RULES[wording.kind]),
    ]
    verbose = bool(rng.random() < 0.5)
    if verbose:
        parts.append(f"So we know {labels}.")
    parts.append(arithmetic_text(wording, verbose))
    parts.append(f"{pick_phrase(rng, CLOSINGS)} \\boxed{{{wording.answer}}}.")
    return " ".join(parts)


def stated_values(kind: str, response: str) -> tuple[str, ...]:
    """The labels that a response states first, in reading order; empty text for a missing one."""
    matches = [re.search(rf"(?<![a-z+]){name}=(\d+)", response) for name in NAMES[kind]]
    return tuple("" if match is None else match.group(1) for match in matches)

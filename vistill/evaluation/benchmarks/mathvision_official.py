r"""MathVision's own rule: which string of a reply is compared, and with what.

It has errors (`\boxed{(B) 40}` is neither B nor 40), so the benchmark's accuracy is judged by
`auto` and this rule is reported next to it. The authors also evaluate strings as code, which we do
not. Source: evaluation of github.com/mathllm/MATH-V.
"""

import re

from vistill.answers.extract import Take
from vistill.answers.math_process import MathJudge
from vistill.answers.verdict import Verdict
from vistill.evaluation.benchmarks.benchmark import BenchmarkRow

BOX = "oxed{"
BOXED = re.compile(r"oxed\{(.*)\}", re.DOTALL)
PHRASES = (
    "the final answer is",
    "the answer is",
    "the correct answer is",
    "the answer should be",
)
LETTERS = "abcde"
#: What is removed from both sides.
DROPPED = (
    "\\,", "\n", "\\text", "\\mbox", "\\left", "\\right", "^{\\circ}", "^\\circ", "{m}^3", "m^3",
    "{units}", "units", "{km}", "km", "\\$", "$", "\\%", "%",
)  # fmt: skip
TOLERANCE = 1e-4


def number_in(text: str) -> float | None:
    """The number that a text is; None if it is none."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def find_string(reply: str) -> str:
    """The part of a reply that holds the answer: a letter at either end, a box, or a phrase."""
    text = reply.strip()
    for letter in LETTERS.upper():
        starts = (f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n")
        if text.endswith((f" {letter}.", f" ({letter}).")) or text.startswith(starts):
            text = letter
    last = text.split("is ")[-1].rstrip(".")
    if number_in(last) is not None:
        text = last
    if BOX in text:
        return "\\b" + BOX + text.split(BOX)[-1] if text.count(BOX) > 1 else text
    for phrase in PHRASES:
        for form in (phrase, phrase.replace("the", "The")):
            if form in text:
                text = text.split(form)[-1].strip().split("\n")[0].split(". ")[0]
    return text


def plain(text: str) -> str:
    """The string that is compared: the last box, behind `=`, without blanks, units and signs."""
    form = text.lower().replace("{}", "")
    if boxed := BOXED.findall(form):
        form = boxed[-1]
    closing = form.find("}")
    if closing >= 0 and ("{" not in form or closing < form.find("{")):
        form = form[:closing]
    form = form.split("=")[-1].split("\\approx")[-1].replace(" ", "")
    for part in DROPPED:
        form = form.replace(part, "")
    for letter in LETTERS:
        form = form.replace(f"({letter})", letter).replace(f"{{{letter}}}", letter)
    return form.rstrip(".").lstrip(":").strip()


def are_equal(gold: str, answer: str) -> bool:
    """Equal strings or equal numbers."""
    if not gold or not answer:
        return False
    first, second = number_in(gold), number_in(answer)
    if first is not None and second is not None:
        return abs(first - second) < TOLERANCE
    return gold == answer


def judge(reply: str, row: BenchmarkRow, take: Take, math: MathJudge) -> Verdict:
    """The letter or the value of the option; the last box counts, whatever the protocol takes."""
    gold = str(row.answer)
    index = ord(gold) - ord("A") if len(gold) == 1 and gold.isupper() else -1
    value = row.choices[index] if 0 <= index < len(row.choices) else ""
    answer = plain(find_string(reply))
    right = any(are_equal(plain(text), answer) for text in (gold, value) if text)
    reason = "" if right else "another string"
    return Verdict(answer or None, right, "official", None, answer, gold, reason, "official")

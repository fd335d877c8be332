"""MathVista testmini: figures, charts and puzzles, by a rule with the published precision."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vistill.answers.extract import Take
from vistill.answers.math_process import MathJudge
from vistill.answers.normalise import strip_markup
from vistill.answers.values import parse_value
from vistill.answers.verdict import Verdict
from vistill.evaluation.benchmarks.benchmark import Benchmark, BenchmarkRow, by_checker
from vistill.evaluation.benchmarks.wording import PLAIN, lines, option_lines

AUTO = by_checker("auto")


def from_hub(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row of AI4Math/MathVista."""
    metadata = raw.get("metadata") or {}
    choices = tuple(map(str, raw.get("choices") or ()))
    precision = raw.get("precision")
    return BenchmarkRow(
        id=f"mathvista_{raw['pid']}",
        question=str(raw["question"]),
        images=(raw["decoded_image"],),
        answer=letter_of(str(raw["answer"]), choices),
        choices=choices,
        facts={
            "query": str(raw.get("query") or ""),
            "unit": str(raw.get("unit") or ""),
            "answer_type": str(raw["answer_type"]),
            "precision": "" if precision is None else str(int(precision)),
            "source": str(metadata.get("source", "")),
            "task": str(metadata.get("task", "")),
        },
    )


def letter_of(answer: str, choices: tuple[str, ...]) -> str:
    """The letter of the option that is the answer: the data give its text."""
    return chr(ord("A") + choices.index(answer)) if answer in choices else answer


def prompt(row: BenchmarkRow, protocol: str) -> str:
    """The published `query` with its hint; `vgs` asks the question and its options."""
    if row.facts["query"] and protocol != PLAIN:
        return row.facts["query"]
    unit = f" (Unit: {row.facts['unit']})" if row.facts["unit"] else ""
    options = option_lines(row.choices, "({letter}) {text}")
    return lines(row.question + unit, options and f"Choices:\n{options}")


def judge(reply: str, row: BenchmarkRow, take: Take, math: MathJudge) -> Verdict:
    """`auto`, and for numbers equality behind the published number of decimals."""
    verdict = AUTO(reply, row, take, math)
    kind = row.facts["answer_type"]
    if verdict.correct or verdict.extracted is None or kind not in ("integer", "float"):
        return verdict
    value = parse_value(strip_markup(verdict.extracted)).number
    gold = parse_value(strip_markup(str(row.answer))).number
    if value is None or gold is None or row.choices:
        return verdict
    digits = int(row.facts["precision"] or 0)
    same = int(value) == gold if kind == "integer" else round(value, digits) == round(gold, digits)
    return replace(verdict, correct=True, reason="", checker="mathvista") if same else verdict


BENCHMARK = Benchmark(
    name="mathvista",
    title="MathVista testmini",
    rows=1000,
    hub="AI4Math/MathVista[testmini]",
    from_hub=from_hub,
    prompt=prompt,
    rules={"mathvista": judge},
    categories=("task", "source", "answer_type"),
    licence="CC BY-SA 4.0: evaluation only, training on it is forbidden",
    source="arXiv 2310.02255; github.com/lupantech/MathVista",
    note="The authors let a language model extract the answer.",
)

"""MathVision: problems of mathematics competitions by level and subject."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vistill.evaluation.benchmarks import mathvision_official
from vistill.evaluation.benchmarks.benchmark import (
    Benchmark,
    BenchmarkRow,
    accuracy_and_official,
    by_checker,
)
from vistill.evaluation.benchmarks.wording import PLAIN, lines, one_picture, option_lines

REQUEST = (
    'Please solve the problem step by step and put your answer in one "\\boxed{}". If it is a'
    ' multiple choice question, only one letter is allowed in the "\\boxed{}".'
)


def from_hub(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row of MathLLMs/MathVision; one picture holds all figures of a question."""
    return BenchmarkRow(
        id=f"mathvision_{raw['id']}",
        question=str(raw["question"]),
        images=(raw["decoded_image"],),
        answer=str(raw["answer"]),
        choices=tuple(map(str, raw["options"] or ())),
        facts={"subject": str(raw["subject"]), "level": str(raw["level"])},
    )


def prompt(row: BenchmarkRow, protocol: str) -> str:
    """The authors' request, the question, and its options."""
    options = "" if same_as_letters(row) else option_lines(row.choices, "({letter}) {text}")
    request = "" if protocol == PLAIN else REQUEST
    return one_picture(lines(request, row.question, options))


def same_as_letters(row: BenchmarkRow) -> bool:
    """Whether the options are in the picture: A, B, C, D, E."""
    return all(text == chr(ord("A") + i) for i, text in enumerate(row.choices))


BENCHMARK = Benchmark(
    name="mathvision",
    title="MathVision test",
    rows=3040,
    hub="MathLLMs/MathVision[test]",
    from_hub=from_hub,
    prompt=prompt,
    rules={"auto": by_checker("auto"), "official": mathvision_official.judge},
    score=accuracy_and_official,
    categories=("subject", "level"),
    licence="MIT: evaluation",
    source="arXiv 2402.14804; github.com/mathllm/MATH-V",
    note="Letter and value of the option both count by both rules.",
)
TESTMINI = replace(
    BENCHMARK,
    name="mathvision_testmini",
    title="MathVision testmini",
    rows=304,
    hub="MathLLMs/MathVision[testmini]",
)

"""MMMU and MMMU-Pro: college subjects, with pictures inside questions and options."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vistill.data.gold import read_options
from vistill.data.stored_text import collection_in_text
from vistill.evaluation.benchmarks import mmmu_official
from vistill.evaluation.benchmarks.benchmark import (
    Benchmark,
    BenchmarkRow,
    accuracy,
    accuracy_and_official,
    by_checker,
)
from vistill.evaluation.benchmarks.wording import (
    DIRECT_LETTER,
    LAST_LINE,
    PLAIN,
    lines,
    option_lines,
    referenced,
)

OPEN_REQUEST = "Answer the question using a single word or phrase."
PICTURES = tuple(f"image_{i}" for i in range(1, 8))


def from_hub(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row of MMMU (merged subjects) or MMMU-Pro."""
    choices = read_options(raw["options"], "")
    text = lines(str(raw["question"]), *choices)
    stored = raw["answer"]
    answer = stored if isinstance(stored, list) else collection_in_text(str(stored))
    golds = tuple(map(str, answer)) if isinstance(answer, list) else str(stored)
    name = str(raw["id"])
    subject = raw.get("subject") or name.split("_", 1)[-1].rpartition("_")[0]
    return BenchmarkRow(
        id=f"mmmu_{name}",
        question=str(raw["question"]),
        images=referenced(text, [raw.get(key) for key in PICTURES]),
        answer=golds,
        choices=choices,
        facts={"subject": str(subject), "type": str(raw.get("question_type", "multiple-choice"))},
    )


def prompt(row: BenchmarkRow, protocol: str) -> str:
    """Question and options, and the published request; pictures stand at their placeholders."""
    request = DIRECT_LETTER if row.choices else OPEN_REQUEST
    options = option_lines(row.choices, "({letter}) {text}")
    return lines(row.question, options, "" if protocol == PLAIN else request)


def pro_prompt(row: BenchmarkRow, protocol: str) -> str:
    """Question and options with the request to reason and to end with `Answer: $LETTER`."""
    options = option_lines(row.choices)
    return lines(row.question, options, "" if protocol == PLAIN else LAST_LINE)


BENCHMARK = Benchmark(
    name="mmmu",
    title="MMMU validation",
    rows=900,
    hub="lmms-lab/MMMU[validation]",
    from_hub=from_hub,
    prompt=prompt,
    rules={"auto": by_checker("auto"), "official": mmmu_official.judge},
    score=accuracy_and_official,
    categories=("subject", "type"),
    licence="Apache-2.0: evaluation",
    source="arXiv 2311.16502; github.com/MMMU-Benchmark/MMMU",
    note="A reply without an option is wrong by both rules; the authors choose one at random.",
)
PRO = replace(
    BENCHMARK,
    name="mmmu_pro",
    title="MMMU-Pro, 4 options",
    rows=1730,
    hub="MMMU/MMMU_Pro:standard (4 options)[test]",
    prompt=pro_prompt,
    rules={"choice": by_checker("choice")},
    score=accuracy,
    categories=("subject",),
    source="arXiv 2409.02813",
    note="",
)

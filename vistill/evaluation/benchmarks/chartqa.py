"""ChartQA: numbers within 5 %, other answers by their words."""

from collections.abc import Mapping, Sequence
from typing import Any

from vistill.evaluation.benchmarks.benchmark import (
    Benchmark,
    BenchmarkRow,
    ScoredReply,
    Units,
    by_checker,
    row_units,
    units_by_fact,
)
from vistill.evaluation.benchmarks.wording import PLAIN, lines

REQUEST = "Answer the question with a single word."


def from_hub(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row of lmms-lab/ChartQA, which has no id: the reader numbers the rows."""
    return BenchmarkRow(
        id=str(raw.get("id", "")),
        question=str(raw["question"]),
        images=(raw["image"],),
        answer=str(raw["answer"]),
        facts={"type": str(raw["type"]).removesuffix("_test")},
    )


def score(replies: Sequence[ScoredReply]) -> Units:
    """Relaxed accuracy over all rows, and over those of people (`human`) and of templates."""
    return {"accuracy": row_units(replies), **units_by_fact(replies, "type")}


BENCHMARK = Benchmark(
    name="chartqa",
    title="ChartQA test",
    rows=2500,
    hub="lmms-lab/ChartQA[test]",
    from_hub=from_hub,
    prompt=lambda row, protocol: lines(row.question, "" if protocol == PLAIN else REQUEST),
    rules={"relaxed": by_checker("relaxed")},
    score=score,
    licence="GPL-3.0 for the code: evaluation",
    source="arXiv 2203.10244",
    paper_rows={"visual_opsd": 944},
    note="Visual-OPSD takes the bar charts, with a language model as judge.",
)

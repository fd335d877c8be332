"""CV-Bench: classic vision tasks as questions; the mean of 2D and 3D."""

from collections.abc import Mapping, Sequence
from typing import Any

from vistill.evaluation.benchmarks.benchmark import (
    Benchmark,
    BenchmarkRow,
    ScoredReply,
    Units,
    by_checker,
    row_units,
)
from vistill.evaluation.benchmarks.wording import PLAIN, ask_letter

SOURCES_2D = ("ADE20K", "COCO")


def from_hub(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row of nyu-visionx/CV-Bench."""
    return BenchmarkRow(
        id=f"cv_bench_{raw['idx']}",
        question=str(raw["question"]),
        images=(raw["image"],),
        answer=str(raw["answer"]).strip("() "),
        choices=tuple(map(str, raw["choices"])),
        facts={
            "type": str(raw["type"]),
            "task": str(raw["task"]),
            "source": str(raw["source"]),
            "query": str(raw.get("prompt") or ""),
        },
    )


def prompt(row: BenchmarkRow, protocol: str) -> str:
    """The published prompt, which lists the options."""
    query = "" if protocol == PLAIN else row.facts.get("query", "")
    return query or ask_letter(row, protocol)


def score(replies: Sequence[ScoredReply]) -> Units:
    """2D by source, 3D, and all rows; the official scores are means of these."""
    flat = [reply for reply in replies if reply.row.facts["type"] == "2D"]
    return {
        "ADE20K": row_units([r for r in flat if r.row.facts["source"] == "ADE20K"]),
        "COCO": row_units([r for r in flat if r.row.facts["source"] == "COCO"]),
        "3D": row_units([r for r in replies if r.row.facts["type"] == "3D"]),
        "rows": row_units(replies),
    }


BENCHMARK = Benchmark(
    name="cv_bench",
    title="CV-Bench",
    rows=2638,
    hub="nyu-visionx/CV-Bench[test]",
    from_hub=from_hub,
    prompt=prompt,
    rules={"choice": by_checker("choice")},
    score=score,
    means={"2D": SOURCES_2D, "overall": ("ADE20K", "COCO", "3D", "3D")},
    headline="overall",
    categories=("task",),
    licence="Apache-2.0: evaluation",
    source="arXiv 2406.16860",
    paper_rows={"visual_opsd": 700},
    note="2D is the mean of its two sources, overall the mean of 2D and 3D.",
)

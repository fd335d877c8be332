"""VSP, maze navigation: a plan is walked through the maze, by the official and a strict rule."""

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

BOXED = "Put the plan, such as R,D, into \\boxed{} at the end."


def from_folder(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row in our form, with the maze in `extra.grid`."""
    extra = raw["extra"]
    return BenchmarkRow(
        id=raw["id"],
        question=raw["question"],
        images=tuple(raw["images"]),
        answer="\n".join(extra["grid"]),
        facts={"level": str(extra["level"])},
    )


def prompt(row: BenchmarkRow, protocol: str) -> str:
    """The official prompt with its two figures; `visual_opsd` also asks for a box."""
    return f"{row.question.rstrip()}\n\n{BOXED}" if protocol == "visual_opsd" else row.question


def score(replies: Sequence[ScoredReply]) -> Units:
    """Share of plans that succeed: `official`, and `strict` (docs/answers.md)."""
    return {
        "official": row_units(replies, "maze"),
        "strict": row_units(replies, "maze_strict"),
    }


BENCHMARK = Benchmark(
    name="vsp_maze",
    title="VSP maze, main task",
    rows=600,
    hub="",
    from_hub=from_folder,
    from_folder=from_folder,
    prompt=prompt,
    rules={"maze": by_checker("maze"), "maze_strict": by_checker("maze_strict")},
    score=score,
    headline="official",
    categories=("level",),
    licence="MIT: evaluation",
    source="arXiv 2407.01863; github.com/UCSB-NLP-Chang/Visual-Spatial-Planning",
    paper_rows={"visual_opsd": 120},
    note="The metric strict is the rule of the fork that Visual-OPSD uses: leaving the maze fails,"
    " and the plan ends on the goal.",
)

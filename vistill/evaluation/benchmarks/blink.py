"""BLINK: fourteen tasks of perception with several pictures; `blink_jigsaw` is one of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vistill.evaluation.benchmarks.benchmark import (
    Benchmark,
    BenchmarkRow,
    ScoredReply,
    Units,
    accuracy,
    by_checker,
    row_units,
    units_by_fact,
)
from vistill.evaluation.benchmarks.wording import PLAIN, lines, option_lines

TASKS = (
    "Art_Style",
    "Counting",
    "Forensic_Detection",
    "Functional_Correspondence",
    "IQ_Test",
    "Jigsaw",
    "Multi-view_Reasoning",
    "Object_Localization",
    "Relative_Depth",
    "Relative_Reflectance",
    "Semantic_Correspondence",
    "Spatial_Relation",
    "Visual_Correspondence",
    "Visual_Similarity",
)
REQUEST = "Note: You only need to respond with {} without providing any additional information."


def task_name(value: object) -> str:
    """A task as its config is called: `Art_Style`."""
    return str(value).replace(" ", "_")


def from_hub(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row of BLINK-Benchmark/BLINK, one config per task."""
    pictures = [raw.get(f"image_{i}") for i in range(1, 5)]
    return BenchmarkRow(
        id=f"blink_{raw['idx']}",
        question=str(raw["question"]),
        images=tuple(picture for picture in pictures if picture is not None),
        answer=str(raw["answer"]).strip("() "),
        choices=tuple(map(str, raw["choices"])),
        facts={"task": task_name(raw["sub_task"]), "query": str(raw.get("prompt") or "")},
    )


def from_folder(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row in our form, with the published prompt in `extra.query`."""
    extra = raw["extra"]
    return BenchmarkRow(
        id=raw["id"],
        question=raw["question"],
        images=tuple(raw["images"]),
        answer=raw["answer"],
        choices=tuple(raw["choices"]),
        facts={
            "task": task_name(extra.get("sub_task", "Jigsaw")),
            "query": extra.get("query", ""),
        },
    )


def prompt(row: BenchmarkRow, protocol: str) -> str:
    """The published prompt behind the request for a letter; all pictures come first."""
    options = option_lines(row.choices, "({letter}) {text}")
    query = row.facts.get("query") or lines(
        row.question, "Select from the following choices.", options
    )
    letters = ", ".join(chr(ord("A") + i) for i in range(len(row.choices)))
    return query if protocol == PLAIN else lines(REQUEST.format(letters), query)


def score(replies: Sequence[ScoredReply]) -> Units:
    """The accuracy of each task, and `rows`: that of all rows."""
    return {**units_by_fact(replies, "task"), "rows": row_units(replies)}


BENCHMARK = Benchmark(
    name="blink",
    title="BLINK val",
    rows=1901,
    hub="BLINK-Benchmark/BLINK:*[val]",
    configs=TASKS,
    from_hub=from_hub,
    from_folder=from_folder,
    prompt=prompt,
    rules={"choice": by_checker("choice")},
    score=score,
    means={"overall": TASKS},
    headline="overall",
    licence="Apache-2.0: evaluation",
    source="arXiv 2404.12390; github.com/zeyofu/BLINK_Benchmark",
    paper_rows={"visual_opsd": 671},
    note="overall is the mean of the accuracies of the fourteen tasks, as the authors average.",
)
JIGSAW = replace(
    BENCHMARK,
    name="blink_jigsaw",
    title="BLINK Jigsaw val",
    rows=150,
    configs=("Jigsaw",),
    score=accuracy,
    means={},
    headline="accuracy",
    paper_rows={"visual_opsd": 150},
    note="",
)

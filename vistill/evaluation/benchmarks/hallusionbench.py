"""HallusionBench: yes or no, scored by row, by figure and by question."""

from collections.abc import Mapping, Sequence
from typing import Any

from vistill.evaluation.benchmarks.benchmark import (
    Benchmark,
    BenchmarkRow,
    ScoredReply,
    Unit,
    Units,
    by_checker,
    row_units,
)


def facts_of(raw: Mapping[str, Any]) -> dict[str, str]:
    """The keys of figure and question."""
    parts = [str(raw[name]) for name in ("category", "subcategory", "set_id")]
    one = "_".join(parts)
    return {
        "category": parts[0],
        "subcategory": parts[1],
        "set": one,
        "figure": f"{one}_{raw['figure_id']}",
        "question": f"{one}_{raw['question_id']}",
        "has_figure": str(not (parts[0] == "VS" and str(raw["figure_id"]) == "0")),
    }


def from_hub(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row of lmms-lab/HallusionBench; rows without a figure are the split `non_image`."""
    facts = facts_of(raw)
    picture = raw.get("image")
    return BenchmarkRow(
        id=f"hallusionbench_{facts['figure']}_{raw['question_id']}",
        question=str(raw["question"]),
        images=() if picture is None else (picture,),
        answer=str(raw["gt_answer"]),
        group=facts["set"],
        facts=facts,
    )


def from_folder(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row in our form."""
    facts = facts_of(raw["extra"])
    return BenchmarkRow(
        id=raw["id"],
        question=raw["question"],
        images=tuple(raw["images"]),
        answer=raw["answer"],
        group=facts["set"],
        facts=facts,
    )


def all_right(replies: Sequence[ScoredReply], fact: str) -> list[Unit]:
    """One unit per value of a fact and sample: whether all its rows are right."""
    values: dict[tuple[str, int], float] = {}
    clusters: dict[tuple[str, int], str] = {}
    for reply in replies:
        key = reply.row.facts[fact], reply.sample
        values[key] = min(values.get(key, 1.0), float(reply.main >= 1))
        clusters[key] = reply.row.cluster
    return [Unit(key[0], clusters[key], value) for key, value in values.items()]


def score(replies: Sequence[ScoredReply]) -> Units:
    """Accuracy aAcc over rows; fAcc over figures and qAcc over questions whose rows are all right.

    fAcc leaves out the rows of category VS that have no figure, as the authors' code does.
    """
    with_figure = [reply for reply in replies if reply.row.facts["has_figure"] == "True"]
    return {
        "aAcc": row_units(replies),
        "fAcc": all_right(with_figure, "figure"),
        "qAcc": all_right(replies, "question"),
    }


BENCHMARK = Benchmark(
    name="hallusionbench",
    title="HallusionBench (rows with a figure)",
    rows=951,
    hub="lmms-lab/HallusionBench[image]",
    from_hub=from_hub,
    from_folder=from_folder,
    prompt=lambda row, protocol: row.question,
    rules={"yes_no": by_checker("yes_no")},
    score=score,
    means={"mean": ("aAcc", "fAcc", "qAcc")},
    headline="mean",
    categories=("category", "subcategory"),
    is_asked=lambda row: row.facts["has_figure"] == "True",
    has_no_picture=lambda row: row.facts["has_figure"] == "False",
    licence="BSD-3-Clause: evaluation",
    source="arXiv 2310.14566; github.com/tianyi-lab/HallusionBench",
    note="Only rows with a figure: the set has 178 more without one."
    " A yes/no rule; the authors let a language model compare. A reply that says neither is"
    " wrong; the authors count it as right on rows without a figure.",
)

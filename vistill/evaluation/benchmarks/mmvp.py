"""MMVP: pairs of similar pictures; a pair counts if both questions are right."""

import re
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
from vistill.evaluation.benchmarks.wording import ask_letter

OPTION = re.compile(r"\(([a-d])\)\s*(.*?)\s*(?=\([a-d]\)|$)", re.DOTALL)


def from_hub(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row of MMVP with the columns of its Questions.csv and `image`; rows 1 and 2 are a pair."""
    index = int(raw["Index"])
    return BenchmarkRow(
        id=f"mmvp_{index}",
        question=str(raw["Question"]),
        images=(raw["image"],),
        answer=str(raw["Correct Answer"]).strip("() ").upper(),
        choices=tuple(match[2] for match in OPTION.finditer(str(raw["Options"]))),
        group=f"pair {(index + 1) // 2}",
    )


def score(replies: Sequence[ScoredReply]) -> Units:
    """`pairs`: the share of pairs with both rows right; `rows`: the share of rows.

    A pair without both rows is left out.
    """
    pairs: dict[tuple[str, int], list[float]] = {}
    for reply in replies:
        pairs.setdefault((reply.row.group, reply.sample), []).append(reply.main)
    whole = [
        Unit(group, group, float(all(value >= 1 for value in values)))
        for (group, _), values in pairs.items()
        if len(values) == 2
    ]
    return {"pairs": whole, "rows": row_units(replies)}


BENCHMARK = Benchmark(
    name="mmvp",
    title="MMVP",
    rows=300,
    hub="MMVP/MMVP[train]",
    from_hub=from_hub,
    prompt=ask_letter,
    rules={"choice": by_checker("choice")},
    score=score,
    headline="pairs",
    licence="not found: evaluation",
    source="arXiv 2401.06209",
    note="Visual-OPSD's 150 are its pairs, or half of its rows: the paper does not say.",
)

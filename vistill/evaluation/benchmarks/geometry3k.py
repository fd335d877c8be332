"""Geometry3K: the validation and test splits of a training set; VA-OPD chooses checkpoints here."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vistill.evaluation.benchmarks.benchmark import (
    Benchmark,
    BenchmarkRow,
    by_checker,
    read_plain_row,
)
from vistill.evaluation.benchmarks.wording import PLAIN, lines

REQUEST = "Put the final answer in \\boxed{}."
LEADING = re.compile(r"^\s*<image>\s*")


def from_hub(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row of hiyouga/geometry3k; the options are not shown, the gold answer is a value."""
    return BenchmarkRow(
        id=str(raw.get("id") or ""),
        question=LEADING.sub("", str(raw["problem"])),
        images=tuple(raw["images"]),
        answer=str(raw["answer"]),
    )


def from_folder(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row in our form, without its options."""
    return replace(read_plain_row(raw), choices=())


def prompt(row: BenchmarkRow, protocol: str) -> str:
    """The problem, and the request for a box."""
    return lines(row.question, "" if protocol == PLAIN else REQUEST)


VALIDATION = Benchmark(
    name="geometry3k",
    title="Geometry3K validation",
    rows=300,
    hub="hiyouga/geometry3k[validation]",
    from_hub=from_hub,
    from_folder=from_folder,
    prompt=prompt,
    rules={"auto": by_checker("auto")},
    licence="MIT: training and evaluation",
    source="arXiv 2105.04165; the columns are those of hiyouga/geometry3k",
    paper_rows={"va_opd": 200},
    note="VA-OPD draws 200 of the validation split with a seed and publishes no ids.",
    may_train=True,
)
TEST = replace(
    VALIDATION,
    name="geometry3k_test",
    title="Geometry3K test",
    rows=601,
    hub="hiyouga/geometry3k[test]",
    paper_rows={},
    note="",
)

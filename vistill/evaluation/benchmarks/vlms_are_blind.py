"""VLMs are blind: counting and touching in drawings that people find trivial."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vistill.answers.characters import outside_thoughts
from vistill.answers.extract import Take
from vistill.answers.math_process import MathJudge
from vistill.answers.verdict import Verdict
from vistill.evaluation.benchmarks.benchmark import (
    Benchmark,
    BenchmarkRow,
    ScoredReply,
    Units,
    by_checker,
    row_units,
    units_by_fact,
)

#: A number in brackets, which are no argument, index or power of a formula: `\frac{1}{3}`, `x_{3}`.
BRACED = re.compile(r"(?<![\w^}])\{\s*(\d{1,3})\s*\}")
GRID = re.compile(r"rows?\s*=\s*\{?\s*(\d{1,3})\s*\}?\W{0,20}columns?\s*=\s*\{?\s*(\d{1,3})", re.I)
AUTO = by_checker("auto")


def from_hub(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row of XAI/vlmsareblind; it has no id, so its place and task make one."""
    return BenchmarkRow(
        id=str(raw.get("id", "")),
        question=str(raw["prompt"]),
        images=(raw["image"],),
        answer=str(raw["groundtruth"]),
        facts={"task": str(raw["task"])},
    )


def judge(reply: str, row: BenchmarkRow, take: Take, math: MathJudge) -> Verdict:
    """The number in curly brackets that the prompt asks for, `rows={5} columns={6}`, else `auto`.

    Several bracketed answers: the first or the last one, as the protocol takes. Brackets of
    thoughts and of formulas are none.
    """
    pattern = GRID if "," in row.answer else BRACED
    stated = [m for a, b in outside_thoughts(reply) for m in pattern.finditer(reply, a, b)]
    is_asked = "curly brackets" in row.question
    if not is_asked or not stated:
        return AUTO(reply, row, take, math)
    match = stated[0 if take == "first" else -1]
    form = ",".join(match.groups())
    gold = "".join(str(row.answer).split())
    reason = "" if form == gold else "another value"
    where = match.span()
    return Verdict(match[0], not reason, "braces", where, form, gold, reason, "braces")


def score(replies: Sequence[ScoredReply]) -> Units:
    """`accuracy` over rows, and that of each task."""
    tasks = units_by_fact(replies, "task")
    named = {f"task: {name}": units for name, units in tasks.items()}
    return {"accuracy": row_units(replies), **named}


BENCHMARK = Benchmark(
    name="vlms_are_blind",
    title="VLMs are blind",
    rows=8016,
    hub="XAI/vlmsareblind[valid]",
    from_hub=from_hub,
    prompt=lambda row, protocol: row.question,
    rules={"braces": judge},
    score=score,
    licence="MIT: evaluation",
    source="arXiv 2407.06581; github.com/anguyen8/vision-llms-are-blind",
    note="Mean over rows; the tasks are listed too, because the means differ.",
)

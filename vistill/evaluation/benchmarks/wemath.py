"""We-Math: whether a model solves a problem and its steps; strict, loose, and their mean."""

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
from vistill.evaluation.benchmarks.wording import PLAIN, lines, option_lines

REQUEST = (
    "Solve this multiple-choice math question. Briefly describe your thought process and give the"
    " final answer (option).\n"
    "Regarding the format, please answer following the template below, and be sure to include two"
    " <> symbols:\n"
    "<Thought process>: <<your thought process>> <Answer>: <<your option>>"
)
OPTION = re.compile(r"(?:^|;)\s*([A-H])\.\s*(.*?)\s*(?=;\s*[A-H]\.|$)", re.DOTALL)
#: The composite problem of a group; the others are its steps.
COMPOSITE = "multi"


def parse_options(text: str) -> tuple[str, ...]:
    """The options of `A. 628;B. 314`."""
    return tuple(match[2] for match in OPTION.finditer(text.strip()))


def from_hub(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row of We-Math/We-Math."""
    name, step = str(raw["ID"]), str(raw["key"]).rpartition("_")[2]
    return BenchmarkRow(
        id=f"wemath_{name}_{step}",
        question=str(raw["question"]),
        images=(raw["image_path"],),
        answer=str(raw["answer"]).strip(),
        choices=parse_options(str(raw["option"])),
        group=name,
        facts={"step": step, "steps": name[:1], "concept": str(raw["knowledge concept"])},
    )


def from_folder(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row in our form, whose `extra` has the original fields."""
    extra = raw["extra"]
    renamed = {"knowledge concept": extra["knowledge_concept"], "question": raw["question"]}
    images = raw["images"]
    return from_hub({**extra, **renamed, "answer": raw["answer"], "image_path": images[0]})


def prompt(row: BenchmarkRow, protocol: str) -> str:
    """Question, options, and the template of the authors' evaluation."""
    request = "" if protocol == PLAIN else REQUEST
    return lines(row.question, "Options: " + option_lines(row.choices), request)


def score(replies: Sequence[ScoredReply]) -> Units:
    """Strict and loose score, and the shares of the four outcomes, over the groups present.

    With all steps right: complete mastery if the composite problem is right (1), else inadequate
    generalisation (0.5). With a wrong step: insufficient knowledge if the composite problem is
    wrong (0), else rote memorisation (0), which `loose` counts as complete mastery (1) if any step
    is right. A group without all its rows is left out. Every unit is a group.
    """
    groups: dict[tuple[str, int], dict[str, bool]] = {}
    size: dict[str, int] = {}
    for reply in replies:
        row = reply.row
        groups.setdefault((row.group, reply.sample), {})[row.facts["step"]] = reply.main >= 1
        size[row.group] = int(row.facts["steps"]) + 1
    units: Units = {name: [] for name in ("strict", "loose")}
    outcomes: Units = {name: [] for name in ("ik", "ig", "cm_strict", "cm_loose")}
    rote: Units = {"rm_rate_strict": [], "rm_rate_loose": []}
    for (group, _), right in groups.items():
        if COMPOSITE not in right or len(right) != size[group]:
            continue
        steps = [value for step, value in right.items() if step != COMPOSITE]
        composite = right[COMPOSITE]
        strict = composite and all(steps)
        loose = composite and any(steps)
        general = all(steps) and not composite
        values = {
            "strict": float(strict) + 0.5 * general,
            "loose": float(loose) + 0.5 * general,
            "ik": float(not composite and not all(steps)),
            "ig": float(general),
            "cm_strict": float(strict),
            "cm_loose": float(loose),
        }
        for name, value in values.items():
            (units if name in units else outcomes)[name].append(Unit(group, group, value))
        if composite:
            rote["rm_rate_strict"].append(Unit(group, group, float(not strict)))
            rote["rm_rate_loose"].append(Unit(group, group, float(not loose)))
    return {**units, **outcomes, **rote, "rows": row_units(replies)}


BENCHMARK = Benchmark(
    name="wemath",
    title="We-Math",
    rows=1740,
    hub="We-Math/We-Math[testmini]",
    from_hub=from_hub,
    from_folder=from_folder,
    prompt=prompt,
    rules={"choice": by_checker("choice")},
    score=score,
    means={"mean": ("strict", "loose")},
    headline="mean",
    categories=("steps", "concept"),
    licence="CC BY-NC 4.0: evaluation only, no commercial use",
    source="arXiv 2407.01284; github.com/We-Math/We-Math",
    note="Divides by the groups present; other harnesses divide by 525 whatever is evaluated.",
)

"""MathVerse: the same problem in versions that move its text into the picture."""

import re
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
from vistill.evaluation.benchmarks.wording import PLAIN, lines, option_lines

#: The versions of testmini; `Text Only` is a set of its own and not part of the overall score.
VERSIONS = (
    "Text Dominant",
    "Text Lite",
    "Vision Intensive",
    "Vision Dominant",
    "Vision Only",
)
TEXT_ONLY, VISION_ONLY = "Text Only", "Vision Only"
CHOICES = re.compile(r"\n\s*Choices:\s*\n", re.IGNORECASE)
OPTION = re.compile(r"^([A-H])\s*[:.]\s*(.*)$", re.MULTILINE)


def from_hub(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row of AI4Math/MathVerse, config `testmini` or `testmini_text_only`."""
    question, *rest = CHOICES.split(str(raw["question"]), 1)
    options = rest[0] if rest else ""
    version = str(raw["problem_version"])
    metadata = raw.get("metadata") or {}
    facts = {
        "version": version,
        "type": str(raw["question_type"]).replace("-", "_"),
        "subject": str(metadata.get("subject", "")),
        "subfield": str(metadata.get("subfield", "")),
        "query": str(raw.get("query_wo") or ""),
    }
    picture = raw.get("image")
    return BenchmarkRow(
        id=f"mathverse_{raw['sample_index']}",
        question=question,
        images=() if version == TEXT_ONLY or picture is None else (picture,),
        answer=str(raw["answer"]),
        choices=tuple(match[2].strip() for match in OPTION.finditer(options)),
        group=str(raw["problem_index"]),
        facts=facts,
    )


def from_folder(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row in our form."""
    extra = raw["extra"]
    facts = {
        "version": extra["problem_version"],
        "type": extra["question_type"].replace("-", "_"),
        "subject": extra["subject"],
        "subfield": extra["subfield"],
    }
    return BenchmarkRow(
        id=raw["id"],
        question=raw["question"].rstrip(),
        images=tuple(raw["images"]),
        answer=raw["answer"],
        choices=tuple(raw["choices"] or ()),
        group=raw["group"],
        facts=facts,
    )


def prompt(row: BenchmarkRow, protocol: str) -> str:
    """The published query without reasoning (`query_wo`); `vgs` asks the plain question."""
    is_choice = row.facts["type"] == "multi_choice"
    options = lines("Choices:", option_lines(row.choices, "{letter}:{text}")) if row.choices else ""
    if protocol == PLAIN:
        return lines(row.question, options) or "Solve the problem in the picture."
    if row.facts.get("query"):
        return row.facts["query"]
    ending = (
        "provide the correct option letter, e.g., A, B, C, D."
        if is_choice
        else "provide the final value, e.g., 1, 2.5, 300."
    )
    if row.facts["version"] == VISION_ONLY:
        asked = "According to the question shown in the image, please directly answer the question"
        return f"{asked} and {ending}"
    return lines(
        f"Please directly answer the question and {ending}", f"Question: {row.question}", options
    )


def metric_name(version: str) -> str:
    """`vision_only` for `Vision Only`."""
    return version.lower().replace(" ", "_")


def score(replies: Sequence[ScoredReply]) -> Units:
    """The accuracy of each version, and `overall`: that of the five versions together."""
    five = [reply for reply in replies if reply.row.facts["version"] in VERSIONS]
    parts = {
        metric_name(name): [r for r in replies if r.row.facts["version"] == name]
        for name in (*VERSIONS, TEXT_ONLY)
    }
    return {"overall": row_units(five), **{name: row_units(part) for name, part in parts.items()}}


BENCHMARK = Benchmark(
    name="mathverse",
    title="MathVerse testmini",
    rows=3940,
    hub="AI4Math/MathVerse:testmini[testmini]",
    from_hub=from_hub,
    from_folder=from_folder,
    prompt=prompt,
    has_no_picture=lambda row: row.facts["version"] == TEXT_ONLY,
    asks_in_pictures=True,
    rules={"auto": by_checker("auto")},
    score=score,
    headline="overall",
    categories=("subject", "subfield", "type"),
    is_counted=lambda row: row.facts["version"] in VERSIONS,
    licence="MIT: evaluation",
    source="arXiv 2403.14624; github.com/ZrrSkywalker/MathVerse",
    note="The authors let a language model extract and judge.",
)

"""Multiple-choice sets whose metric is plain accuracy: AI2D, MMStar, LogicVista, V*, and others."""

import re
from collections.abc import Mapping
from typing import Any

from vistill.evaluation.benchmarks.benchmark import Benchmark, BenchmarkRow, by_checker
from vistill.evaluation.benchmarks.wording import (
    DIRECT_LETTER,
    LAST_LINE,
    PLAIN,
    ask_letter,
    letters,
    lines,
    option_lines,
)

#: `Options: A: red, B: blue` at the end of a question of MMStar.
MMSTAR_OPTION = re.compile(r"(?:^|, |\n)([A-D]): (.*?)(?=(?:, |\n)[A-D]: |$)", re.DOTALL)
#: `(A) red` or `A. red` on a line of its own.
LINE_OPTION = re.compile(r"^\(?([A-F])[).] ?(.*)$", re.MULTILINE)


def as_stored(row: BenchmarkRow, protocol: str) -> str:
    """The question, which holds its options, and the request for a letter."""
    asks = DIRECT_LETTER.lower().rstrip(".") in row.question.lower()
    return row.question if asks or protocol == PLAIN else lines(row.question, DIRECT_LETTER)


def letter_by_index(value: Any) -> str:
    """The letter of an index counted from 0; a letter as it is."""
    text = str(value).strip("() .")
    return chr(ord("A") + int(text)) if text.isdigit() else text


def in_order(options: list[tuple[str, str]]) -> tuple[str, ...]:
    """Options read from a question; none if their letters are not A, B, C, ..."""
    names = [name for name, _ in options]
    return tuple(text.strip() for _, text in options) if names == letters(len(names)) else ()


def read_ai2d(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row of lmms-lab/ai2d."""
    return BenchmarkRow(
        id=str(raw.get("id", "")),
        question=str(raw["question"]),
        images=(raw["image"],),
        answer=letter_by_index(raw["answer"]),
        choices=tuple(map(str, raw["options"])),
    )


def read_mmstar(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row of Lin-Chen/MMStar."""
    question = str(raw["question"])
    _, _, listed = question.partition("Options:")
    return BenchmarkRow(
        id=f"mmstar_{raw['index']}",
        question=question,
        images=(raw["image"],),
        answer=str(raw["answer"]).strip(),
        choices=in_order(MMSTAR_OPTION.findall(listed.strip())),
        facts={"category": str(raw["category"]), "subcategory": str(raw["l2_category"])},
    )


def read_logicvista(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row of lscpku/LogicVista; the gold answer is one letter or several (`A, C`)."""
    return BenchmarkRow(
        id=str(raw.get("id", "")),
        question=str(raw["question"]),
        images=(raw["image"],),
        answer=str(raw["answer"]).strip(),
    )


def read_visualpuzzles(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row of neulab/VisualPuzzles; without options they are in the picture."""
    return BenchmarkRow(
        id=f"visualpuzzles_{raw['id']}",
        question=str(raw["question"]),
        images=(raw["image"],),
        answer=str(raw["answer"]).strip(),
        choices=tuple(map(str, raw["options"] or "ABCD")),
        facts={"category": str(raw["category"])},
    )


def visualpuzzles_prompt(row: BenchmarkRow, protocol: str) -> str:
    """Question, options, and the request to end with `Answer: $LETTER`."""
    options = "Options:\n" + option_lines(row.choices, "({letter}) {text}")
    if list(row.choices) == letters(len(row.choices)):
        options = "Options: Choose from (A) (B) (C) (D) in the image."
    request = (
        "Solve the multiple-choice question and then answer with the option letter from the given"
        f" choices. {LAST_LINE}"
    )
    return lines(f"Question: {row.question}", options, "" if protocol == PLAIN else request)


def read_vstar(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row of craigwu/vstar_bench."""
    text = str(raw["text"])
    return BenchmarkRow(
        id=f"vstar_{raw['question_id']}",
        question=text,
        images=(raw["image"],),
        answer=str(raw["label"]).strip(),
        choices=in_order(LINE_OPTION.findall(text.replace(DIRECT_LETTER, ""))),
        facts={"category": str(raw["category"])},
    )


def read_vispuzzle(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row of ThinkMorph/VisPuzzle."""
    return BenchmarkRow(
        id=f"vispuzzle_{raw['pid']}",
        question=str(raw["question"]),
        images=(raw["problem_image"],),
        answer=str(raw["answer"]).strip("() "),
        choices=tuple(map(str, raw["options"])),
    )


def read_sat(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row of array/SAT: several pictures, and answers as texts."""
    choices = tuple(map(str, raw["answers"]))
    gold = str(raw["correct_answer"])
    return BenchmarkRow(
        id=str(raw.get("id", "")),
        question=str(raw["question"]),
        images=tuple(raw["image_bytes"]),
        answer=letters(len(choices))[choices.index(gold)] if gold in choices else gold,
        choices=choices,
        facts={"type": str(raw.get("question_type", ""))},
    )


CHOICE = {"choice": by_checker("choice")}
AI2D = Benchmark(
    name="ai2d",
    title="AI2D test",
    rows=3088,
    hub="lmms-lab/ai2d[test]",
    from_hub=read_ai2d,
    prompt=ask_letter,
    rules=CHOICE,
    licence="not verified: evaluation",
    source="arXiv 1603.07396",
)
MMSTAR = Benchmark(
    name="mmstar",
    title="MMStar",
    rows=1500,
    hub="Lin-Chen/MMStar[val]",
    from_hub=read_mmstar,
    prompt=as_stored,
    rules=CHOICE,
    categories=("category", "subcategory"),
    licence="not verified: evaluation",
    source="arXiv 2403.20330",
)
LOGICVISTA = Benchmark(
    name="logicvista",
    title="LogicVista",
    rows=448,
    hub="lscpku/LogicVista[test]",
    from_hub=read_logicvista,
    prompt=lambda row, protocol: row.question,
    rules=CHOICE,
    licence="Apache-2.0 as declared; many items are marked as not licensed: evaluation",
    source="arXiv 2407.04973",
    note="Sets of letters must be equal; their order does not count.",
)
VISUALPUZZLES = Benchmark(
    name="visualpuzzles",
    title="VisualPuzzles",
    rows=1168,
    hub="neulab/VisualPuzzles[train]",
    from_hub=read_visualpuzzles,
    prompt=visualpuzzles_prompt,
    rules=CHOICE,
    categories=("category",),
    licence="MIT: evaluation",
    source="arXiv 2504.10342",
    note="The split was moved between `train` and `test`.",
)
VSTAR = Benchmark(
    name="vstar",
    title="V*",
    rows=191,
    hub="craigwu/vstar_bench[test]",
    from_hub=read_vstar,
    prompt=as_stored,
    rules=CHOICE,
    categories=("category",),
    licence="MIT for the code: evaluation",
    source="arXiv 2312.14135",
    paper_rows={"visual_opsd": 191},
)
VISPUZZLE = Benchmark(
    name="vispuzzle",
    title="VisPuzzle",
    rows=400,
    hub="ThinkMorph/VisPuzzle[test]",
    from_hub=read_vispuzzle,
    prompt=ask_letter,
    rules=CHOICE,
    licence="not verified: evaluation",
    source="arXiv 2510.27492",
    paper_rows={"visual_opsd": 200},
)
SAT = Benchmark(
    name="sat",
    title="SAT test",
    rows=150,
    hub="array/SAT[test]",
    from_hub=read_sat,
    prompt=ask_letter,
    rules=CHOICE,
    categories=("type",),
    licence="not verified: evaluation",
    source="arXiv 2412.07755",
    paper_rows={"visual_opsd": 150},
)

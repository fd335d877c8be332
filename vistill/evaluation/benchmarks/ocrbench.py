"""OCRBench: the gold answer occurs in the reply."""

from collections.abc import Mapping
from typing import Any

from vistill.answers.characters import outside_thoughts
from vistill.answers.extract import Take
from vistill.answers.math_process import MathJudge
from vistill.answers.verdict import Verdict
from vistill.evaluation.benchmarks.benchmark import Benchmark, BenchmarkRow

#: Handwritten formulas, which are compared without blanks and with case.
FORMULAS = "HME100k"


def from_hub(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row of echo840/OCRBench, which has no id: the reader numbers the rows."""
    return BenchmarkRow(
        id=str(raw.get("id", "")),
        question=str(raw["question"]),
        images=(raw["image"],),
        answer=golds_of(raw["answer"]),
        facts={"set": str(raw["dataset"]), "type": str(raw["question_type"])},
    )


def golds_of(answer: Any) -> tuple[str, ...]:
    """One answer or several."""
    return (answer,) if isinstance(answer, str) else tuple(map(str, answer))


def from_folder(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row in our form, with all golds in `extra.answers`."""
    extra = raw["extra"]
    return BenchmarkRow(
        id=raw["id"],
        question=raw["question"],
        images=tuple(raw["images"]),
        answer=golds_of(extra["answers"]),
        facts={"set": extra["dataset_name"], "type": extra["type"]},
    )


def plain(text: str, is_formula: bool) -> str:
    """What the authors compare: line breaks as blanks; formulas without blanks, else lower case."""
    joined = text.strip().replace("\n", " ")
    return joined.replace(" ", "") if is_formula else joined.lower()


def judge(reply: str, row: BenchmarkRow, take: Take, math: MathJudge) -> Verdict:
    """Whether any gold answer occurs in the reply, behind its thoughts if it has some."""
    text = "".join(reply[start:end] for start, end in outside_thoughts(reply))
    is_formula = row.facts["set"] == FORMULAS
    golds = [plain(gold, is_formula) for gold in row.answer]
    seen = plain(text, is_formula)
    hits = [gold for gold in golds if gold and gold in seen]
    if not seen:
        return Verdict(None, False, gold_form=" | ".join(golds), reason="the reply is empty")
    reason = "" if hits else "not in the reply"
    return Verdict(
        text.strip(), bool(hits), "contains", None, seen[:200], " | ".join(golds), reason, "ocr"
    )


BENCHMARK = Benchmark(
    name="ocrbench",
    title="OCRBench",
    rows=1000,
    hub="echo840/OCRBench[test]",
    from_hub=from_hub,
    from_folder=from_folder,
    prompt=lambda row, protocol: row.question,
    rules={"ocr": judge},
    categories=("type", "set"),
    licence="MIT for the annotations; pictures of more than 20 sets: evaluation",
    source="arXiv 2305.07895; github.com/Yuliang-Liu/MultimodalOCR",
    note="The published score out of 1,000 is ten times the percentage.",
)

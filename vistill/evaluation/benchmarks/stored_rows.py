"""Rows of benchmarks as files hold them: lists that are stored as text, and cells that are empty.

CSV and TSV have no lists, so `['a', 'b']` is read as two options, not as ten letters.
"""

from collections.abc import Mapping
from typing import Any

from vistill.data.gold import is_missing, read_options
from vistill.data.stored_text import STARTS, collection_in_text
from vistill.errors import DataError
from vistill.evaluation.benchmarks.benchmark import Benchmark, BenchmarkRow

#: Columns with options, with pictures, and with mappings, in our form or in that of a hub.
OPTIONS = ("choices", "options", "answers")
PICTURES = ("images",)
MAPPINGS = ("extra", "metadata")
GOLDS = ("answer", "Correct Answer", "correct_answer", "groundtruth", "gt_answer", "label")
#: Columns with one text; an empty cell is an empty text, not the word None.
TEXTS = (*GOLDS, "id", "group", "question", "Question", "problem", "text")
#: Texts of a mapping that holds nothing.
EMPTY = ("", "{}")
#: What stands for a gold answer that is not published (MMMU's test split).
HIDDEN = "?"


def decoded_cells(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose options, pictures and mappings are no longer texts.

    Raises:
        DataError: D104, options or a mapping cannot be read.
    """
    return {name: decoded(name, value) for name, value in raw.items()}


def decoded(name: str, value: Any) -> Any:
    """The value of one cell."""
    if name in TEXTS and is_missing(value):
        return ""
    if name in OPTIONS:
        return None if is_missing(value) else read_options(value, "")
    if name in PICTURES and isinstance(value, str):
        listed = collection_in_text(value)
        return listed if isinstance(listed, list) else [value]
    if name in MAPPINGS and isinstance(value, str):
        return mapping_in_text(name, value)
    if name in GOLDS and isinstance(value, str) and value.strip().startswith(STARTS):
        return collection_in_text(value)
    return str(value) if name in TEXTS and isinstance(value, int | float) else value


def mapping_in_text(name: str, text: str) -> Mapping[str, Any]:
    """The mapping that a text spells (D104 if it spells none)."""
    mapping = {} if text.strip() in EMPTY else collection_in_text(text)
    if not isinstance(mapping, Mapping):
        raise unusable_row(f"{name} is no mapping: {text!r:.60}", 'write it as {"name": "value"}')
    return mapping


def check_row(benchmark: Benchmark, row: BenchmarkRow) -> None:
    """D104 for a row without question, picture or gold answer, and for a letter of no option."""
    if not row.question.strip() and not benchmark.asks_in_pictures:
        raise unusable_row("there is no question", "write the question")
    if all(image is None for image in row.images) and not benchmark.has_no_picture(row):
        raise unusable_row("there is no picture", "write the picture, or leave the row out")
    golds = row.answer if isinstance(row.answer, tuple) else (row.answer,)
    if not golds or any(not gold.strip() for gold in golds):
        raise unusable_row("there is no gold answer", "write the answer, or leave the row out")
    for gold in golds if row.choices else ():
        if gold in row.choices:
            continue
        is_letter = len(gold) == 1 and "A" <= gold <= "Z"
        if gold == HIDDEN or (is_letter and ord(gold) - ord("A") >= len(row.choices)):
            what = f"the gold answer is {gold}, and the row has {len(row.choices)} options"
            raise unusable_row(what, "take a split whose answers are published, or correct the row")


def unusable_row(what: str, fix: str) -> DataError:
    """D104 for a row of a benchmark."""
    return DataError("D104", what, why="a score on such a row would say nothing", fix=fix)

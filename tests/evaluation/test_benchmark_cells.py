"""Cells of benchmark rows as files hold them: lists as text, empty cells, damaged golds."""

import csv
import json

import pytest
from benchmark_rows import ROWS
from PIL import Image

from vistill.data.settings import DataSettings
from vistill.errors import DataError
from vistill.evaluation.benchmarks.catalogue import BENCHMARKS
from vistill.evaluation.benchmarks.protocols import PROTOCOLS
from vistill.evaluation.benchmarks.sources import make_prompts, read_benchmark

PLAIN = {
    "id": "1", "images": ["bild ü.png"], "question": "Which?", "answer": "A",
    "choices": ["a vase", "a bowl"], "group": "", "extra": {"subject": "Art"},
}  # fmt: skip


def read(folder, name, rows, form="jsonl"):
    """The rows of a benchmark that a file of some form holds."""
    (folder / name).mkdir()
    Image.new("RGB", (32, 32)).save(folder / name / "bild ü.png")
    file = folder / name / f"data.{form}"
    if form == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with file.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, rows[0], delimiter="\t" if form == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return read_benchmark(BENCHMARKS[name], folder, "official", None)


@pytest.mark.parametrize("form", ["csv", "tsv"])
@pytest.mark.parametrize("write", [str, json.dumps])
def test_our_form_is_read_from_tables_without_lists(form, write, tmp_path):
    texts = {name: write(PLAIN[name]) for name in ("images", "choices", "extra")}
    part = read(tmp_path, "mmmu", [{**PLAIN, **texts}], form)
    ((row, prompt),), failed = make_prompts(part, PROTOCOLS["official"], DataSettings())
    assert (part.failed, failed, len(prompt.images)) == ([], [], 1)
    assert (row.choices, row.answer, row.facts) == (("a vase", "a bowl"), "A", {"subject": "Art"})


@pytest.mark.parametrize("name", ["ai2d", "vispuzzle", "cv_bench", "sat"])
def test_options_as_text_are_options_and_not_letters(name, tmp_path):
    raw = dict(ROWS[name][0])
    (column,) = {"options", "choices", "answers"} & raw.keys()
    expected = BENCHMARKS[name].read_row(raw).choices
    assert len(expected) >= 2
    (row,) = read(tmp_path, name, [{**raw, column: str(list(raw[column]))}]).rows
    assert (row.choices, row.answer) == (expected, BENCHMARKS[name].read_row(raw).answer)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"answer": None}, "there is no gold answer"),
        ({"answer": ""}, "there is no gold answer"),
        ({"answer": []}, "there is no gold answer"),
        ({"answer": ["", "A"]}, "there is no gold answer"),
        ({"answer": "?"}, "the gold answer is ?, and the row has 2 options"),
        ({"answer": "C"}, "the gold answer is C, and the row has 2 options"),
        ({"question": None}, "there is no question"),
        ({"question": " "}, "there is no question"),
        ({"images": []}, "there is no picture"),
        ({"images": [None, None]}, "there is no picture"),
        ({"choices": "a vase"}, "the choices are not a list of texts: 'a vase'"),
        ({"extra": "Art"}, "extra is no mapping: 'Art'"),
        ({"extra": ["Art"]}, "'list' object has no attribute 'items'"),
    ],
)
def test_a_row_that_nothing_can_be_right_on_is_counted_and_not_scored(change, what, tmp_path):
    part = read(tmp_path, "mmmu", [PLAIN, {**PLAIN, "id": "2", **change}])
    assert [row.id for row in part.rows] == ["1"]
    assert [(one["code"], one["what"]) for one in part.failed] == [("D104", what)]


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"answer": 0}, "0"),
        ({"answer": 0.5}, "0.5"),
        ({"answer": ["3", 4]}, ("3", "4")),
        ({"answer": "['3', '4']"}, ("3", "4")),
        ({"answer": "[3, 4]"}, "[3, 4]"),
    ],
)
def test_a_gold_answer_keeps_its_value(change, answer, tmp_path):
    (row,) = read(tmp_path, "mmmu", [{**PLAIN, "choices": [], **change}]).rows
    assert row.answer == answer


def test_an_empty_gold_cell_of_a_hub_table_is_not_the_word_none(tmp_path):
    raw = ROWS["chartqa"][0]
    part = read(tmp_path, "chartqa", [raw, {**raw, "answer": None}])
    assert (len(part.rows), [one["code"] for one in part.failed]) == (1, ["D104"])


def test_options_by_letter_are_texts_and_an_id_without_value_is_numbered(tmp_path):
    choices = {"A": "a vase", "B": "a bowl"}
    (row,) = read(tmp_path, "mmmu", [{**PLAIN, "id": None, "choices": choices}]).rows
    assert (row.id, row.choices) == ("mmmu_00000", ("a vase", "a bowl"))


def test_questions_of_mmmu_without_the_column_of_options_are_not_open_ones(tmp_path):
    raw = {name: value for name, value in ROWS["mmmu"][0].items() if name != "options"}
    with pytest.raises(DataError) as error:
        read(tmp_path, "mmmu", [raw])
    assert error.value.code == "D101"
    plain = {name: value for name, value in PLAIN.items() if name != "answer"}
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError) as error:
        read(tmp_path / "other", "mmmu", [plain])
    assert error.value.code == "D101"


def test_a_row_without_its_picture_is_counted_where_the_benchmark_has_one(tmp_path):
    raw = ROWS["ai2d"][0]
    part = read(tmp_path, "ai2d", [raw, {**raw, "image": None}])
    assert (len(part.rows), [one["what"] for one in part.failed]) == (1, ["there is no picture"])
    verse = ROWS["mathverse"][0] | {"problem_version": "Text Only", "image": None}
    (tmp_path / "other").mkdir()
    part = read(tmp_path / "other", "mathverse", [verse, {**verse, "sample_index": "x1"}])
    assert (len(part.rows), part.failed) == (2, [])

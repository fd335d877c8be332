"""How many rows a source has, for the display of a run."""

import json

import pytest

from vistill.data.loading import load_source
from vistill.data.settings import DataSettings
from vistill.data.sources import count_rows
from vistill.phases import report_phases

ROWS = [{"question": f"How many, {i}?", "answer": str(i)} for i in range(5)]


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("a.jsonl", "\n".join(map(json.dumps, ROWS)), 5),
        ("b.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS), 5),
        ("c.jsonl", "\ufeff" + "".join(json.dumps(row) + "\n" for row in ROWS), 5),
        ("d.jsonl", json.dumps(ROWS), None),
        ("e.csv", "question,answer\nHow?,1\n", None),
        ("f.jsonl", "", None),
    ],
)
def test_rows_are_counted_where_that_is_cheap(tmp_path, name, text, rows):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert count_rows(str(tmp_path / name)) == rows
    assert count_rows(str(tmp_path / name), 3) == (None if rows is None else 3)


def test_the_sum_of_several_files_and_unknown_sources(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert count_rows(str(tmp_path / "*.jsonl")) == 10
    assert count_rows("hf:owner/name[train]") is None


def test_loading_rows_is_a_phase_with_a_total(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    records = []
    source = str(tmp_path / "a.jsonl")
    with report_phases(records.append):
        load_source(source, DataSettings(train=source, text_only="plain"), "train", None)
    assert records[0] == {"phase": "checking rows", "done": 0, "total": 5}

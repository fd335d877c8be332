"""The cells of a table on the benchmarks of its paper."""

import json

import pytest
from PIL import Image

from vistill.cli.main import entry
from vistill.reproduction.suites import measured_columns, plain_name, suite_folder, suite_of
from vistill.reproduction.tables import find_table, table_names
from vistill.runs.storage import write_json

SHORT = [
    "--tiny", "--cell", "opd", "train.steps=1", "train.prompts_per_step=2", "eval.limit=2",
    "eval.final_limit=2", "eval.extra_limit=2", "eval.advantage=false", "rollout.per_prompt=2",
    "rollout.max_new_tokens=8", "eval.max_new_tokens=4",
]  # fmt: skip


def test_every_table_has_a_suite_and_its_columns_are_of_it_but_two():
    from vistill.evaluation.benchmarks.catalogue import find_suite

    unknown = set()
    for name in table_names():
        table = find_table(name)
        suite = find_suite(suite_of(table))
        known = {plain_name(t) for t in [c.title for c in suite.columns] + list(suite.averages)}
        unknown |= {column for column in table.columns if plain_name(column) not in known}
    assert unknown == {"Mean"}  # of three benchmarks, in Visual-OPSD's sweeps


def test_values_of_two_modes_stand_together_and_a_part_is_marked(tmp_path):
    run = tmp_path / "cell"
    task = {"subset": "", "failed": [], "missing_replies": 0}
    suite = {
        "name": "vgs",
        "modes": {
            "greedy": {
                "columns": {"LogicVista": 0.5, "MathVision": 0.25}, "averages": {"Avg": None}
            },
            "sampled": {"columns": {"LogicVista": 0.456, "MathVision": None}, "averages": {}},
        },
    }  # fmt: skip
    results = {
        "suite": suite,
        "tasks": {"logicvista": task, "mathvision": task | {"subset": "ours"}},
    }
    suite_folder(run, start=False).mkdir(parents=True)
    write_json(suite_folder(run, start=False) / "results.json", results)
    columns = ["LogicVista", "MathVision", "Avg", "VlmsAreBlind"]
    assert measured_columns(columns, run, start=False) == {
        "LogicVista": "50.0/45.6", "MathVision": "25.0*", "Avg": None, "VlmsAreBlind": None,
    }  # fmt: skip
    assert set(measured_columns(columns, run, start=True).values()) == {None}


@pytest.mark.more
def test_a_tiny_table_shows_the_values_of_its_suite_and_asks_nothing_again(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets/ocrbench").mkdir(parents=True)
    Image.new("RGB", (32, 32), (9, 90, 200)).save(tmp_path / "sets/ocrbench/a.png")
    row = {"dataset": "IIIT5K", "question": "What is written?", "question_type": "Text",
           "answer": ["0", "1"], "image": "a.png"}  # fmt: skip
    (tmp_path / "sets/ocrbench/data.jsonl").write_text(json.dumps(row) + "\n")
    words = ["reproduce", "va_opd-1", *SHORT, "--data", "sets", "--json"]
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            entry(words)
        shown = capsys.readouterr()
        assert stop.value.code == 0, shown.err
        values = json.loads(shown.out)
        rows = {row["label"]: row for row in values["rows"]}
        for label in ("Base", "OPD"):
            assert rows[label]["ours"]["OCRBench"] in ("0.0*", "100.0*")
            assert rows[label]["ours"]["AI2D"] is None
        assert rows["GRPO"]["ours"]["OCRBench"] is None
        log = tmp_path / "runs/paper_va_opd-tiny/suites/opd/samples/ocrbench.va_opd.jsonl"
        logs = sorted((tmp_path / "runs").rglob("suites/*/samples/*.jsonl"))
        assert [one.parent.parent.name for one in logs] == ["opd", "opd-start"], log
        assert all(len(one.read_text().splitlines()) == 2 for one in logs)

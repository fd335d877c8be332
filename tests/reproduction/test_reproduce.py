"""`vistill reproduce`: a table whole, with a cell that fails, and killed."""

import json
import os
import signal
import subprocess
import sys

import pytest

from vistill.cli.main import entry
from vistill.faults import VARIABLE
from vistill.reproduction.cells import make_cells, read_cell
from vistill.reproduction.results import TableResult, format_markdown
from vistill.reproduction.runner import fix_for_cell
from vistill.reproduction.tables import find_table

#: The settings of the shortest run of a cell.
SHORT = [
    "--tiny",
    "eval.limit=2",
    "eval.final_limit=2",
    "eval.extra_limit=2",
    "eval.advantage=false",
]
SHORT += ["train.prompts_per_step=2", "rollout.per_prompt=2", "rollout.max_new_tokens=64"]


def run_verb(words, capsys):
    with pytest.raises(SystemExit) as stop:
        entry(["reproduce", *words])
    shown = capsys.readouterr()
    return stop.value.code, shown.out, shown.err


def test_a_table_without_a_run_has_the_papers_values(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    table = find_table("vgs-1")
    cells = make_cells(table)
    result = TableResult(table, cells, cells[0].arm.folder.parent, tiny=False)
    values = result.to_dict()
    assert values["complete"] is False
    assert {row["state"] for row in values["rows"]} == {"not run"}
    steered = next(row for row in values["rows"] if row["label"] == "2B VGS-LP")
    assert steered["paper"]["Avg"] == "46.10/46.14"
    assert steered["ours"]["Avg"] is None
    files = result.write()
    assert json.loads(files["json"].read_text()) == values
    assert "| 2B VGS-LP | 48.07/48.34 |" in files["md"].read_text()
    page = files["html"].read_text()
    assert "46.10/46.14" in page
    assert "Also run" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_page_names_the_cells_that_run_for_other_ones(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    table = find_table("vgs-2")
    cells = make_cells(table)
    result = TableResult(table, cells, cells[0].arm.folder.parent, tiny=False)
    page = result.write()["html"].read_text()
    assert "Also run: teacher (not run)" in page


def test_the_fix_of_a_failed_cell_is_for_that_cell_alone():
    fix = "train.memory=4   or   data.train=FILE.jsonl run=NEW --cell x"
    expected = (
        "stages.grpo.train.memory=4   or   stages.grpo.data.train=FILE.jsonl run=NEW --cell x"
    )
    assert fix_for_cell(fix, "grpo") == expected
    for key in ("data.sets.A.weight", "teachers.math.model", "reward.extra.short"):
        assert fix_for_cell(f"{key}=1", "grpo") == f"stages.grpo.{key}=1"


@pytest.mark.more
def test_a_cell_that_fails_stops_no_other_and_its_fix_finishes_the_table(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    words = ["va_opd-masks", *SHORT, "--cell", "opd", "--cell", "mask_low", "--json"]
    bad = [*words, "stages.opd.train.memory=0.000001"]
    code, out, err = run_verb(bad, capsys)
    values = json.loads(out)
    states = {row["cell"]: row["state"] for row in values["rows"]}
    assert (code, states["opd"], states["mask_low"]) == (1, "failed", "finished")
    assert states["mask_high"] == "not run"
    assert "C104" in values["rows"][0]["error"]
    assert "error[A102]: 1 of 2 cells of va_opd-masks failed: opd" in err
    fix = next(line for line in err.splitlines() if line.startswith("fix"))
    setting = fix.split()[1]
    assert setting.startswith("stages.opd.train.memory=")
    before = (tmp_path / "runs/va_opd-tiny/mask_low/result.json").stat().st_mtime_ns
    code, out, err = run_verb([*words, setting], capsys)
    assert code == 0
    assert "mask_low: already finished" in err
    assert (tmp_path / "runs/va_opd-tiny/mask_low/result.json").stat().st_mtime_ns == before
    rows = {row["cell"]: row for row in json.loads(out)["rows"]}
    assert rows["opd"]["state"] == "finished"
    assert rows["opd"]["held_out"]["rows"] == 2
    assert rows["opd"]["chosen_by"]


@pytest.mark.more
def test_missing_data_are_one_error_and_a_cell_waits_for_the_one_it_needs(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    words = [
        "va_opd-masks",
        *SHORT,
        "data.train=nowhere.jsonl",
        "--cell",
        "opd",
        "--cell",
        "mask_low",
    ]
    code, out, err = run_verb(words, capsys)
    assert code == 3
    assert 'error[D102]: data file "nowhere.jsonl" does not exist' in err
    assert out.count("failed: D102") == 2
    words = ["vgs-1", *SHORT, "stages.teacher.student.model=vistill:nothing", "--cell", "vgs_2b"]
    code, out, err = run_verb(words, capsys)
    assert code == 1
    assert "1 of 2 cells of vgs-1 failed: teacher; not started: vgs_2b" in err
    assert "| not run: needs teacher |" in out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_inside_and_between_cells_it_ends_with_the_same_table(monkeypatch, tmp_path, capsys):
    words = ["va_opd-components", *SHORT, "--cell", "opd", "--cell", "va_opd"]

    def start(fault):
        command = [sys.executable, "-m", "vistill", "reproduce", *words]
        environment = os.environ | {VARIABLE: fault, "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            command, cwd=tmp_path / "killed", env=environment, capture_output=True, check=False
        ).returncode

    (tmp_path / "killed").mkdir()
    (tmp_path / "whole").mkdir()
    # in a step of the first cell; after its last step; before the first step of the second cell
    # is logged (the finished first one makes no visit)
    for fault in ("log.after_metrics:kill@1", "report.begin:kill@1", "log.before_metrics:kill@1"):
        assert start(fault) == -signal.SIGKILL
    for folder in ("killed", "whole"):
        monkeypatch.chdir(tmp_path / folder)
        code, _, err = run_verb(words, capsys)
        assert code == 0, err
    cells = make_cells(find_table("va_opd-components"), ("train.steps=2",), tiny=True)
    for name in ("opd", "va_opd"):
        folders = [tmp_path / folder / "runs/va_opd-tiny" / name for folder in ("killed", "whole")]
        for file in ("metrics.jsonl", "evaluations.jsonl"):
            first, second = ((folder / file).read_bytes() for folder in folders)
            assert first == second, file
        results = [json.loads((folder / "result.json").read_text()) for folder in folders]
        assert results[0] == results[1]
        assert (folders[0] / "report.html").is_file()
    tables = [
        (tmp_path / folder / "runs/va_opd-tiny/tables/va_opd-components.json").read_text()
        for folder in ("killed", "whole")
    ]
    assert tables[0] == tables[1]
    assert cells[0].name == "opd"


def test_a_cell_is_read_from_its_folder_alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (cell, *_) = make_cells(find_table("va_opd-masks"), (), tiny=True)
    assert read_cell(cell.arm).state == "not run"
    cell.arm.folder.mkdir(parents=True)
    error = {"code": "C104", "what": "too little memory"}
    (cell.arm.folder / "error.json").write_text(json.dumps(error))
    assert (read_cell(cell.arm).state, read_cell(cell.arm).error) == (
        "failed", "C104: too little memory",
    )  # fmt: skip
    (cell.arm.folder / "error.json").unlink()
    (cell.arm.folder / "metrics.jsonl").write_text('{"step": 1}\n')
    assert read_cell(cell.arm).state == "not finished"
    table = find_table("va_opd-masks")
    values = TableResult(
        table, [cell, *make_cells(table, (), tiny=True)[1:]], tmp_path, True
    ).to_dict()
    assert "| OPD | 0.0 | - | - | not finished |" in format_markdown(values)

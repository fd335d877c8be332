"""`vistill export --inspect`: logs of Inspect.

The form is what `inspect_ai` 0.3.285 reads (`read_eval_log`, `list_eval_logs`); it is no package of
the tests, so the fields that its models require are listed here.
"""

import json
import re

import pytest
from test_lm_judge import write_log

from vistill.cli.main import entry

#: Fields without a default in Inspect's models.
REQUIRED = {
    "eval": {"created", "task", "dataset", "model", "config"},
    "sample": {"id", "epoch", "input", "target"},
    "score": {"name", "scorer"},
    "metric": {"name", "value"},
}
#: `inspect view` lists files with such names only.
NAME = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d[^_]*_[^_]+_[^_]+\.json")


def export(capsys, *words):
    code = 0
    try:
        entry(["export", *map(str, words)])
    except SystemExit as stop:
        code = stop.code or 0
    return code, capsys.readouterr()


def test_samples_and_metrics_are_written_as_inspect_reads_them(tmp_path, capsys):
    choices = {"answer": "B", "choices": ("red", "blue")}
    log = write_log(tmp_path, "mmstar", ("B", "red"), **choices)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[1]["verdicts"]["choice"] |= {"correct": True, "extracted": "B"}
    lines[2]["finish"] = "length"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, shown = export(capsys, log, "--inspect", "--to", tmp_path / "out")
    assert code == 0, shown.err
    (file,) = (tmp_path / "out").iterdir()
    assert NAME.fullmatch(file.name)
    record = json.loads(file.read_text())
    assert (record["version"], record["status"]) == (2, "success")
    assert record["eval"].keys() >= REQUIRED["eval"]
    assert all(sample.keys() >= REQUIRED["sample"] for sample in record["samples"])
    (score,) = record["results"]["scores"]
    assert score.keys() >= REQUIRED["score"]
    assert score["metrics"]["accuracy"].keys() >= REQUIRED["metric"]
    assert score["metrics"]["accuracy"]["value"] == 0.5
    right, wrong = record["samples"]
    assert [one["scores"]["choice"]["value"] for one in (right, wrong)] == ["C", "I"]
    assert right["messages"][-1]["content"] == right["output"]["completion"] == "B"
    assert wrong["output"]["choices"][0]["stop_reason"] == "max_tokens"
    assert right["model_usage"] == {"vistill/m": right["output"]["usage"]}
    assert right["output"]["usage"]["output_tokens"] == 3
    assert (right["target"], right["choices"], right["epoch"]) == ("B", ["red", "blue"], 1)


def test_a_log_of_inspect_that_exists_is_not_replaced(tmp_path, capsys):
    log = write_log(tmp_path, "mmstar", ("B",), answer="B", choices=("red", "blue"))
    assert export(capsys, tmp_path, "--inspect", "--to", tmp_path / "out")[0] == 0
    code, shown = export(capsys, log, "--inspect", "--to", tmp_path / "out")
    assert (code, "error[S608]" in shown.err) == (6, True)


def test_signals_are_written_where_they_were_measured(tmp_path, capsys):
    log = write_log(tmp_path, "mmstar", ("B", "A"), answer="B", choices=("red", "blue"))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[1]["signals"] = {"log_prob": -0.5, "visual_advantage": None}
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert export(capsys, log, "--inspect", "--to", tmp_path / "out")[0] == 0
    (file,) = (tmp_path / "out").iterdir()
    first, second = json.loads(file.read_text())["samples"]
    assert first["metadata"]["signals"] == {"log_prob": -0.5, "visual_advantage": None}
    assert "signals" not in second["metadata"]


def test_a_log_without_the_verdict_of_a_rule_is_judged_again_by_its_fix(tmp_path, capsys):
    """A version of vistill before a rule wrote it."""
    log = write_log(tmp_path, "mmmu", ("(B)",), answer="B", choices=("red", "blue"))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    del lines[1]["verdicts"]["official"]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, shown = export(capsys, log, "--inspect", "--to", tmp_path / "out")
    assert code == 6
    assert "error[S605]: mmmu.official.jsonl has no verdict of the rule official" in shown.err
    fix = re.search(r"vistill rescore \S+ --out (\S+)", shown.err)
    with pytest.raises(SystemExit, match="0"):
        entry(["rescore", str(log), "--out", str(tmp_path / fix[1])])
    assert export(capsys, tmp_path / fix[1], "--inspect", "--to", tmp_path / "out")[0] == 0
    (file,) = (tmp_path / "out").iterdir()
    (score,) = json.loads(file.read_text())["results"]["scores"]
    assert score["metrics"]["official"]["value"] == 1.0


def test_a_blind_mode_is_a_file_that_the_viewer_lists(tmp_path, capsys):
    log = write_log(tmp_path, "mmstar", ("B",), answer="B", choices=("red", "blue"))
    log.write_text(log.read_text().replace('"greedy"', '"greedy/text_only"'))
    code, shown = export(capsys, log, "--inspect", "--to", tmp_path / "out")
    assert code == 0, shown.err
    (file,) = (tmp_path / "out").iterdir()
    assert file.is_file()
    assert NAME.fullmatch(file.name)

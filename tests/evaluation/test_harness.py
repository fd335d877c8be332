"""`vistill harness`: folders for lmms-eval and VLMEvalKit, and their results.

lmms-eval 0.7.3's own loader reads every overlay task, and its own tracker writes result files of
the form used here; so do the scorers of ms-vlmeval 0.0.20. Neither is a package of the tests.
"""

import json
import os
import subprocess
import sys

import pytest
import yaml

from vistill.cli.main import entry
from vistill.evaluation.benchmarks.catalogue import BENCHMARKS
from vistill.evaluation.harness.programs import PROGRAMS


def run_verb(capsys, *words):
    code = 0
    try:
        entry(["harness", *map(str, words)])
    except SystemExit as stop:
        code = stop.code or 0
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def write(capsys, folder, *words, program="lmms-eval"):
    code, _, err = run_verb(capsys, program, "owner/model", "--to", folder, *words)
    assert code == 0, err
    return json.loads((folder / "vistill.json").read_text())


def test_every_task_of_a_program_is_a_benchmark_with_its_metrics():
    for program in PROGRAMS.values():
        for name, task in program.tasks.items():
            assert name in BENCHMARKS
            assert task.metrics


def test_overlay_tasks_have_the_decoding_of_the_protocol(tmp_path, capsys):
    write(capsys, tmp_path / "h", "--tasks", "mathverse,mmmu_pro")
    write(capsys, tmp_path / "eight", "--tasks", "mathverse", "--protocol", "va_opd")
    (task,) = (tmp_path / "eight" / "tasks").iterdir()
    overlay = yaml.safe_load(task.read_text())
    assert overlay["repeats"] == 8
    assert overlay["filter_list"] == [
        {"name": "avg@8", "filter": [{"function": "take_first_k", "k": 8}]}
    ]
    assert overlay["generation_kwargs"] == {
        "max_new_tokens": 4096, "temperature": 1.0, "top_p": 1.0, "do_sample": True}  # fmt: skip
    greedy = tmp_path / "h" / "tasks" / "vistill_mmmu_pro_official_greedy.yaml"
    overlay = yaml.safe_load(greedy.read_text())
    assert (overlay["dataset_name"], "repeats" in overlay) == ("standard (4 options)", False)


def test_the_command_fills_in_the_place_of_the_tasks_and_has_the_flags_that_work(tmp_path, capsys):
    folder = tmp_path / "mit leer"
    write(capsys, folder, "--tasks", "ai2d,wemath", "--protocol", "official")
    package = tmp_path / "site" / "lmms_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path / "site")}
    environment.pop("OPENAI_API_KEY", None)
    done = subprocess.run(
        ["sh", str(folder / "run.sh")], env=environment, capture_output=True, check=True, text=True
    )
    words = json.loads(done.stdout)
    assert words[words.index("--process-docs-parallel") + 1] == "1"
    assert words[words.index("--include_path") + 1] == "overlay"
    for name in words[words.index("--tasks") + 1].split(","):
        overlay = yaml.safe_load((folder / "overlay" / f"{name}.yaml").read_text())
        assert overlay["task"] == name
        assert overlay["include"].startswith(f"{package}/tasks/")


def test_results_of_lmms_eval_are_read_under_its_name(tmp_path, capsys):
    facts = write(capsys, tmp_path, "--tasks", "wemath,ai2d")
    code, _, err = run_verb(capsys, "read", tmp_path)
    assert (code, "error[S605]" in err) == (6, True)
    for day, value in (("27", 0.9), ("28", 0.375)):
        values = {"alias": "x", "wemath_strict,none": value, "wemath_loose,none": 0.5,
                  "wemath_strict_stderr,none": 0.05, "wemath_loose_stderr,none": "N/A"}  # fmt: skip
        name = "vistill_wemath_official_greedy"
        record = {"results": {name: values}, "n-samples": {name: {"effective": 40}}}
        file = tmp_path / "results" / "owner__model" / f"2026-11-{day}T04-00-00_results.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record))
    code, shown, err = run_verb(capsys, "read", tmp_path, "--json")
    assert code == 0, err
    results = json.loads(shown)
    assert (results["harness"], results["package"]) == ("lmms-eval", "lmms-eval==0.7.3")
    task = results["tasks"]["wemath"]
    metrics = task["modes"]["greedy"]["metrics"]
    assert task["rule"] == "lmms-eval"
    assert metrics["strict"] == {"value": 0.375, "low": pytest.approx(0.277),
                                 "high": pytest.approx(0.473), "units": 40}  # fmt: skip
    assert (metrics["mean"]["value"], metrics["loose"]["low"]) == (0.4375, None)
    assert results["missing"] == ["vistill_ai2d_official_greedy"]
    assert set(facts["tasks"]) == {"vistill_ai2d_official_greedy", "vistill_wemath_official_greedy"}
    _, shown, _ = run_verb(capsys, "read", tmp_path)
    assert "rule: lmms-eval" in shown
    assert "no result yet: vistill_ai2d_official_greedy" in shown


def test_results_of_vlmevalkit_are_read_in_their_units(tmp_path, capsys):
    tasks = "mmstar,hallusionbench,ocrbench,wemath"
    write(capsys, tmp_path, "--tasks", tasks, program="vlmevalkit")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["data"]["MMStar"] == {"class": "ImageMCQDataset", "dataset": "MMStar"}
    assert config["model"]["student"]["temperature"] == 0
    files = {
        "student_MMStar_acc.csv": '"split","Overall","a"\n"none","0.5","1.0"\n',
        "student_HallusionBench_score.csv":
            '"split","aAcc","fAcc","qAcc"\n"Overall","75.0","60.0","45.0"\n"VD","1","1","1"\n',
        "student_OCRBench_score.json": '{"Final Score": 421, "Final Score Norm": 42.1}',
        "student_WeMath_exact_matching_score.csv":
            '"Score (Strict)","Score (Loose)"\n"0.25","0.75"\n',
    }  # fmt: skip
    folder = tmp_path / "results" / "student"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    code, shown, err = run_verb(capsys, "read", tmp_path, "--json")
    assert code == 0, err
    values = {
        name: {
            metric: score["value"] for metric, score in task["modes"]["greedy"]["metrics"].items()
        }
        for name, task in json.loads(shown)["tasks"].items()
    }
    assert values == {
        "mmstar": {"accuracy": 0.5},
        "hallusionbench": {"aAcc": 0.75, "fAcc": 0.6, "qAcc": 0.45, "mean": pytest.approx(0.6)},
        "ocrbench": {"accuracy": pytest.approx(0.421)},
        "wemath": {"strict": 0.25, "loose": 0.75, "mean": 0.5},
    }


@pytest.mark.parametrize(
    ("program", "words", "fix"),
    [
        ("lmms-eval", ("--tasks", "wemath,ai2d", "--protocol", "va_opd"), "--tasks ai2d"),
        ("vlmevalkit", ("--tasks", "mmstar", "--protocol", "va_opd"), "--protocol official"),
        ("lmms-eval", ("--tasks", "vsp_maze,ai2d"), "--tasks ai2d"),
    ],
)
def test_what_a_program_cannot_score_is_refused(program, words, fix, tmp_path, capsys):
    code, _, err = run_verb(capsys, program, "owner/model", "--to", tmp_path / "h", *words)
    assert (code, "error[C101]" in err, fix in err) == (2, True, True)
    assert not (tmp_path / "h").exists()

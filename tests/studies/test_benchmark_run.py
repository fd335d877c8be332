"""`vistill eval --tasks`: logs, tables, resume after a kill, changed settings, rescoring."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO
from PIL import Image

from vistill.cli.main import entry
from vistill.evaluation.benchmarks.sample_log import read_samples

SHORT = ["eval.max_new_tokens=4", "eval.rows_per_call=4"]


def run_verb(capsys, *words):
    """Exit code, stdout and stderr of a verb."""
    code = 0
    try:
        entry([*map(str, words)])
    except SystemExit as stop:
        code = stop.code or 0
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def write_sets(folder):
    """Two groups of We-Math and four rows of AI2D, made for this test."""
    steps = [
        {"ID": f"2steps_{group}", "key": f"2steps_{step}", "split": "testmini",
         "question": f"How much is {group} and {step}?", "option": "A. 1;B. 2;C. 3",
         "answer": "B", "image_path": "bild.png", "knowledge concept": "Sums",
         "question number": group}
        for group in (1, 2) for step in ("1", "2", "multi")
    ]  # fmt: skip
    parts = [
        {"question": f"Which is {n}?", "options": ["leaf", "root"], "answer": "0",
         "image": "bild.png"}
        for n in range(4)
    ]  # fmt: skip
    for name, rows in (("wemath", steps), ("ai2d", parts)):
        (folder / name).mkdir(parents=True)
        Image.linear_gradient("L").resize((48, 48)).convert("RGB").save(folder / name / "bild.png")
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name / "data.jsonl").write_text(text)
    return folder


def contents(run):
    """Every sample of a run without its seconds, by log."""
    return {
        log.name: sorted(
            json.dumps({**sample.to_dict(), "seconds": 0}, sort_keys=True)
            for sample in read_samples(log)
        )
        for log in sorted((run / "samples").glob("*.jsonl"))
    }


def command(sets, run, *rest):
    return ["eval", "vistill:student", "--tasks", "wemath,ai2d", "--protocol", "va_opd",
            "--data", str(sets), "--samples", "2", f"run={run}", *SHORT, *rest]  # fmt: skip


@pytest.mark.more
def test_tasks_are_asked_logged_scored_and_rescored(tmp_path, capsys):
    sets, run = write_sets(tmp_path / "sets"), tmp_path / "run"
    code, shown, err = run_verb(capsys, *command(sets, run))
    assert code == 0, err
    assert "We-Math   6 of 1,740 rows   subset: ours   rule: choice" in shown
    assert "protocol   va_opd   changed: max_new_tokens 4, samples 2" in shown
    results = json.loads((run / "results.json").read_text())
    mode = results["tasks"]["wemath"]["modes"]["sampled"]
    assert (mode["questions"], mode["replies"], mode["label"]) == (6, 12, "avg@2")
    assert mode["metrics"]["mean"]["units"] == 2
    assert "ai2d,va_opd,sampled,,accuracy," in (run / "results.csv").read_text()
    log = run / "samples" / "ai2d.va_opd.jsonl"
    header, *lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert (header["log"], header["version"], header["take"]) == ("vistill samples", 1, "first")
    assert len(lines) == 8
    assert {len(line["pictures"][0]) for line in lines} == {32}
    assert all(line["verdicts"]["choice"]["reason"] for line in lines if not is_right(line))

    before = log.read_bytes()
    code, shown, err = run_verb(capsys, "rescore", run, "--out", tmp_path / "neu", "--json")
    assert code == 0, err
    assert log.read_bytes() == before
    again = json.loads(shown)
    assert [list(one["tasks"]) for one in again] == [["ai2d"], ["wemath"]]
    for one in again:
        (name, task), = one["tasks"].items()  # fmt: skip
        first = results["tasks"][name]["modes"]["sampled"]["metrics"]
        assert task["modes"]["sampled"]["metrics"] == first
    assert contents_of_folder(tmp_path / "neu") == contents(run)
    code, shown, err = run_verb(capsys, "rescore", run, "--reduce", "pass@k,majority", "--json")
    assert code == 0, err
    for one in json.loads(shown):
        (task,) = one["tasks"].values()
        assert list(task["modes"]["sampled"]["reduced"]) == ["pass@2", "majority@2"]
    for wrong, shown_code in (("pass@3", "C101"), ("pas@k", "C105")):
        code, _, err = run_verb(capsys, "rescore", run, "--reduce", wrong, "--out", tmp_path / "x")
        assert (code, f"error[{shown_code}]" in err) == (2, True)
        assert not (tmp_path / "x").exists()
    greedy = run / "samples" / "wemath.va_opd.jsonl"
    head, *lines = map(json.loads, greedy.read_text().splitlines())
    head["asked"]["samples"] = {"sampled": 1}
    lines = [head, *(line for line in lines if line["sample"] == 0)]
    greedy.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, shown, err = run_verb(capsys, "rescore", run, "--reduce", "majority", "--json")
    assert (code, "wemath.va_opd.jsonl: not reduced" in err) == (0, True)
    of_ai2d, of_wemath = (next(iter(one["tasks"].values()))["modes"]["sampled"]
                          for one in json.loads(shown))  # fmt: skip
    assert list(of_ai2d["reduced"]) == ["majority@2"]
    assert of_wemath["reduced"] == {}
    code, shown, err = run_verb(capsys, "rescore", log, "--checker", "contains")
    assert code == 0, err
    assert "rule: contains" in shown


def is_right(line):
    return line["verdicts"]["choice"]["correct"]


def contents_of_folder(folder):
    (folder / "samples").mkdir()
    for log in folder.glob("*.jsonl"):
        log.rename(folder / "samples" / log.name)
    return contents(folder)


@pytest.mark.more
def test_a_killed_evaluation_asks_only_what_is_missing_and_ends_with_the_same_samples(
    tmp_path, capsys
):
    sets, whole, killed = write_sets(tmp_path / "sets"), tmp_path / "whole", tmp_path / "killed"
    assert run_verb(capsys, *command(sets, whole))[0] == 0
    environment = {**os.environ, "PYTHONPATH": str(REPO), "VISTILL_FAULT":
                   "benchmark.after_call:kill@2"}  # fmt: skip
    words = [sys.executable, "-m", "vistill", *command(sets, killed)]
    done = subprocess.run(words, env=environment, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    log = killed / "samples" / "wemath.va_opd.jsonl"
    kept = log.read_bytes()
    assert len(kept.splitlines()) == 1 + 8
    log.write_bytes(kept[:-20])  # as if the power failed in the last line

    assert run_verb(capsys, *command(sets, killed))[0] == 0
    assert log.read_bytes().startswith(kept[: kept[:-20].rfind(b"\n") + 1])
    assert contents(killed) == contents(whole)
    before = log.read_bytes()
    assert run_verb(capsys, *command(sets, killed))[0] == 0
    assert log.read_bytes() == before
    assert run_verb(capsys, *command(sets, killed, "--samples", "3"))[0] == 0
    assert log.read_bytes().startswith(before)
    assert [len(lines) for lines in contents(killed).values()] == [4 * 3, 6 * 3]


@pytest.mark.more
def test_other_settings_and_other_pictures_are_refused_in_the_same_folder(tmp_path, capsys):
    sets, run = write_sets(tmp_path / "sets"), tmp_path / "run"
    assert run_verb(capsys, *command(sets, run, "--limit", "3"))[0] == 0
    code, _, err = run_verb(capsys, *command(sets, run, "eval.max_new_tokens=5"))
    assert (code, "error[C203]" in err) == (2, True)
    assert "max_new_tokens is 5 now and was 4" in err
    Image.new("RGB", (48, 48), (200, 0, 0)).save(sets / "wemath" / "bild.png")
    code, _, err = run_verb(capsys, *command(sets, run, "--limit", "3"))
    assert (code, "error[C203]" in err) == (2, True)
    assert "with another picture" in err


@pytest.mark.more
def test_a_corrected_gold_answer_is_judged_with_the_stored_responses(tmp_path, capsys):
    sets, run = write_sets(tmp_path / "sets"), tmp_path / "run"
    assert run_verb(capsys, *command(sets, run))[0] == 0
    log = run / "samples" / "ai2d.va_opd.jsonl"
    before = contents(run)
    header, *lines = [json.loads(line) for line in log.read_text().splitlines()]
    right = [line | {"response": "A", "verdicts": {"choice": {"correct": True, "unparsed": False}}}
             for line in lines]  # fmt: skip
    log.write_text("".join(json.dumps(line) + "\n" for line in [header, *right]))
    data = sets / "ai2d" / "data.jsonl"
    text = data.read_text()
    for gold, value in (("1", 0.0), ("0", 1.0)):
        data.write_text(text.replace('"answer": "0"', f'"answer": "{gold}"'))
        assert run_verb(capsys, *command(sets, run))[0] == 0
        task = json.loads((run / "results.json").read_text())["tasks"]["ai2d"]
        assert task["modes"]["sampled"]["metrics"]["accuracy"]["value"] == value
    assert (run / "events.log").read_text().count("8 stored responses judged again") == 2
    old = {**header, "versions": {**header["versions"], "vistill": "0.0.0"}}
    kept = [line | {"verdicts": {"choice": {"correct": True, "unparsed": False}}} for line in lines]
    log.write_text("".join(json.dumps(line) + "\n" for line in [old, *kept]))
    assert run_verb(capsys, *command(sets, run))[0] == 0
    assert contents(run) == before
    other = [line | {"verdicts": {"other": line["verdicts"]["choice"]}} for line in lines]
    log.write_text("".join(json.dumps(line) + "\n" for line in [header, *other]))
    assert run_verb(capsys, *command(sets, run))[0] == 0
    assert contents(run) == before


@pytest.mark.more
def test_noise_is_that_of_the_evaluation_and_other_noise_or_weights_are_refused(tmp_path, capsys):
    sets, run, other = write_sets(tmp_path / "sets"), tmp_path / "run", tmp_path / "other"
    assert run_verb(capsys, *command(sets, run))[0] == 0
    assert run_verb(capsys, *command(sets, other, "eval.noise=counter"))[0] == 0
    logs = [folder / "samples" / "ai2d.va_opd.jsonl" for folder in (run, other)]
    replies = [[sample.response for sample in read_samples(log)] for log in logs]
    assert replies[0] != replies[1]
    for setting in ("eval.noise=counter", "rollout.weights=own"):
        code, _, err = run_verb(capsys, *command(sets, run, setting))
        assert (code, "error[C203]" in err) == (2, True), setting


@pytest.mark.more
def test_a_partial_result_is_partial_when_it_is_judged_again(tmp_path, capsys):
    sets, run = write_sets(tmp_path / "sets"), tmp_path / "run"
    data = sets / "ai2d" / "data.jsonl"
    first, *rest = [json.loads(line) for line in data.read_text().splitlines()]
    rows = [first | {"image": "fehlt.png"}, *rest]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run_verb(capsys, *command(sets, run))[0] == 0
    ai2d = json.loads((run / "results.json").read_text())["tasks"]["ai2d"]
    log = run / "samples" / "ai2d.va_opd.jsonl"
    code, shown, _ = run_verb(capsys, "rescore", log, "--json")
    (again,) = json.loads(shown)
    again = again["tasks"]["ai2d"]
    assert code == 0
    assert again["failed"] == ai2d["failed"] != []
    assert (again["missing_replies"], again["subset"]) == (0, "ours")
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-3]))
    _, shown, _ = run_verb(capsys, "rescore", log)
    assert "PARTIAL: 1 rows failed   PARTIAL: 3 replies are missing" in shown


@pytest.mark.more
def test_a_suite_runs_what_is_here_and_lists_the_rest(tmp_path, capsys):
    sets, run = write_sets(tmp_path / "sets"), tmp_path / "run"
    words = ["eval", "vistill:student", "--suite", "va_opd", "--data", str(sets), "--samples", "1"]
    code, shown, err = run_verb(capsys, *words, f"run={run}", *SHORT)
    assert code == 0, err
    assert "not here: mathvista, mathverse, hallusionbench, mmmu, mmstar, ocrbench" in shown
    assert "Math Avg                 -" in shown
    assert "subset: ours: not the rows of the paper's column" in shown


def test_a_suite_without_any_set_lists_all_and_loads_no_model(tmp_path, capsys):
    words = ["eval", "vistill:student", "--suite", "vgs", "--data", str(tmp_path / "none")]
    code, shown, err = run_verb(capsys, *words, f"run={tmp_path / 'run'}")
    assert code == 0, err
    assert "not here: mmmu_pro, logicvista, mathverse, visualpuzzles, mathvision" in shown


def test_a_temperature_of_zero_where_a_protocol_samples_is_refused(tmp_path, capsys):
    words = ["eval", "vistill:student", "--tasks", "ai2d", "--data", str(tmp_path)]
    words += ["--protocol", "va_opd", "eval.temperature=0"]
    code, _, err = run_verb(capsys, *words, f"run={tmp_path / 'run'}")
    assert (code, "error[C101]" in err) == (2, True)


def test_a_training_folder_is_no_place_for_results(tmp_path, capsys):
    run = Path(tmp_path / "run")
    run.mkdir()
    (run / "metrics.jsonl").write_text("{}\n")
    words = ["eval", "vistill:student", "--tasks", "ai2d", "--data", str(tmp_path)]
    code, _, err = run_verb(capsys, *words, f"run={run}")
    assert (code, "error[C201]" in err) == (2, True)


def several(sets, run, *rest):
    """The command for two models with blind modes."""
    base = ["eval", "vistill:student", "vistill:base", "--tasks", "ai2d", "--protocol", "va_opd"]
    return [*base, "--data", sets, "--samples", "2", "--blind", "--reduce", "pass@k,majority",
            f"run={run}", *SHORT, *rest]  # fmt: skip


@pytest.mark.more
def test_several_models_continue_each_their_own_log_and_are_compared(tmp_path, capsys):
    sets, whole, killed = write_sets(tmp_path / "sets"), tmp_path / "whole", tmp_path / "killed"
    code, shown, err = run_verb(capsys, *several(sets, whole))
    assert code == 0, err
    assert "vistill-base - vistill-student" in shown
    results = json.loads((whole / "results.json").read_text())
    assert results["baseline"] == "vistill-student"
    for name in ("vistill-student", "vistill-base"):
        task = results["models"][name]["tasks"]["ai2d"]
        assert list(task["modes"]) == ["sampled", "sampled/pixelated", "sampled/text_only"]
        assert task["missing_replies"] == 0
        assert list(task["modes"]["sampled"]["reduced"]) == ["majority@2", "pass@2"]
        assert task["modes"]["sampled/text_only"]["gap"]["rows"] == 4
        assert f",{name}\n" in (whole / "results.csv").read_text().replace("\r", "")
    samples = list(read_samples(whole / "models" / "vistill-base" / "samples/ai2d.va_opd.jsonl"))
    shown_pictures = {s.mode: len(s.pictures) for s in samples}
    assert shown_pictures == {"sampled": 1, "sampled/pixelated": 1, "sampled/text_only": 0}
    digests = {s.mode: s.pictures for s in samples if s.pictures}
    assert digests["sampled"] != digests["sampled/pixelated"]
    compared = results["pairs"]["vistill-base"]["tasks"]["ai2d"]["modes"]["sampled"]
    left, right = (results["models"][name]["tasks"]["ai2d"]["modes"]["sampled"]["metrics"]
                   for name in ("vistill-base", "vistill-student"))  # fmt: skip
    expected = left["accuracy"]["value"] - right["accuracy"]["value"]
    assert compared["metrics"]["accuracy"]["value"] == expected
    assert "vistill-base,vistill-student,ai2d," in (whole / "differences.csv").read_text()
    assert "<title>vistill benchmarks" in (whole / "report.html").read_text()

    environment = {**os.environ, "PYTHONPATH": str(REPO), "VISTILL_FAULT":
                   "benchmark.after_call:kill@8"}  # fmt: skip
    words = [sys.executable, "-m", "vistill", *map(str, several(sets, killed))]
    done = subprocess.run(words, env=environment, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    kept = {log: log.read_bytes() for log in killed.glob("models/*/samples/*.jsonl")}
    assert len(kept) == 2
    assert run_verb(capsys, *several(sets, killed))[0] == 0
    for log, before in kept.items():
        assert log.read_bytes().startswith(before)
    for name in ("vistill-student", "vistill-base"):
        assert contents(killed / "models" / name) == contents(whole / "models" / name)


@pytest.mark.more
def test_reports_of_benchmark_runs_are_written_from_their_folders(tmp_path, capsys):
    sets, one, other = write_sets(tmp_path / "sets"), tmp_path / "one", tmp_path / "other"
    assert run_verb(capsys, *command(sets, one))[0] == 0
    assert run_verb(capsys, *command(sets, other, "--limit", "3"))[0] == 0
    (one / "report.html").unlink()
    assert run_verb(capsys, "report", one)[0] == 0
    assert "We-Math" in (one / "report.html").read_text()
    page = tmp_path / "both.html"
    assert run_verb(capsys, "report", one, other, "--out", page)[0] == 0
    assert "other − one" in page.read_text()
    code, _, err = run_verb(capsys, "eval", "vistill:student", "vistill:student", "--tasks",
                            "ai2d", "--data", sets)  # fmt: skip
    assert (code, "error[C101]" in err) == (2, True)


#: Sets with pictures among the real data, by benchmark.
REAL = {name: name for name in ("wemath", "mathverse", "mathvision_testmini", "blink_jigsaw",
                                "vlms_are_blind", "vsp_maze")}  # fmt: skip
REAL |= {"geometry3k": "geometry3k_sample"}


@pytest.mark.slow
def test_the_shipped_student_answers_every_real_set_that_has_pictures(
    shared_data, tmp_path, capsys
):
    for name, folder in REAL.items():
        (tmp_path / "sets").mkdir(exist_ok=True)
        (tmp_path / "sets" / name).symlink_to(shared_data / folder)
    run = tmp_path / "run"
    words = ["eval", "vistill:student", "--tasks", ",".join(REAL), "--limit", "8"]
    code, _, err = run_verb(
        capsys, *words, "--data", tmp_path / "sets", f"run={run}", "eval.max_new_tokens=16"
    )
    assert code == 0, err
    tasks = json.loads((run / "results.json").read_text())["tasks"]
    assert set(tasks) == set(REAL)
    for name, task in tasks.items():
        mode = task["modes"]["greedy"]
        assert (task["failed"], task["missing_replies"], task["subset"]) == ([], 0, "ours"), name
        assert 3 <= mode["questions"] <= 8, name
        samples = list(read_samples(run / "samples" / f"{name}.official.jsonl"))
        assert len(samples) == mode["replies"] == mode["questions"]
        right = [
            sample.scored().main
            for sample in samples
            if sample.row.facts.get("version") != "Text Only"
        ]
        value = next(iter(mode["metrics"].values()))["value"]
        assert name == "wemath" or value == pytest.approx(sum(right) / len(right))


@pytest.mark.more
def test_signals_are_logged_averaged_resumed_and_shown(tmp_path, capsys):
    sets, run = write_sets(tmp_path / "sets"), tmp_path / "run"
    versions = ["Text Only", *["Vision Dominant"] * 3]
    rows = [
        {"id": f"r{n}", "images": ["bild.png"] * (version != "Text Only"), "choices": None,
         "question": f"How long is {n}?", "answer": str(n), "group": f"g{n}",
         "extra": {"problem_version": version, "question_type": "free-form", "subject": "S",
                   "subfield": "F"}}
        for n, version in enumerate(versions)
    ]  # fmt: skip
    (sets / "mathverse").mkdir()
    (sets / "ai2d" / "bild.png").rename(sets / "mathverse" / "bild.png")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (sets / "mathverse" / "data.jsonl").write_text(text)
    words = command(sets, run, "--blind", "eval.signals=true")
    words[words.index("wemath,ai2d")] = "mathverse"
    code, shown, err = run_verb(capsys, *words)
    assert code == 0, err
    log = run / "samples" / "mathverse.va_opd.jsonl"
    samples = list(read_samples(log))
    assert len(samples) == 4 * 2 + 2 * 3 * 2
    for sample in samples:
        assert sample.signals["log_prob"] < 0 < sample.signals["entropy"]
        has_full_picture = sample.mode == "sampled" and bool(sample.pictures)
        assert (sample.signals["visual_advantage"] is not None) == has_full_picture
        assert (sample.signals["visual_dependency"] is not None) == has_full_picture
    modes = json.loads((run / "results.json").read_text())["tasks"]["mathverse"]["modes"]
    signals = modes["sampled"]["signals"]
    values = [s.signals["visual_advantage"] for s in samples
              if s.signals["visual_advantage"] is not None]  # fmt: skip
    assert signals["means"]["visual_advantage"]["value"] == pytest.approx(sum(values) / 6)
    assert signals["responses"] == {
        "log_prob": 8, "entropy": 8, "visual_advantage": 6, "visual_dependency": 6
    }  # fmt: skip
    assert "no visual signals for 2 responses written without a full picture" in shown
    assert set(modes["sampled/text_only"]["signals"]["means"]) == {"log_prob", "entropy"}
    csv = (run / "results.csv").read_text()
    assert "mathverse,va_opd,sampled,,visual_advantage," in csv
    page = (run / "report.html").read_text()
    assert "<h3>Signals</h3>" in page
    assert "visual_dependency" in page

    whole = log.read_bytes()
    log.write_bytes(b"\n".join(whole.split(b"\n")[:4])[:-20])  # killed in the third sample
    assert run_verb(capsys, *words)[0] == 0
    again = {s.key: s for s in read_samples(log)}
    assert {key: s.response for key, s in again.items()} == {s.key: s.response for s in samples}
    for sample in samples:
        for name, value in sample.signals.items():
            assert again[sample.key].signals[name] == (
                None if value is None else pytest.approx(value, abs=1e-5)
            )

    words.remove("eval.signals=true")
    code, _, err = run_verb(capsys, *words)
    assert (code, "error[C203]" in err, "signals is None now" in err) == (2, True, True)


def test_signals_are_refused_where_a_server_writes(tmp_path, capsys):
    sets = write_sets(tmp_path / "sets")
    rest = ("eval.signals=true", "rollout.engine=server", "rollout.server.url=http://127.0.0.1:9")
    code, _, err = run_verb(capsys, *command(sets, tmp_path / "run", *rest))
    assert (code, "error[C101]" in err, "eval.signals=false" in err) == (2, True, True)

"""Hostile text on its way to a terminal: no control byte but newline, whatever prints it; markup is text."""

import json
import os
import re
import sys
import warnings

import pytest
from payloads import TERMINAL_PAYLOADS

from vistill.cli import main
from vistill.cli.progress import Progress
from vistill.cli.terminal import EscapingStream, escape_output, show_crash
from vistill.errors import DataError

CONTROLS = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
BASE = "method: va_opd\nstudent: {model: 'vistill:student'}\nteacher: {model: 'vistill:teacher'}\n"


def legal(text):
    """Whether a file can be called so, and a command line can carry it."""
    try:
        return "\0" not in text and "/" not in text and bool(os.fsencode(text))
    except UnicodeEncodeError:
        return False


NAMES = [text for text in TERMINAL_PAYLOADS if legal(text)]
SAMPLED = [
    pytest.param(text, marks=[pytest.mark.slow] if i % 5 else []) for i, text in enumerate(NAMES)
]


def words(capsys, *arguments):
    """What a verb printed, on both streams."""
    with pytest.raises(SystemExit):
        main.entry([str(a) for a in arguments])
    done = capsys.readouterr()
    return done.out + done.err


def harmless(printed):
    found = CONTROLS.findall(printed)
    assert not found, ascii(printed)
    printed.encode("utf-8")
    return printed


def test_there_are_30_payloads():
    assert len(set(TERMINAL_PAYLOADS)) >= 30
    assert len(NAMES) >= 30


@pytest.mark.parametrize("payload", TERMINAL_PAYLOADS, ids=ascii)
def test_events_errors_crashes_and_warnings_are_shown_harmlessly(payload, capsys):
    with Progress() as progress:
        progress.show({"event": payload})
        progress.show({"step": 1, "steps": 2, "eval/accuracy": 0.5})
    for part in ("what", "where", "why", "fix", "note"):
        text = {"what": "w"} | {part: payload}
        main.show_error(DataError("D201", text.pop("what"), **text))
    show_crash(ValueError, ValueError(payload), None)
    with escape_output():
        print(payload)
        print("text", payload)
        print("text", payload, file=sys.stderr)
        sys.stderr.write(warnings.formatwarning(payload, UserWarning, "file.py", 1))
    done = capsys.readouterr()
    harmless(done.out + done.err)
    if payload.startswith(("[", "answer")):
        assert payload in done.err, "markup is text"


@pytest.mark.parametrize("payload", NAMES, ids=ascii)
def test_words_of_the_command_line_come_back_harmlessly(payload, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    harmless(words(capsys, payload))
    harmless(words(capsys, f"--{payload}"))
    harmless(words(capsys, "train", f"--{payload}"))
    harmless(words(capsys, "demo", "--seeds", payload))
    harmless(words(capsys, "explain", payload))
    harmless(words(capsys, "init", payload))
    harmless(words(capsys, "train", payload))
    harmless(words(capsys, "check", "--fast", "demo.yaml", payload))
    harmless(words(capsys, "report", tmp_path / payload))


@pytest.mark.parametrize("payload", SAMPLED, ids=ascii)
def test_a_hostile_recipe_and_hostile_rows_are_checked_harmlessly(payload, capsys, tmp_path):
    quoted = json.dumps(payload)
    rows = [
        {"question": "q", "images": f"{payload}.png", "answer": payload, "id": f"{payload}{i}"}
        for i in range(4)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"run: {json.dumps(str(tmp_path / payload))}\n{BASE}data: {{train: {data}, max_bad_share: 1.0, columns: {{id: id}}}}\n"
    )
    harmless(words(capsys, "check", "--fast", recipe))
    recipe.write_text(
        f"run: {tmp_path / 'r'}\n{BASE}{quoted}: 1\ndata: {{train: diagrams, diagrams: {{train: 2, eval: 2}}}}\n"
    )
    harmless(words(capsys, "check", "--fast", recipe))
    recipe.write_text(
        f"run: {tmp_path / 'r'}\n{BASE}data: {{train: diagrams, diagrams: {{train: 2, eval: 2}}}}\nstages: {{{quoted}: {{seed: 1}}, a: {{seed: 2}}}}\n"
    )
    harmless(words(capsys, "check", "--fast", recipe))
    harmless(words(capsys, "train", recipe, "--stage", f"{payload}?"))
    harmless(words(capsys, "eval", tmp_path / payload))


@pytest.mark.parametrize("payload", NAMES, ids=ascii)
def test_tables_and_sentences_about_hostile_runs_are_harmless(payload, capsys, tmp_path):
    from vistill.api import Run
    from vistill.studies import demo, methods, stages

    paths = [tmp_path / payload, tmp_path / "other"]
    for path in paths:
        path.mkdir()
        (path / "run.lock.json").write_text(
            json.dumps({"recipe": {"method": payload, "student": {"model": payload}}})
        )
        record = {"step": 1, "accuracy": 0.5, "rows": 9.0, "loss": 1.0}
        (path / "evaluations.jsonl").write_text(json.dumps(record) + "\n")
        work = {payload: {"peak_mib": 1.0}}
        (path / "timing.jsonl").write_text(
            json.dumps({"step": 1, "seconds": {payload: 1.0}, "work": work}) + "\n"
        )
        (path / "quarantine.jsonl").write_text(
            json.dumps({"where": payload, "code": payload, "reason": payload}) + "\n"
        )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{BASE}stages: {{{json.dumps(payload)}: {{seed: 1}}}}\n")
    row = {key: payload if not form else None for key, _, form in methods.COLUMNS}
    with escape_output():
        print(methods.format_table([row]))
        stages.tell_quarantine(Run(paths[0]))
        stages.tell_profile(Run(paths[0]))
        stages.tell_kept(str(recipe), ["seed=3"], [payload])
        demo.print_comparison(paths, [], recipe, 1.0)
    done = capsys.readouterr()
    assert harmless(done.out + done.err).count("\n") > 8
    harmless(words(capsys, "report", *paths))


@pytest.mark.parametrize("own", ["\r\x1b[K", "\r", "\x1b[A", "\n\n\x1b[A\x1b[A"])
def test_progress_lines_of_ours_and_of_libraries_still_work(own, capsys):
    stream = EscapingStream(sys.stdout, progress=True)
    stream.writelines([own])
    if own.startswith("\r"):
        stream.write(f"{own}step 1 \x1b[31m")
        assert capsys.readouterr().out == f"{own}{own}step 1 \\x1b[31m"
    else:
        assert capsys.readouterr().out == own
    assert stream.isatty() == sys.stdout.isatty()


def test_the_live_line_of_training_is_numbers_alone(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress() as progress:
        record = {
            "step": 1,
            "steps": 2,
            "loss": 1.0,
            "va/mean": 0.1,
            "rollout/tokens": 5,
            "seconds": 1.0,
        }
        progress.show(record | {"prompt": "\x1b[31m"})
    printed = capsys.readouterr().err
    assert printed.startswith("\r\x1b[Kstep 1/2")
    assert not CONTROLS.search(printed.removeprefix("\r\x1b[K"))

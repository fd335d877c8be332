"""Hostile text at a terminal: no control character except newline is printed; markup is text."""

import json
import os
import re
import sys
import warnings

import pytest
from payloads import TERMINAL_PAYLOADS
from tiers import few

from vistill.cli import main, messages
from vistill.cli.messages import show_crash
from vistill.cli.terminal import EscapingStream, escape_output
from vistill.display.run_display import RunDisplay
from vistill.errors import DataError

CONTROLS = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
BASE = "method: va_opd\nstudent: {model: 'vistill:student'}\nteacher: {model: 'vistill:teacher'}\n"


def is_legal_name(text):
    """Whether it is a legal file name and a legal argument."""
    try:
        return "\0" not in text and "/" not in text and bool(os.fsencode(text))
    except UnicodeEncodeError:
        return False


NAMES = [text for text in TERMINAL_PAYLOADS if is_legal_name(text)]
#: Checking a recipe takes a while: two payloads in the first tier, a fifth of them in the second.
SAMPLED = [
    pytest.param(
        text, marks=[] if i in (0, 15) else pytest.mark.slow if i % 5 else pytest.mark.more
    )
    for i, text in enumerate(NAMES)
]


def run_command(capsys, *arguments):
    """Run a command and return what it printed, on both streams."""
    with pytest.raises(SystemExit):
        main.entry([str(a) for a in arguments])
    done = capsys.readouterr()
    return done.out + done.err


def assert_harmless(printed):
    assert not CONTROLS.search(printed), ascii(printed)
    printed.encode("utf-8")
    return printed


def test_there_are_30_payloads():
    assert len(set(TERMINAL_PAYLOADS)) >= 30
    assert len(NAMES) >= 30


@pytest.mark.parametrize("payload", TERMINAL_PAYLOADS, ids=ascii)
def test_events_errors_crashes_and_warnings_are_printed_harmlessly(payload, capsys):
    response = dict.fromkeys(("question", "gold", "text", "extracted", "rule", "reason"), payload)
    with RunDisplay(ticks=False) as display:
        display.show({"event": payload})
        display.show({"phase": payload, "stage": payload})
        display.print_state()
        record = {"step": 1, "steps": 2, "eval/accuracy": 0.5}
        display.show(record | {"response": {**response, "correct": False}})
    for part in ("what", "where", "why", "fix", "note"):
        text = {"what": "w"} | {part: payload}
        messages.show_error(DataError("D201", text.pop("what"), **text))
    show_crash(ValueError, ValueError(payload), None)
    with escape_output():
        print(payload)
        print("text", payload)
        print("text", payload, file=sys.stderr)
        sys.stderr.write(warnings.formatwarning(payload, UserWarning, "file.py", 1))
    done = capsys.readouterr()
    assert_harmless(done.out + done.err)
    if payload.startswith(("[", "answer")):
        assert payload in done.err, "markup is text"


@pytest.mark.parametrize("payload", few(NAMES, *range(0, len(NAMES), 4)), ids=ascii)
def test_arguments_of_the_command_line_are_printed_harmlessly(
    payload, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert_harmless(run_command(capsys, payload))
    assert_harmless(run_command(capsys, f"--{payload}"))
    assert_harmless(run_command(capsys, "train", f"--{payload}"))
    assert_harmless(run_command(capsys, "demo", "--seeds", payload))
    assert_harmless(run_command(capsys, "explain", payload))
    assert_harmless(run_command(capsys, "init", payload))
    assert_harmless(run_command(capsys, "train", payload))
    assert_harmless(run_command(capsys, "check", "--fast", "demo.yaml", payload))
    assert_harmless(run_command(capsys, "report", tmp_path / payload))


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
        f"run: {json.dumps(str(tmp_path / payload))}\n{BASE}"
        f"data: {{train: {data}, max_bad_share: 1.0, columns: {{id: id}}}}\n"
    )
    assert_harmless(run_command(capsys, "check", "--fast", recipe))
    diagrams = "data: {train: diagrams, diagrams: {train: 2, eval: 2}}\n"
    recipe.write_text(f"run: {tmp_path / 'r'}\n{BASE}{quoted}: 1\n{diagrams}")
    assert_harmless(run_command(capsys, "check", "--fast", recipe))
    stages = f"stages: {{{quoted}: {{seed: 1}}, a: {{seed: 2}}}}\n"
    recipe.write_text(f"run: {tmp_path / 'r'}\n{BASE}{diagrams}{stages}")
    assert_harmless(run_command(capsys, "check", "--fast", recipe))
    assert_harmless(run_command(capsys, "train", recipe, "--stage", f"{payload}?"))
    assert_harmless(run_command(capsys, "eval", tmp_path / payload))


@pytest.mark.parametrize("payload", few(NAMES, *range(0, len(NAMES), 4)), ids=ascii)
def test_tables_and_messages_about_hostile_runs_are_harmless(payload, capsys, tmp_path):
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
        stages.print_quarantine(Run(paths[0]))
        stages.print_profile(Run(paths[0]))
        stages.warn_stage_settings(str(recipe), ["seed=3"], [payload])
        demo.print_comparison(paths, [], recipe, 1.0)
    done = capsys.readouterr()
    assert assert_harmless(done.out + done.err).count("\n") > 8
    assert_harmless(run_command(capsys, "report", *paths))


@pytest.mark.parametrize(
    "control", ["\r\x1b[K", "\r", "\x1b[A\x1b[A\r\x1b[J", "\x1b[A", "\n\n\x1b[A\x1b[A"]
)
def test_progress_lines_of_vistill_and_of_libraries_still_work(control, capsys):
    stream = EscapingStream(sys.stdout, progress=True)
    stream.writelines([control])
    if "\r" in control:
        stream.write(f"{control}step 1 \x1b[31m")
        assert capsys.readouterr().out == f"{control}{control}step 1 \\x1b[31m"
    else:
        assert capsys.readouterr().out == control
    assert stream.isatty() == sys.stdout.isatty()


def test_the_progress_line_of_training_shows_only_numbers(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with RunDisplay(ticks=False) as display:
        record = {
            "step": 1,
            "steps": 2,
            "loss": 1.0,
            "va/mean": 0.1,
            "rollout/tokens": 5,
            "seconds": 1.0,
        }
        display.show(record | {"prompt": "\x1b[31m"})
    printed = capsys.readouterr().err
    assert printed.startswith("\r\x1b[Kstep 1/2")
    assert not CONTROLS.search(printed.replace("\r\x1b[K", ""))

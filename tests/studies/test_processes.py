"""Arms side by side, with fake commands: limits, signals, errors, repeated calls."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPO

from vistill.display.live_line import Part, join_parts
from vistill.errors import ArmError, NonFiniteError, Preempted, StorageError
from vistill.studies.arms import Arm
from vistill.studies.processes import (
    POLL_SECONDS,
    STATUS_FILE,
    Processes,
    ProgressLine,
    last_record,
    run_side_by_side,
)
from vistill.training.interrupt import Interrupted

#: Functions for the fake commands. `note` appends a line to a log that all arms share.
TOOLS = """
import json, os, signal, sys, time
def note(text):
    with open("log", "a") as log:
        log.write(text + "\\n")
def notes():
    return open("log").read().split() if os.path.exists("log") else []
def wait_for(*texts):
    while not set(texts) <= set(notes()):
        time.sleep(0.01)
def fail(code, status):
    record = dict(code=code, what="it went wrong", where="", why="", fix="do that", note="")
    record["exit_code"] = str(status)
    json.dump(record, open(os.environ["VISTILL_ERROR_JSON"], "w"))
    sys.exit(status)
def save_on_signal(name, count=1):
    received = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda n, frame: received.append(n))
    note(f"{name}-ready")
    while len(received) < count:
        time.sleep(0.01)
    time.sleep(0.3)
    note(f"{name}-saved-{'-'.join(map(str, received))}")
    sys.exit(75)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fake(name, code):
    """An arm that runs a few lines of Python; it is done if the file `NAME.done` exists."""
    command = (sys.executable, "-S", "-c", TOOLS + code)
    return Arm(name, Path(name), command=command, done=Path(f"{name}.done").exists)


def run(arms, at_once=2):
    run_side_by_side("fakes", arms, Path("cost.json"), at_once)


def lines():
    return Path("log").read_text().split()


def test_the_number_of_parallel_processes_is_limited(folder, capsys):
    code = "note('start')\nwhile notes().count('start') < 2: time.sleep(0.01)\nnote('end')"
    run([fake(f"a{n}", code) for n in range(5)])
    running, most = 0, 0
    for line in lines():
        running += 1 if line == "start" else -1
        most = max(most, running)
    assert (most, running, len(lines())) == (2, 0, 10)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == " · fakes"
    assert printed[-1].startswith("   done in ")


def test_a_failing_arm_stops_the_others_after_a_save_and_raises_its_error(folder):
    arms = [
        fake("a", "wait_for('b-ready'); fail('N701', 7)"),
        fake("b", "save_on_signal('b')"),
        fake("c", "note('c')"),
    ]
    with pytest.raises(NonFiniteError) as caught:
        run(arms)
    assert caught.value.code == "N701"
    assert caught.value.exit_code == 7
    assert caught.value.what == "arm a: it went wrong"
    assert caught.value.fix == "do that"
    assert lines() == ["b-ready", f"b-saved-{signal.SIGTERM:d}"]


def test_an_arm_without_an_error_file_shows_the_last_lines_of_this_process_only(
    folder,
):
    (folder / "a").mkdir()
    (folder / "a" / "console.log").write_text("an earlier process\n")
    with pytest.raises(ArmError) as caught:
        run([fake("a", "print(1 / 0)")])
    assert caught.value.code == "A101"
    assert caught.value.exit_code == 1
    assert "exit code 1" in caught.value.what
    assert "ZeroDivisionError" in caught.value.why
    assert "earlier" not in caught.value.why
    with pytest.raises(ArmError, match="signal 9"):
        run([fake("b", "os.kill(os.getpid(), signal.SIGKILL)")])


def test_the_error_of_an_earlier_process_is_ignored(folder):
    (folder / "a").mkdir()
    (folder / "a" / "arm-error.json").write_text(json.dumps({"code": "N701"}))
    with pytest.raises(ArmError):
        run([fake("a", "sys.exit(3)")])


@pytest.mark.more
def test_an_arm_that_is_stopped_by_a_signal_stops_the_study(folder):
    with pytest.raises(Preempted) as caught:
        run([fake("a", "wait_for('b-ready'); sys.exit(75)"), fake("b", "save_on_signal('b')")])
    assert caught.value.exit_code == 75
    assert lines()[-1] == f"b-saved-{signal.SIGTERM:d}"


@pytest.fixture
def handled_hangup():
    """A process that is started with nohup ignores SIGHUP; these tests need the default."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.more
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_is_forwarded_once_to_each_arm_and_no_further_arm_starts(
    folder, sent, handled_hangup
):
    before = signal.getsignal(sent)
    arms = [
        fake("a", "save_on_signal('a')"),
        fake("b", "save_on_signal('b')"),
        fake(
            "c",
            f"wait_for('a-ready', 'b-ready'); os.kill(os.getppid(), {sent:d}); save_on_signal('c')",
        ),
        fake("d", "note('d')"),
    ]
    with pytest.raises(Interrupted) as caught:
        run(arms, at_once=3)
    assert caught.value.number == sent
    forwarded = signal.SIGTERM if sent == signal.SIGHUP else sent
    ended = sorted(line for line in lines() if not line.endswith("ready"))
    assert [line for line in ended if line[0] in "ab"] == [
        f"a-saved-{forwarded:d}",
        f"b-saved-{forwarded:d}",
    ]
    assert "d" not in ended
    assert signal.getsignal(sent) == before


@pytest.mark.more
def test_a_second_signal_is_forwarded_too(folder):
    number = f"{signal.SIGTERM:d}"
    arms = [
        fake("a", "save_on_signal('a', 2)"),
        fake(
            "b",
            "signal.signal(signal.SIGTERM, signal.SIG_IGN); wait_for('a-ready')\n"
            f"for _ in range(2): os.kill(os.getppid(), {number}); time.sleep(0.2)",
        ),
    ]
    with pytest.raises(Interrupted):
        run(arms)
    assert lines()[-1] == f"a-saved-{number}-{number}"


def test_a_failure_while_saving_is_not_hidden_by_the_signal(folder):
    code = (
        "signal.signal(signal.SIGTERM, lambda *_: fail('S601', 6))\n"
        "os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    )
    with pytest.raises(StorageError) as caught:
        run([fake("a", code)])
    assert caught.value.exit_code == 6


@pytest.mark.more
def test_ctrl_c_in_a_terminal_reaches_an_arm_only_through_the_study(folder):
    """The terminal signals the foreground group; with a second signal an arm would not save."""
    program = (
        "import sys; from pathlib import Path; from vistill.studies.arms import Arm\n"
        "from vistill.studies.processes import run_side_by_side\n"
        "from vistill.training.interrupt import Interrupted\n"
        f"code = {TOOLS + 'save_on_signal(chr(97))'!r}\n"
        "arm = Arm('a', Path('a'), command=(sys.executable, '-S', '-c', code))\n"
        "try: run_side_by_side('x', [arm], Path('cost.json'))\n"
        "except Interrupted as stop: sys.exit(stop.number)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    study = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, start_new_session=True
    )
    while not (folder / "log").exists():
        time.sleep(0.05)
    os.killpg(study.pid, signal.SIGINT)
    assert study.wait(60) == signal.SIGINT
    assert lines() == ["a-ready", f"a-saved-{signal.SIGINT:d}"]


@pytest.mark.more
def test_a_second_call_skips_finished_arms(folder, capsys):
    finish = "note('NAME'); open('NAME.done', 'w')"
    a, c = (fake(name, finish.replace("NAME", name)) for name in "ac")
    with pytest.raises(ArmError):
        run([a, fake("b", "wait_for('a'); sys.exit(1)")])
    b = fake("b", finish.replace("NAME", "b"))
    capsys.readouterr()
    run([a, b, c], at_once=1)
    assert lines() == ["a", "b", "c"]
    assert "a is already finished" in capsys.readouterr().out
    run([a, b, c])
    assert lines() == ["a", "b", "c"]


@pytest.mark.more
def test_the_cost_includes_interrupted_calls(folder):
    with pytest.raises(ArmError):
        run([fake("a", "time.sleep(0.3); sys.exit(1)")])
    first = json.loads((folder / "cost.json").read_text())
    assert set(first) == {"wall_seconds", "peak_mib_largest_process", "arms"}
    assert first["peak_mib_largest_process"] == first["arms"]["a"]["peak_mib"] > 0
    run([fake("a", "time.sleep(0.3); open('a.done', 'w')"), fake("b", "open('b.done', 'w')")])
    second = json.loads((folder / "cost.json").read_text())
    assert set(second["arms"]) == {"a", "b"}
    assert second["wall_seconds"] > first["wall_seconds"]
    assert second["arms"]["a"]["wall_seconds"] > first["arms"]["a"]["wall_seconds"]
    run([fake("a", ""), fake("b", "")])
    assert json.loads((folder / "cost.json").read_text()) == second


def test_a_run_folder_that_is_a_file_is_an_error(folder):
    (folder / "a").write_text("x")
    with pytest.raises(StorageError) as caught:
        run([fake("a", "")])
    assert caught.value.code == "S601"


def test_an_arm_has_one_thread_no_network_and_no_terminal(folder):
    code = (
        "state = [dict(os.environ), sys.stdin.read(), os.getsid(0) == os.getpid()]\n"
        "json.dump(state, open('state', 'w'))"
    )
    run([fake("a", code)])
    environment, stdin, leads_session = json.loads((folder / "state").read_text())
    assert environment["OMP_NUM_THREADS"] == environment["HF_HUB_OFFLINE"] == "1"
    assert stdin == ""
    assert leads_session


def test_an_arm_starts_when_what_it_reads_exists_and_others_do_not_wait_for_it(folder):
    reader = replace(
        fake("reader", "note(open('model').read())"), ready=lambda: Path("model").exists()
    )
    maker = fake("maker", "time.sleep(0.3)\nnote('made')\nopen('model', 'w').write('read')")
    run([reader, maker, fake("other", "note('other')")])
    assert sorted(lines()) == ["made", "other", "read"]
    assert lines().index("read") > lines().index("made")


def test_an_arm_that_nothing_can_make_ready_is_started_and_says_what_it_lacks(folder):
    reader = replace(fake("reader", "open('model')"), ready=lambda: False)
    with pytest.raises(ArmError, match="model"):
        run([reader, fake("other", "note('other')")])
    assert lines() == ["other"]


def test_the_progress_of_a_command_without_a_recipe_is_its_last_line(folder):
    arm = fake("student 1", "time.sleep(60)")
    processes = Processes([arm], at_once=1)
    processes.advance()
    assert join_parts(processes.parts()) == "student 1"
    with (arm.folder / "console.log").open("a") as log:
        log.write("vision step 50: 0.9 of the digits correct\nread step 100: loss 0.8\n")
    assert join_parts(processes.parts()) == "student 1: read step 100: loss 0.8"
    processes.stop()


def test_progress_comes_from_the_logs_even_with_an_incomplete_line(folder):
    arm = fake("a", "time.sleep(60)")
    arm.folder.mkdir()
    (arm.folder / "metrics.jsonl").write_text('{"step": 3}\n{"step": 4}\n{"st')
    processes = Processes([arm, fake("b", "")], at_once=1)
    processes.advance()
    assert join_parts(processes.parts()) == "a step 4"
    (arm.folder / "evaluations.jsonl").write_text('{"accuracy": 0.25}\n')
    assert join_parts(processes.parts()) == "a step 4  25.0 %"
    phase = {"phase": "checking rows", "done": 3, "total": 8}
    status = {"phase": phase, "steps": 9, "left": "0:41"}
    (arm.folder / STATUS_FILE).write_text(json.dumps(status))
    assert join_parts(processes.parts()) == "a step 4/9  25.0 %  checking rows 3/8  0:41"
    processes.stop()
    assert [process.code for process in processes.ended] == [-signal.SIGTERM]
    assert join_parts(processes.parts()) == "1 of 2 done"
    assert last_record(arm.folder / "missing.jsonl") == {}
    (arm.folder / "metrics.jsonl").write_text('{"step": ')
    assert last_record(arm.folder / "metrics.jsonl") == {}


def test_the_progress_line_is_one_line_on_a_terminal_and_rare_in_a_file(capsys, monkeypatch):
    line = ProgressLine()
    for _ in range(3):
        line.show([Part("a step 1", 1)])
    assert capsys.readouterr().out == ""
    line.shown -= 60
    line.show([Part("a step 1", 1)])
    line.show([Part("a step 2", 1)])
    assert capsys.readouterr().out == "   a step 1\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    live = ProgressLine()
    live.show([Part("a step 1", 1)])
    live.show([Part("a step 2", 1)])
    shown = capsys.readouterr()
    assert shown.err.count("\r\x1b[K  0 s  a step") == 2
    assert "\n" not in shown.err
    live.end()
    assert POLL_SECONDS < 1

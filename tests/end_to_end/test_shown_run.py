"""A real run in a terminal and in a pipe: what it shows, Ctrl-C, the same command again."""

import codecs
import io
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest
from doubles import command
from terminal_emulator import FakeTerminal
from test_verbs import QUICK

pytestmark = pytest.mark.more


def without_breaks(text):
    """A command without the breaks of a narrow terminal."""
    return re.sub(r"[\s\\]+", "", text)


def run_in_terminal(words, columns, stop_at=""):
    """Run a command in a terminal; send Ctrl-C as soon as a line matches a pattern.

    Returns:
        The exit code and the terminal.
    """
    terminal, decoder = FakeTerminal(columns), codecs.getincrementaldecoder("utf-8")()
    master, slave = terminal.pair
    child = subprocess.Popen(
        [sys.executable, "-m", "vistill", *words],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "HF_HUB_OFFLINE": "1"},
    )
    os.close(slave)
    terminal.pair = (master,)
    while True:
        try:
            data = os.read(master, 1 << 16)
        except OSError:  # the other end is closed
            break
        seen = len(terminal.lines)
        terminal.write(decoder.decode(data).replace("\r\n", "\n"))
        if stop_at and any(re.search(stop_at, line) for line in terminal.lines[seen:]):
            child.send_signal(signal.SIGINT)
            stop_at = ""
    return child.wait(), terminal


def test_a_run_shows_itself_stops_with_a_notice_and_goes_on(tmp_path):
    run = tmp_path / "my runs"
    settings = [*QUICK, "train.steps=6", "rollout.all_truncated=go_on"]
    words = ["train", "demo.yaml", "--stage", "va_opd", f"run={run}", *settings]
    code, terminal = run_in_terminal(words, 40, stop_at="step [2-4]/6")
    assert code == 130
    shown = {line.split()[0] for line in terminal.lines if line}
    assert {"loading", "evaluating", "step"} <= shown
    screen = "".join(terminal.screen())
    assert "stopped by Ctrl-C after step " in screen
    assert "error" not in screen
    assert without_breaks(shlex.join(["vistill", *words])) in without_breaks(screen)
    code, terminal = run_in_terminal(words, 80)
    assert code == 0
    rows = terminal.screen()
    assert any(row.startswith("resumed from checkpoint-00000") for row in rows)
    assert [row.split()[0] for row in rows if row.startswith(("accuracy", "blind", "student"))]
    steps = [row for row in rows if re.match(r"step \d+/", row)]
    assert steps, "evaluations stay on the screen"
    assert not [row for row in steps if "accuracy" not in row], "a live line stays behind"
    start = next(i for i, row in enumerate(rows) if row.startswith("  question"))
    indented = [row.split()[0] for row in rows[start:] if row.startswith("  ")]
    assert indented[:2] == ["question", "response"]
    assert indented[2] in ("wrong", "correct")
    drawn = [line for line in terminal.lines if re.search(r"step \d/6|loading|evaluating", line)]
    assert max(len(line) for line in drawn) <= 79
    code, terminal = run_in_terminal(words, 120)
    assert code == 0
    assert any(row.startswith("already finished: 6 steps") for row in terminal.screen())


def test_the_next_commands_of_a_finished_run_work(tmp_path, monkeypatch):
    run = tmp_path / "my runs"
    done = command("train", "demo.yaml", "--stage", "opd", f"run={run}", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr
    lines = done.stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("next "))
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is 1+1?"))  # chat asks what a pipe asks
    for line in lines[first : first + 3]:
        words = shlex.split(line.removeprefix("next"))
        assert words[0] == "vistill"
        again = command(*words[1:])
        assert again.returncode == 0, again.stderr
    assert done.stdout.splitlines()[-1].startswith("report ")

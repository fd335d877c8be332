"""The live line: never longer than the terminal, other text above it, plain lines elsewhere."""

import io
import sys

import pytest
from rich.cells import cell_len
from terminal_emulator import EVALUATION, RESPONSE, STEP, Clock, FakeTerminal

from vistill.cli.terminal import EscapingStream
from vistill.display.live_line import LiveLine, Part, cut_line, cut_middle, fit_parts
from vistill.display.run_display import RunDisplay
from vistill.redaction import for_terminal

WIDTHS = [40, 80, 120, 200]
PHASES = [
    "checking rows",
    "loading torch and transformers",
    "检查数据集中的所有行" * 9,
    "e\u0301" * 99,
]


@pytest.fixture
def terminal(monkeypatch):
    """Makes terminals of some columns."""
    monkeypatch.setenv("TERM", "xterm")
    return FakeTerminal


def show_a_run(display, clock):
    """Show every kind of record, hostile and wide texts included."""
    for phase in PHASES:
        display.show({"phase": phase, "done": 120, "total": 2101})
        clock.now += 1
        display.tick()
    display.show(EVALUATION | {"response": RESPONSE})
    display.show(STEP)
    for phase in PHASES:
        display.show({"phase": phase, "done": 31, "total": 64, "stage": ""})
        clock.now += 1
        display.tick()
    display.show({"event": "note: \x1b[31m 12,345 rows have no answer " + "and so on " * 40})
    display.show({"phase": "a\rb\nc\x1b[2J", "done": 1, "total": None})
    clock.now += 1
    display.tick()


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_live_line_is_one_row_at_every_width(terminal, columns):
    stream, clock = terminal(columns), Clock()
    with RunDisplay(stream, clock, ticks=False) as display:
        show_a_run(display, clock)
        live = display.line.drawn
        assert 0 < live <= columns - 1
        assert cell_len(stream.rows[-1]) == live
    assert not stream.rows[-1], "the line is erased at the end"
    rows = stream.screen()
    assert [row for row in rows if "accuracy 45.3 %" in row]
    assert not [row for row in rows if row.startswith("step 1234/6550  ")], "no line stays behind"
    event = -(
        -len(for_terminal("note: \x1b[31m 12,345 rows have no answer ") + "and so on " * 40)
        // columns
    )
    assert len(rows) <= 4 + event + 1, "an evaluation, its response, and the event"


@pytest.mark.parametrize("columns", WIDTHS)
def test_only_events_that_are_longer_than_the_terminal_wrap(terminal, columns):
    stream, clock = terminal(columns), Clock()
    display = RunDisplay(stream, clock, ticks=False)
    for record in (
        {"phase": PHASES[2], "done": 1, "total": 2},
        EVALUATION | {"response": RESPONSE},
        STEP,
    ):
        display.show(record)
        clock.now += 1
    assert stream.wrapped == 0
    assert stream.widest <= columns - 1


def test_what_matters_most_stays_at_40_columns(terminal):
    stream, clock = terminal(40), Clock()
    display = RunDisplay(stream, clock, ticks=False)
    display.show(STEP)
    clock.now += 10
    display.show(STEP | {"step": 1235})
    display.show({"phase": "writing responses", "done": 31, "total": 64})
    clock.now += 1
    display.tick()
    assert stream.rows[-1] == "step 1235/6550  writing 31/64  2:57:09"
    wide, clock = terminal(200), Clock()
    display = RunDisplay(wide, clock, ticks=False)
    display.show(EVALUATION)
    display.show(STEP)
    clock.now += 1
    display.tick()
    for text in (
        "loss 0.0123",
        "accuracy 45.3 %",
        "visual advantage 0.100",
        "4,000 tokens/s",
        "left",
    ):
        assert text in wide.rows[-1]


@pytest.mark.parametrize("columns", [40, 60])
def test_a_terminal_that_becomes_narrower_keeps_no_half_of_a_line(terminal, columns):
    stream, clock = terminal(120), Clock()
    display = RunDisplay(stream, clock, ticks=False)
    display.show({"event": "an event"})
    display.show(EVALUATION)
    display.show(STEP)
    clock.now += 1
    display.tick()
    assert cell_len(stream.rows[-1]) > 60
    stream.resize(columns)
    clock.now += 1
    display.tick()
    assert [row.split()[0] for row in stream.screen()] == ["an", "step", "step"]
    stream.resize(200)
    clock.now += 1
    display.tick()
    assert len(stream.screen()) == 3


def test_text_of_others_stands_above_the_line(terminal, monkeypatch):
    stream, clock = terminal(80), Clock()
    escaped, out = EscapingStream(stream, progress=True), EscapingStream(stream)
    display = RunDisplay(escaped, clock, ticks=False)
    display.show({"phase": "loading models"})
    assert stream.screen() == ["loading models"]
    monkeypatch.setattr(sys, "stdout", out)
    print("3 rows quarantined")
    clock.now += 1
    display.tick()
    assert stream.screen() == ["3 rows quarantined", "loading models  0:01"]
    display.__exit__(None, None, None)


@pytest.mark.parametrize("width", [0, 1, 2, 3, 5, 12, 39])
@pytest.mark.parametrize("text", ["a" * 50, "检查" * 30, "e\u0301" * 60, "🎉ab" * 20, ""])
def test_cut_texts_are_never_wider(text, width):
    assert cell_len(cut_line(text, width)) <= width
    assert cell_len(cut_middle(text, width)) <= width
    assert cut_line(text, 500) == cut_middle(text, 500) == text


def test_the_least_important_parts_are_shortened_then_dropped():
    parts = [
        Part("step 1/9", 9),
        Part("writing responses 3/64", 7, "writing 3/64"),
        Part("loss 1", 4),
    ]
    assert fit_parts(parts, 80) == "step 1/9  writing responses 3/64  loss 1"
    assert fit_parts(parts, 33) == "step 1/9  writing responses 3/64"
    assert fit_parts(parts, 31) == "step 1/9  writing 3/64"
    assert fit_parts(parts, 15) == "step 1/9"
    assert fit_parts(parts, 5) == "st..."


@pytest.mark.parametrize("kind", ["pipe", "dumb"])
def test_without_a_terminal_lines_are_plain_and_rare(kind, monkeypatch, terminal):
    monkeypatch.setenv("TERM", "dumb" if kind == "dumb" else "xterm")
    stream, clock = (terminal(80) if kind == "dumb" else io.StringIO()), Clock()
    printed = stream.lines if kind == "dumb" else None
    with RunDisplay(stream, clock, ticks=False) as display:
        display.show({"phase": "loading models"})
        for _ in range(10):
            clock.now += 0.5
            display.tick()
        for step in range(1, 101):
            display.show({"phase": "writing responses", "done": 0, "total": 64})
            clock.now += 1
            display.tick()
            display.show(STEP | {"step": step, "steps": 100})
    if printed is not None:
        assert stream.wrapped == 0
        lines = stream.screen()
    else:
        text = stream.getvalue()
        assert "\r" not in text
        assert "\x1b" not in text
        lines = text.splitlines()
    assert lines[0] == "loading models  0:02"
    assert [line.split()[1] for line in lines[1:]] == [
        "1/100",
        "30/100",
        "60/100",
        "90/100",
        "100/100",
    ]
    assert lines[2].startswith("step 30/100  writing responses 0/64  loss 0.0123")


def test_a_closed_pipe_does_not_stop_a_run():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with RunDisplay(Closed(), ticks=False) as display:
        display.show({"event": "an event"})


def test_a_line_without_a_terminal_width_takes_eighty_columns():
    stream = io.StringIO()
    LiveLine(stream).draw([Part("x" * 200, 1)])
    assert stream.getvalue() == "\r\x1b[K" + "x" * 76 + "..."

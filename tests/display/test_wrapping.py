"""Long lines on a terminal: whole words, a hanging indent, and commands that stay one line."""

import ast
import re
import shlex
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from terminal_emulator import FakeTerminal

from vistill.cli import messages
from vistill.display.live_line import LiveLine, Part
from vistill.display.run_display import RunDisplay
from vistill.display.wrapping import fit_line, fit_text
from vistill.errors import DataError

TABLE = "recipe          va_opd, passes student.full, teacher.full, teacher.pixelated"
PROMPT = "                | In the isosceles triangle the points are added on the sides"
COMMAND = "                vistill export runs/a_run_with_a_name --to student"


@given(text=st.text(st.sampled_from(list("ab |角\n")), max_size=200), columns=st.integers(4, 60))
def test_no_row_is_wider_and_no_character_is_lost(text, columns):
    rows = fit_text(text, columns).split("\n")
    assert all(cell_len(row) <= columns for row in rows)
    assert "".join("".join(rows).replace("|", "").split()) == "".join(text.replace("|", "").split())


@pytest.mark.parametrize("columns", [40, 60])
def test_words_stay_whole_below_their_label(columns):
    rows = fit_line(TABLE, columns)
    assert " ".join(" ".join(rows).split()) == " ".join(TABLE.split())
    assert all(row.startswith(" " * 16) for row in rows[1:])
    rows = fit_line(PROMPT, columns)
    assert all(row.startswith(" " * 16 + "| ") for row in rows)
    assert len(rows) > 1


def test_what_is_pasted_continues_with_a_backslash():
    words = "vistill export runs/a_run_with_a_name --to student"
    rows = fit_line(f"next{COMMAND[4:]}", 40)
    assert rows[:2] == [
        "next            vistill export \\",
        "                  runs/a_run_with_a_name \\",
    ]
    assert " ".join(" ".join(rows).replace("\\", "").split()) == f"next {words}"
    fix = "fix   rollout.max_new_tokens=48 run=runs/another_name"
    assert fit_line(fix, 40) == [
        "fix   rollout.max_new_tokens=48 \\", "        run=runs/another_name",
    ]  # fmt: skip
    line = "   Next   vistill init va-opd --data YOUR.jsonl      your first recipe"
    assert fit_line(line, 40)[-1] == "          your first recipe"
    assert len(fit_line("vistill demo · 2 cores · no network needed · writing to x", 40)) == 2
    assert fit_line("fix   data.limit=1", 40) == ["fix   data.limit=1"]


FIXES = [
    "sed -i.bak '12s/train\\.epochs:/train.epochs:/' 'rezept ä b.yaml'   and then   train.epochs=2",
    "vistill export 'runs/a b' --to student-2 --dtype bf16",
    "train.lr=1e-6 --accept train.lr   or in a new run:   'run=runs/a  long name' train.lr=1e-6",
    "rollout.per_prompt=4   or, on purpose,   va_opd.rollout_weights=false   or   method=opd",
    "'data.template={prompt}\\nThink of it, and answer.'   in place of data.temlate",
]


@pytest.mark.parametrize("columns", [30, 40, 60, 80])
@pytest.mark.parametrize("fix", FIXES)
def test_a_fix_is_the_same_when_its_rows_are_pasted(fix, columns):
    """What a shell reads of the rows of each part are the words of the part."""
    rows = fit_line(f"fix   {fix}", columns)
    joined = "\n".join(rows).replace("\\\n", " ")
    assert shlex.split(joined)[1:] == shlex.split(fix)
    for part in re.split(r" {3,}", fix):
        if "=" in part or "--" in part:  # something to paste: it begins behind a gap
            begin = joined.index(part.split(" ")[0])
            assert joined[begin - 2 : begin].strip() == ""
            end = joined.find("\n", begin)
            own = shlex.split(joined[begin : end if end >= 0 else None])
            assert own[: len(shlex.split(part))] == shlex.split(part)
    long = [row for row in rows if cell_len(row) > columns]
    assert all(len(shlex.split(row.rstrip("\\"))) <= 2 for row in long)  # one word and its label


def test_python_is_broken_outside_of_its_texts():
    fix = "vistill.distill(..., out='runs/a b', train=vistill.TrainSettings(lr=1e-06))"
    rows = fit_line(f"fix   {fix}", 40)
    assert len(rows) > 2
    assert not any(row.endswith("\\") for row in rows)
    text = "\n".join(rows).removeprefix("fix   ")
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(fix))


def test_an_event_of_a_run_keeps_its_words_on_a_terminal():
    stream = FakeTerminal(40)
    display = RunDisplay(stream, ticks=False)
    event = "note: data/train.jsonl: images: column images; the other one of images is unread"
    display.show({"event": event})
    assert stream.wrapped == 0
    rows = stream.screen()
    assert rows[0] == "note: data/train.jsonl: images: column"
    assert " ".join(" ".join(rows).split()) == event


def test_an_error_keeps_its_words_and_its_fix_on_a_terminal(monkeypatch):
    stream = FakeTerminal(40)
    monkeypatch.setattr(sys, "stderr", stream)
    why = "the student never ends a response by itself, so it never learns how one ends"
    fix = "vistill export runs/with_a_long_name --to student-2"
    messages.show_error(DataError("D201", "it is wrong", where="x", why=why, fix=fix))
    rows = stream.screen()
    assert "why   the student never ends a response" in rows
    assert "fix   vistill export \\" in rows
    command = "vistill train r.yaml run=runs/x train.lr=1e-4"
    messages.show_notice("stopped by Ctrl-C", command)
    text = "\n".join(stream.screen()).replace("\\\n", " ")
    assert text.split("fix")[1].split("stopped")[0].split() == fix.split()
    assert text.partition("to continue:")[2].split() == command.split()


def test_a_notice_takes_the_place_of_a_live_line(monkeypatch):
    stream = FakeTerminal(60)
    monkeypatch.setattr(sys, "stderr", stream)
    LiveLine(stream).draw([Part("waiting for each arm to save  opd 6/64", 1)])
    messages.show_notice("stopped by Ctrl-C", "vistill demo")
    assert stream.screen()[0] == "stopped by Ctrl-C"


def test_a_place_that_the_message_names_is_not_repeated():
    error = DataError("D201", "runs/x exists already", where="runs/x")
    assert error.render() == "error[D201]: runs/x exists already"
    assert DataError("D201", "it exists", where="runs/x").render().endswith("exists   runs/x")

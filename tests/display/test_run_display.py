"""What a run shows: phases and counts, the time left, a response, the table at the end."""

import io
import json
import shlex
import sys
import time

import pytest
from terminal_emulator import EVALUATION, RESPONSE, STEP, Clock, FakeTerminal, finished_run

from vistill import phases
from vistill.display.run_display import STATUS_VARIABLE, RunDisplay, is_notebook
from vistill.display.run_summary import run_summary
from vistill.display.time_left import TimeLeft, duration_text
from vistill.evaluation.unparsed import unparsed_warning
from vistill.phases import (
    RESPONSES,
    PhaseProgress,
    count_done,
    count_items,
    open_phase,
    report_phases,
    responses_counted,
    restart_count,
    send_record,
)

# ---- phases ----


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)  # events are limited by time
    return clock


def test_a_phase_sends_its_first_event_at_once_and_others_at_most_ten_a_second(clock):
    records = []
    with report_phases(records.append), open_phase("writing responses", 64, RESPONSES):
        for _ in range(64):
            clock.now += 0.01
            count_done(RESPONSES, 1)
    assert records[0] == {"phase": "writing responses", "done": 0, "total": 64}
    assert len(records) <= 1 + 64 * 0.01 / phases.EVENT_SECONDS + 1
    assert [r["done"] for r in records] == sorted(r["done"] for r in records)


def test_a_count_goes_to_the_phase_that_counts_it_and_never_beyond_the_total(clock):
    with open_phase("canary", 2) as outer:
        count_done(RESPONSES, 5)
        assert outer.done == 0, "a canary counts readers"
        with open_phase("evaluating", 12, RESPONSES) as inner:
            count_done("readings", 3)
            count_done(RESPONSES, 5)
            with responses_counted(4):
                count_done(RESPONSES, 1)
            assert inner.done == 9
            with responses_counted(8):
                pass
            assert inner.done == 12
            restart_count()
            assert inner.done == 0
    count_done(RESPONSES, 1)  # outside of phases nothing is counted


def test_without_a_receiver_nothing_is_sent_and_the_default_callback_is_no_loop():
    send_record({"event": "x"})
    records = []
    with report_phases(records.append), report_phases(send_record):
        send_record({"event": "x"})
        assert list(count_items("checking rows", iter("abc"), 3)) == ["a", "b", "c"]
    assert records == [{"event": "x"}, {"phase": "checking rows", "done": 0, "total": 3}]


def test_an_event_is_text_of_phase_and_count():
    event = PhaseProgress("checking rows", 120, 2101)
    assert event.text() == "checking rows 120/2,101"
    assert event.short_text() == "checking 120/2,101"
    assert PhaseProgress("loading models").text() == "loading models"
    assert PhaseProgress.from_record(event.to_record()) == event


# ---- time left ----


def test_the_time_left_leaves_the_first_step_out_and_adds_evaluations_and_saves():
    left = TimeLeft()
    record = {"step": 10, "steps": 110, "evaluation_responses_left": 400, "saves_left": 3}
    assert left.after(record) is None
    left.add_step(60.0)
    assert left.is_rough
    assert left.misses_evaluations(record)
    assert left.after(record) == 100 * 60.0
    for _ in range(4):
        left.add_step(2.0)
    left.add_evaluation(50.0, 100)
    left.saves.append(5.0)
    assert not left.is_rough
    assert not left.misses_evaluations(record)
    assert left.after(record) == 100 * 2.0 + 400 * 0.5 + 3 * 5.0


def test_the_display_measures_steps_evaluations_and_saves_apart(monkeypatch):
    clock = Clock()
    display = RunDisplay(io.StringIO(), clock, ticks=False)

    def spend(seconds, record):
        display.show(record)
        clock.now += seconds

    spend(30, {"phase": "evaluating", "done": 0, "total": 64})
    record = {"step": 0, "steps": 4, "eval/accuracy": 0.5, "evaluation_responses": 300}
    spend(7, record)
    left = {"evaluation_responses_left": 300, "saves_left": 1}
    for step, seconds in ((1, 20), (2, 2), (3, 4)):
        spend(seconds, {"phase": "writing responses", "done": 0, "total": 8})
        spend(1, STEP | left | {"step": step, "steps": 4})
        spend(11, {"phase": "saving"})
    display.show({"phase": "writing responses", "done": 0, "total": 8})
    times = display.time_left
    assert times.first_step == 20
    assert list(times.steps) == [2, 4]
    assert list(times.saves) == [11, 11, 11]
    assert times.evaluation_seconds == 30
    # one step of 3 s, the last evaluation; its save is already done
    assert display.estimate == pytest.approx(3 + 30)
    clock.now += 13
    assert display.left_text(clock.now) == "0:20 left"


def test_durations_are_short():
    values = {0: "0:00", 41.4: "0:41", 725: "12:05", 7392: "2:03:12", 200000: "2 d 7 h", -5: "0:00"}
    assert {seconds: duration_text(seconds) for seconds in values} == values


# ---- what progress costs ----


def test_a_thousand_records_in_a_second_are_at_most_eleven_writes(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal, clock = FakeTerminal(80), Clock()
    with RunDisplay(terminal, clock, ticks=False) as display:
        for step in range(1, 251):
            for phase in ("writing responses", "scoring", "learning"):
                display.show({"phase": phase, "done": 0, "total": 64})
                clock.now += 0.001
            display.show(STEP | {"step": step, "steps": 250})
            clock.now += 0.001
        assert terminal.writes <= 11


def test_a_status_file_has_phase_step_and_time_left(tmp_path, monkeypatch):
    file = tmp_path / "status.json"
    monkeypatch.setenv(STATUS_VARIABLE, str(file))
    clock = Clock()
    display = RunDisplay(io.StringIO(), clock, ticks=False)
    display.show({"phase": "checking rows", "done": 1, "total": 2})
    assert not file.exists(), "only the clock writes, not every record"
    display.tick()
    status = json.loads(file.read_text())
    assert status["phase"] == {"phase": "checking rows", "done": 1, "total": 2}
    display.show(STEP)
    display.tick()
    status = json.loads(file.read_text())
    assert (status["phase"], status["step"], status["steps"]) == (None, 1234, 6550)
    assert status["left"].endswith("left")


# ---- a response at each evaluation ----


def test_an_evaluation_shows_a_response_with_its_verdict():
    stream = io.StringIO()
    display = RunDisplay(stream, ticks=False)
    display.show(
        EVALUATION | {"eval/accuracy_low": 0.37, "eval/accuracy_high": 0.54, "response": RESPONSE}
    )
    first, question, response, verdict = stream.getvalue().splitlines()
    assert first == "step 1200/6550  accuracy 45.3 % [37.0, 54.0]"
    assert question.startswith("  question  四边形")
    assert response.startswith("  response  The sides are 3 and 4.")
    assert response.endswith("The answer is \\boxed{7}.")
    assert verdict == "  wrong     answer 7; gold 42; another value; rule box"
    right = RESPONSE | {"correct": True, "extracted": "42", "reason": ""}
    display.show(EVALUATION | {"response": right})
    assert stream.getvalue().splitlines()[-1] == "  correct   answer 42; gold 42; rule box"
    display.show(
        EVALUATION | {"response": RESPONSE | {"extracted": None, "rule": "", "reason": ""}}
    )
    assert stream.getvalue().splitlines()[-1] == "  wrong     no answer; gold 42"


def test_a_warning_of_the_last_evaluation_stands_once_where_a_table_follows():
    warning = {"event": f"WARNING: {unparsed_warning({'unparsed_share': 0.5})}"}
    for has_summary, count in ((True, 1), (False, 2)):
        stream = io.StringIO()
        display = RunDisplay(stream, ticks=False, has_summary=has_summary)
        display.show(EVALUATION | {"step": 0})
        display.show(warning)
        display.show(EVALUATION | {"step": EVALUATION["steps"]})
        display.show(warning)
        display.show({"event": "note: another event"})
        assert stream.getvalue().count("WARNING") == count
        assert "another event" in stream.getvalue()


# ---- the end ----


def test_the_table_at_the_end_has_before_after_student_and_next_commands(tmp_path):
    path = finished_run(tmp_path / "my runs" / "it's")
    lines = run_summary(path).splitlines()
    cells = {
        line[:15].strip(): [line[i : i + 12].strip() for i in (15, 27, 39)] for line in lines[:-3]
    }
    assert cells[""] == ["before", "after", "student"]
    assert cells["step"] == ["0", "64", "32"]
    assert cells["accuracy"] == ["25.0 %", "45.0 %", "50.0 %"]
    assert cells["95 % interval"][:2] == ["20.0 - 30.0", "42.0 - 48.0"]
    assert cells["blind gap"] == ["12.5"] * 3
    assert cells["unparsed"] == ["1.0 %"] * 3
    assert cells["questions"] == ["1,024", "1,024", "128"]
    assert f"student         {path}/student" in lines
    assert "checkpoint-000032 (best accuracy on 128 fixed rows x 1 samples, 50.0 %)" in lines[-4]
    commands = [line[16:] for line in lines[-3:]]
    assert [shlex.split(command) for command in commands] == [
        ["vistill", verb, str(path)] for verb in ("chat", "eval", "export")
    ]


def test_the_table_of_two_evaluations_fits_into_40_columns(tmp_path):
    last = {"step": 64, "by": "last"}
    path = finished_run(tmp_path / "r", chosen=last, checkpoint="checkpoint-000064")
    lines = run_summary(path).splitlines()
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith("student"))]
    assert max(map(len, table)) <= 39
    assert "checkpoint      checkpoint-000064 (the last step)" in lines


def test_a_run_without_evaluations_or_without_an_end_has_no_table(tmp_path):
    path = finished_run(tmp_path / "a", chosen={"step": 64, "by": "last"})
    (path / "evaluations.jsonl").write_text("")
    assert run_summary(path).startswith("student ")
    assert run_summary(finished_run(tmp_path / "b", finished=False)) == ""


# ---- notebooks ----


def test_a_notebook_gets_plain_lines_on_stdout(monkeypatch, capsys):
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", type("IPython", (), {"get_ipython": lambda: shell}))
    assert is_notebook()
    with RunDisplay(ticks=False) as display:
        display.show({"event": "an event"})
    assert capsys.readouterr() == ("an event\n", "")

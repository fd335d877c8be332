"""The process of math-verify: limits, crashes, silence, and answers that are kept."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from vistill import judge
from vistill.answers.math_process import FILE, MathJudge, shared_judge
from vistill.errors import RolloutError
from vistill.runs.storage import append_line


@pytest.fixture
def math():
    process = MathJudge()
    yield process
    process.close()


def test_one_process_serves_all_calls():
    assert judge("\\boxed{\\sqrt{8}}", "2\\sqrt{2}").correct
    number = shared_judge().process.pid
    assert judge("\\boxed{\\sqrt{18}}", "3\\sqrt{2}").correct
    with shared_judge() as same:
        assert same.process.pid == number
    assert shared_judge().process.pid == number


def test_it_works_in_a_thread(math):
    results = []
    worker = threading.Thread(target=lambda: results.append(math.equal("\\frac{1}{2}", "0.5")))
    worker.start()
    worker.join()
    assert results == [True]


def test_it_restarts_after_a_crash_between_two_questions(math):
    assert math.equal("x+1", "1+x")
    os.kill(math.process.pid, signal.SIGKILL)
    math.process.wait()
    assert math.equal("x+2", "2+x")
    assert not math.limits


class Poisoned(MathJudge):
    """Its process is killed at every question about poison."""

    def _ask(self, gold, answer, patience):
        if gold == "poison":
            os.kill(self._start().pid, signal.SIGKILL)
        return super()._ask(gold, answer, patience)


def test_a_question_that_ends_the_process_twice_is_wrong_and_counted():
    with Poisoned() as math:
        assert not math.equal("poison", "poison")
        assert math.limits == {"crash": 1}
        assert math.equal("x+1", "1+x")


@pytest.mark.slow
def test_processor_time_is_limited_and_counted():
    with MathJudge(seconds=0.5) as math:
        assert not math.equal("\\binom{10^{9}}{10^{8}}", "3")
        assert math.limits == {"time": 1}
        assert math.equal("x+1", "1+x")


def test_memory_is_limited_and_counted(math):
    code = (
        "from vistill.answers.math_worker import limit_memory; limit_memory(400 * 1024**2);"
        "bytearray(10**9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MemoryError" in done.stderr
    math._ask = lambda *question: "memory"
    assert not math.equal("a", "b")
    assert math.limits == {"memory": 1}


class Silent(MathJudge):
    """Its process is silent for the first questions; it counts the patience of each."""

    def __init__(self, times):
        super().__init__()
        self.times, self.asked = times, []

    def _ask(self, gold, answer, patience):
        self.asked.append(patience)
        if len(self.asked) > self.times:
            return super()._ask(gold, answer, patience)
        os.kill(self._start().pid, signal.SIGSTOP)
        return super()._ask(gold, answer, 0.2)


def test_silence_is_asked_again_alone():
    with Silent(1) as math:
        assert math.equal("x+1", "1+x")
        assert math.asked == list(math.patience)
        assert not math.limits


def test_silence_twice_stops_the_run_with_a_code():
    with Silent(2) as math:
        with pytest.raises(RolloutError) as error:
            math.equal("x+1", "1+x")
        assert error.value.code == "R409"
        assert math.answers == {}


def test_answers_are_kept_by_content_in_a_folder(math, tmp_path):
    with math.kept_in(tmp_path, append_line):
        assert math.equal("x+1", "1+x")
        assert not math.equal("x+1", "x+2")
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [line["equal"] for line in lines] == [True, False]
    other = MathJudge()
    other._ask = lambda *question: pytest.fail("it was asked again")
    with other.kept_in(tmp_path, append_line):
        assert other.equal("x+1", "1+x")
        assert not other.equal("x+1", "x+2")
    assert other.answers == {}


def test_a_limit_is_counted_again_when_its_answer_was_kept(tmp_path):
    with MathJudge() as first, first.kept_in(tmp_path, append_line):
        first._ask = lambda *question: "time"
        assert not first.equal("a", "b")
    with MathJudge() as again, again.kept_in(tmp_path, append_line):
        assert not again.equal("a", "b")
        assert again.limits == {"time": 1}


def test_a_line_that_a_power_cut_left_incomplete_is_asked_again(math, tmp_path):
    (tmp_path / FILE).write_text('{"key": "00", "eq')
    with math.kept_in(tmp_path, append_line):
        assert math.equal("x+1", "1+x")
    last = (tmp_path / FILE).read_text().splitlines()[-1]
    assert json.loads(last)["equal"] is True


def test_hostile_answers_run_no_code(tmp_path):
    marker = tmp_path / "marker"
    for text in (
        f"__import__('pathlib').Path('{marker}').touch()",
        "9**9**9**9",
        "\\boxed{" * 50,
        "\x1b[2J" + "(" * 2000,
    ):
        assert not judge(f"\\boxed{{{text}}}", "1").correct
    assert not marker.exists()

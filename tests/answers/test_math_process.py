"""The process of math-verify: limits, crashes, silence, and answers that are kept."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from vistill import judge
from vistill.answers import worker_process
from vistill.answers.expression_size import is_too_large
from vistill.answers.judge import Question, verdict_of
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
    """Its process has been killed when a question about poison is sent."""

    is_poison = False

    def _ask(self, gold, answer, patience):
        self.is_poison = gold == "poison"
        return super()._ask(gold, answer, patience)

    def _start(self):
        process = super()._start()
        if self.is_poison:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()  # else a slow machine sends the question to the next process
        return process


def test_a_question_that_ends_the_process_twice_is_wrong_and_counted():
    with Poisoned() as math:
        assert not math.equal("poison", "poison")
        assert math.limits == {"crash": 1}
        assert math.equal("x+1", "1+x")


@pytest.mark.slow
def test_processor_time_is_limited_and_counted():
    with MathJudge(seconds=0.5) as math:
        assert not math.equal("\\int_{0}^{1} \\sqrt{x^{7}+\\sin x+\\log(x+2)} dx", "3")
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


def squares(math, numbers):
    """How many comparisons of squares, half of them equal, have a wrong verdict."""
    wrong = 0
    for n in numbers:
        wrong += math.equal(f"(x+{n})^2", f"x^2+{2 * n}x+{n * n}") is not True
        wrong += math.equal(f"(x+{n})^2", f"x^2+{2 * n}x+{n * n + 1}") is not False
    return wrong


def test_an_interrupted_question_leaves_no_answer_to_the_next(math):
    assert math.equal("x+1", "1+x")
    math.process.send_signal(signal.SIGSTOP)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job may ignore it
    try:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            math.equal("x+2", "2+x")
    finally:
        signal.signal(signal.SIGINT, before)
    assert math.process is None
    assert squares(math, range(1, 4)) == 0


def test_a_start_that_is_interrupted_leaves_no_process(math, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # An interrupt at exactly this moment.
        patch.setattr(worker_process, "read_line", interrupt)
        with pytest.raises(KeyboardInterrupt):
            math.equal("x+2", "2+x")
    assert squares(math, range(1, 3)) == 0


def test_an_answer_to_another_question_is_a_lost_process(math):
    assert math.equal("x+1", "1+x")
    os.write(math.process.stdin.fileno(), b'[99, "1", "2"]\n')
    assert math.equal("x+2", "2+x")
    assert squares(math, range(1, 3)) == 0


def test_a_terminal_interrupt_does_not_end_the_process(math):
    assert math.equal("x+1", "1+x")
    number = math.process.pid
    math.process.send_signal(signal.SIGINT)
    assert math.equal("x+2", "2+x")
    assert math.process.pid == number


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_starts_a_process_of_its_own(math, tmp_path):
    with math.kept_in(tmp_path, append_line):
        assert math.equal("x+1", "1+x")
        number, lines = math.process.pid, (tmp_path / FILE).read_text()
        child = os.fork()
        if child == 0:
            wrong = 1
            try:
                wrong = squares(math, range(1, 3)) + (math.process.pid == number)
                wrong += (tmp_path / FILE).read_text() != lines
                math.close()
            finally:
                os._exit(wrong)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert squares(math, range(3, 5)) == 0
        assert math.process.pid == number


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_is_forked_during_a_question_of_a_thread_does_not_wait(math):
    assert math.equal("x+1", "1+x")
    ready, go_on = threading.Event(), threading.Event()

    def hold():
        with math.lock:
            ready.set()
            go_on.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    ready.wait()
    child = os.fork()
    if child == 0:
        os._exit(not math.lock.acquire(timeout=2))
    go_on.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_nothing_of_the_current_folder_is_executed(math, tmp_path, monkeypatch):
    (tmp_path / "sympy").mkdir()
    for name in ("resource.py", "sympy/__init__.py", "sitecustomize.py", "math_verify.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    assert math.equal("x+1", "1+x")
    assert not (tmp_path / "marker").exists()


def program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("exit 3", "code 3"),
        ("echo hello; exec cat", "hello"),
        ('echo \'{"error": "ImportError: no sympy"}\'', "no sympy"),
        (None, "No such file"),
    ],
)
def test_a_process_that_does_not_start_stops_the_run(math, tmp_path, monkeypatch, text, why):
    file = str(tmp_path / "none") if text is None else program(tmp_path / "python", text)
    with math.kept_in(tmp_path, append_line):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", file)
            with pytest.raises(RolloutError) as error:
                math.equal("x+1", "1+x")
        assert error.value.code == "R409"
        assert why in error.value.why
        assert math.answers == {}
        assert not (tmp_path / FILE).exists()
        assert math.equal("x+1", "1+x")


def test_an_import_error_of_the_process_is_its_first_line():
    words = [sys.executable, "-I", "-S", str(worker_process.WORKER), "1", str(1 << 32)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "math_verify" in json.loads(done.stdout)["error"]


def test_open_files_at_their_limit_stop_the_run(math, monkeypatch):
    def no_file(*arguments, **options):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(subprocess, "Popen", no_file)
    with pytest.raises(RolloutError) as error:
        math.equal("x+1", "1+x")
    assert error.value.code == "R409"
    assert "Too many open files" in error.value.why
    assert math.answers == {}


class Terminated(MathJudge):
    """Something else ends its process at every question."""

    def _start(self):
        process = super()._start()
        process.send_signal(signal.SIGTERM)
        process.wait()
        return process


def test_a_process_that_something_else_ends_is_no_verdict():
    with Terminated() as math:
        with pytest.raises(RolloutError) as error:
            math.equal("x+1", "1+x")
        assert error.value.code == "R409"
        assert math.answers == {}


def test_a_long_question_to_a_stopped_process_does_not_hang(math):
    process = math._start()
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(worker_process.NoAnswerError):
        math._ask("x" * 300_000, "1", 0.2)
    assert math.process is None


def test_damaged_lines_of_a_run_folder_are_asked_again(math, tmp_path):
    (tmp_path / FILE).write_bytes(b'[1]\n\xff\xfe\n{"key": "00", "equal": "false"}\n\xff')
    with math.kept_in(tmp_path, append_line):
        assert math.answers == {}
        assert math.equal("x+1", "1+x")
    assert json.loads((tmp_path / FILE).read_bytes().splitlines()[-1])["equal"] is True


@pytest.mark.parametrize(
    "form",
    [
        "99999999!", "9!!", "9^{9^{9^{9}}}", "9^9^9", "(9^9)^{9^9}", "9^{9!}", "9^{1+9^{9}}",
        "\\sqrt{9^{9^{9}}}", "(x+1)^{99999999}", "\\left(\\frac{1}{2}\\right)^{99999999}",
        "9^{" * 20_000 + "9" + "}" * 20_000, "9" * 5000 + "!",
        "\\binom{10^{9}}{10^{8}}", "\\tbinom{999999999}{99999999}", "\\dbinom{10^9}{10^8}",
        "{10^9 \\choose 10^8}", "\\binom{\\binom{50}{25}}{\\binom{40}{20}}", "2^{\\binom{100}{50}}",
        "\\binom{100000}{50000}", "\\int_0^{10^9} x^{10^9} dx", "\\sqrt{10^{19999}+1}",
    ],
)  # fmt: skip
def test_what_is_too_large_to_compute_is_refused_before_the_process(form):
    with MathJudge() as math:
        math._ask = lambda *question: pytest.fail("it was asked")
        assert not math.equal("12", form)
        assert not math.equal(form, "x+1")
        assert math.limits == {"size": 2}


@pytest.mark.parametrize(
    "form",
    [
        "100!", "3!!", "(6!)!", "2^{64}", "2^{2^{10}}", "10^{-12}", "1.05^{365}", "7^{2023}",
        "x^{1000000}", "e^{-x^{2}}", "x^{2^{n}}", "(x+1)^{20}", "\\frac{1}{2^{20}}", "2^{10}!",
        "6.02\\cdot10^{23}", "2^", "!", "^^", "9)^2", "{", "\\binom{1000}{500}", "\\binom{10^9}{2}",
        "\\binom{n}{k}", "\\binom52", "\\binom", "{5 \\choose 2}", "\\int_0^1 x^{12} dx",
        "\\sqrt[3]{2^{30}}", "\\sqrt", "\\sqrt}^2", "\\binom{5}{2}^{3}",
    ],
)  # fmt: skip
def test_usual_powers_and_factorials_are_not_too_large(form):
    assert not is_too_large(form)


class Slow(MathJudge):
    """Each of its questions takes a time, which it states."""

    def __init__(self, used, answer=False):
        super().__init__()
        self.asked, self.each, self.answer = 0, used, answer

    def _ask(self, gold, answer, patience):
        self.asked, self.used = self.asked + 1, self.each
        return self.answer


@pytest.mark.parametrize(("used", "answer", "asked"), [(2.0, False, 3), (5.5, "time", 1)])
def test_all_questions_of_a_verdict_share_the_time_of_one(used, answer, asked):
    math = Slow(used, answer)
    question = Question(tuple(f"\\sqrt{{{n}}}" for n in range(10, 18)), "last")
    assert not verdict_of("auto", "\\boxed{\\sqrt{2}+1}", "A", question, math).correct
    assert math.asked == asked
    assert math.limits["time"] > 0
    verdict_of("auto", "\\boxed{\\sqrt{3}+1}", "A", question, math)
    assert math.asked == 2 * asked


def test_the_time_of_a_long_question_is_kept_for_a_resumed_run(tmp_path):
    math, other = Slow(3.04), Slow(0.0)
    with math.kept_in(tmp_path, append_line):
        assert math.timed_equal("x+1", "x+2") == (False, 3.0)
    with other.kept_in(tmp_path, append_line):
        assert other.timed_equal("x+1", "x+2") == (False, 3.0)
    assert other.asked == 0


def test_the_process_states_the_processor_time_of_a_question(math):
    assert math.equal("x+1", "1+x")
    assert 0 < math.used < 5

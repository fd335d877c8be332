"""The answer checker accepts gold answers, rejects wrong ones, and evaluates nothing as code."""

import json
import threading

import pytest

from vistill.data.answers import find_boxes, find_committed_answer, gold_response, judge_answer
from vistill.answers.math_process import MathJudge

SETS = (
    "geometry_mathv",
    "geometry3k_sample",
    "puzzlevqa",
    "mathverse",
    "mathvision_testmini",
    "wemath",
    "blink_jigsaw",
    "vlms_are_blind",
    "annotations_hallusionbench",
    "annotations_ocrbench",
)


@pytest.fixture(scope="module")
def math():
    with MathJudge() as judge:
        yield judge


def rows(shared_data, name):
    for line in (shared_data / name / "data.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["answer"] is not None:
            yield str(row["answer"]), tuple(str(c) for c in row.get("choices") or ())


@pytest.mark.parametrize("name", SETS)
def test_the_checker_accepts_gold_answers_of_every_real_set(shared_data, math, name):
    failed = [
        (a, c)
        for a, c in rows(shared_data, name)
        if not judge_answer(gold_response(a), a, c, "first", math).correct
    ]
    assert failed == []


@pytest.mark.parametrize(
    "name", ["geometry_mathv", "mathvision_testmini", "wemath", "blink_jigsaw"]
)
def test_another_letter_is_never_correct(shared_data, name):
    for answer, choices in rows(shared_data, name):
        if choices and len(answer) == 1:
            wrong = chr(ord("A") + (ord(answer) - ord("A") + 1) % len(choices))
            assert not judge_answer(gold_response(wrong), answer, choices).correct


@pytest.mark.parametrize(
    ("response", "gold", "choices", "correct"),
    [
        ("so \\boxed{\\frac{1}{2}}", "0.5", (), True),
        ("\\boxed{1/2}", "0.5", (), True),
        ("Answer: 1,234", "1234", (), True),
        ("\\boxed{12\\text{ cm}}", "12", (), True),
        ("\\boxed{60^\\circ}", "60", (), True),
        ("\\boxed{\\sqrt{8}}", "2\\sqrt{2}", (), True),
        ("\\boxed{13}", "12", (), False),
        ("The answer is B.", "B", ("1", "2"), True),
        ("The answer is (B) two", "B", ("one", "two"), True),
        ("\\boxed{two}", "B", ("one", "two"), True),
        ("I think it is C", "B", ("1", "2", "3"), False),
        ("either A or B", "B", ("1", "2"), False),
        ("\\boxed{B}", "two", ("one", "two"), True),
        ("\\boxed{C}", "Center $=(20,10)$", (), False),
        ("no idea", "4", (), False),
        ("<think>\\boxed{9}</think> \\boxed{4}", "4", (), True),
        ("\\boxed{A, C}", "A, C", ("1", "2", "3"), True),
        ("\\boxed{A}", "A, C", ("1", "2", "3"), False),
    ],
)
def test_answers_are_extracted_and_compared(math, response, gold, choices, correct):
    assert judge_answer(response, gold, choices, "first", math).correct is correct


def test_take_selects_the_first_or_the_last_committed_answer():
    text = "At first \\boxed{3}, no: Answer: 5\nfinally \\boxed{7}"
    assert find_committed_answer(text, "first", False) == "3"
    assert find_committed_answer(text, "last", False) == "7"


def test_boxes_are_matched_by_balanced_braces():
    assert [b for _, b in find_boxes("\\boxed{\\frac{1}{2}} and \\boxed{x")] == ["\\frac{1}{2}"]


def test_an_unparsed_answer_is_wrong_and_marked():
    verdict = judge_answer("hmm", "4")
    assert verdict.unparsed
    assert not verdict.correct


def test_the_judge_works_in_a_thread():
    results = []
    with MathJudge() as judge:
        worker = threading.Thread(
            target=lambda: results.append(
                judge_answer("\\boxed{\\frac{2}{4}}", "\\frac{1}{2}", (), "first", judge).correct
            )
        )
        worker.start()
        worker.join()
    assert results == [True]


def test_a_comparison_that_takes_too_long_counts_as_wrong_and_the_next_one_works():
    with MathJudge(time_limit=0.0) as judge:
        assert not judge.equal("\\frac{1}{2}", "\\frac{2}{4}")
        assert judge.timeouts == 1
        judge.time_limit = 20.0
        assert judge.equal("\\frac{1}{2}", "\\frac{2}{4}")


def test_hostile_answers_run_no_code(math, tmp_path):
    marker = tmp_path / "marker"
    for text in (
        f"__import__('pathlib').Path('{marker}').touch()",
        "9**9**9**9",
        "\\boxed{" * 50,
        "\x1b[2J" + "(" * 2000,
    ):
        assert not judge_answer(f"\\boxed{{{text}}}", "1", (), "first", math).correct
    assert not marker.exists()

"""Pairs of a reply and a gold answer, and what the verdict must be."""

import json
from collections import Counter
from pathlib import Path

import pytest
from conftest import SHARED

from vistill import judge
from vistill.answers.checkers import auto
from vistill.answers.languages import LANGUAGES

OWN = Path(__file__).parent / "pairs.jsonl"
REPLIES = Path(__file__).parent / "pairs_replies.jsonl"
USERS = Path(__file__).parent / "pairs_users.jsonl"
MODELS = Path(__file__).parent / "pairs_models.jsonl"
TESTERS = Path(__file__).parent / "pairs_testers.jsonl"
KINDS = Path(__file__).parent / "pairs_kinds.jsonl"
LANGUAGE_PAIRS = Path(__file__).parent / "pairs_languages.jsonl"
CASES = SHARED.parent / "cases" / "answer_pairs.jsonl"
BENCHMARKS = (
    "MathVista",
    "MathVerse",
    "MathVision",
    "We-Math",
    "Geometry3K",
    "ChartQA",
    "OCRBench",
)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def wrong_verdicts(pairs):
    """The pairs that are judged otherwise than a person judged them, with the verdict."""
    verdicts = (
        judge(pair["reply"], pair["gold"], pair["choices"], pair["checker"], pair["take"])
        for pair in pairs
    )
    return [
        (pair, verdict)
        for pair, verdict in zip(pairs, verdicts, strict=True)
        if verdict.correct is not pair["correct"]
    ]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_replies_in_the_documented_answer_forms_of_a_benchmark(benchmark):
    pairs = [pair for pair in read(OWN) if pair["benchmark"] == benchmark]
    assert wrong_verdicts(pairs) == []


def test_there_are_300_pairs_and_each_benchmark_has_both_kinds():
    counts = Counter((pair["benchmark"], pair["correct"]) for pair in read(OWN))
    assert sum(counts.values()) >= 300
    assert all(counts[name, correct] >= 5 for name in BENCHMARKS for correct in (True, False))


def test_replies_that_deny_doubt_or_wrap_an_answer():
    pairs = read(REPLIES)
    assert len(pairs) >= 150
    assert wrong_verdicts(pairs) == []


@pytest.mark.parametrize("correct", [True, False])
def test_opinions_of_others_numbers_around_a_box_and_short_conclusions(correct):
    pairs = [pair for pair in read(USERS) if pair["correct"] is correct]
    assert len(pairs) >= 30
    assert wrong_verdicts(pairs) == []


@pytest.mark.parametrize("correct", [True, False])
def test_replies_in_the_manner_of_chat_models(correct):
    pairs = [pair for pair in read(MODELS) if pair["correct"] is correct]
    assert len(pairs) >= 150
    assert wrong_verdicts(pairs) == []


@pytest.mark.parametrize("correct", [True, False])
def test_replies_that_turn_deny_a_box_or_report_an_answer(correct):
    pairs = [pair for pair in read(TESTERS) if pair["correct"] is correct]
    assert len(pairs) >= 60
    assert wrong_verdicts(pairs) == []


@pytest.mark.parametrize("correct", [True, False])
def test_replies_with_tables_units_ranges_dates_and_several_options(correct):
    pairs = [pair for pair in read(KINDS) if pair["correct"] is correct]
    assert len(pairs) >= 100
    assert wrong_verdicts(pairs) == []


@pytest.mark.parametrize("language", [language.name for language in LANGUAGES])
def test_replies_in_other_languages(language):
    pairs = [pair for pair in read(LANGUAGE_PAIRS) if pair["language"] == language]
    accepted = sum(pair["correct"] for pair in pairs)
    assert accepted >= 25
    assert len(pairs) - accepted >= accepted
    assert wrong_verdicts(pairs) == []


def test_the_reviewers_pairs():
    if not CASES.is_file():
        pytest.skip(f"no pairs in {CASES}")
    failed = []
    for pair in read(CASES):
        verdict = judge(pair["reply"], pair["gold"], pair["choices"], take=pair["take"])
        if verdict.correct != pair["correct"]:
            failed.append((pair, verdict))
    assert failed == []


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
        ("\\boxed{(A) 7/3}", "A", ("5/3", "4/3"), False),
        ("The answer is \\boxed{11", "11", (), False),
    ],
)
def test_verdicts_of_earlier_versions_that_were_right(response, gold, choices, correct):
    assert judge(response, gold, choices, take="first").correct is correct


def test_several_gold_answers_mean_any_of_them():
    assert judge("\\boxed{3.429}", ["24/7", "3.429"]).correct
    assert not judge("\\boxed{3.4}", ["24/7", "3.429"]).correct
    assert not judge("\\boxed{3.4}", []).correct


def test_take_selects_the_first_or_the_last_commitment():
    text = "At first \\boxed{3}, no: Answer: 5\nfinally \\boxed{7}"
    assert judge(text, "3", take="first").extracted == "3"
    assert judge(text, "7", take="last").extracted == "7"


@pytest.mark.parametrize(
    "reply",
    [
        "The answer is **12**.",
        "x = 3</think>The answer\uff1a１２",
        "<think>9</think>\n\\boxed{\\text{12 cm}}",
        "**Answer:**\n\n12",
        "It is 12.",
        "Sure! 12\n\nI hope this helps!",
        "The answer is 15. Wait, I forgot the base. It should be 12.",
        "We add the two lengths.\n\n12",
    ],
)
def test_the_position_is_that_of_the_extracted_text(reply):
    verdict = judge(reply, "12")
    start, end = verdict.position
    assert verdict.correct
    assert reply[start:end].strip() == verdict.extracted


def test_auto_names_the_checker_that_it_chose():
    kinds = {"B": ("x", "y"), "12": (), "yes": (), "red": (), "\\sqrt{2}": ()}
    chosen = {gold: auto.kind_of(gold, choices) for gold, choices in kinds.items()}
    assert chosen == {
        "B": "choice",
        "12": "math",
        "yes": "yes_no",
        "red": "text",
        "\\sqrt{2}": "math",
    }
    assert judge("no", "red").checker == "text"

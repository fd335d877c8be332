"""Each checker by its own rule."""

import json

import pytest

from vistill import judge

GRID = "@__/#__/__*"


@pytest.mark.parametrize(
    ("reply", "maze", "strict"),
    [
        ("Action plan: R,R,D,D", True, True),
        ("\\boxed{R,R,D,D}", True, True),
        ("**Action plan:** right, right, down, down", True, True),
        ("RRDD", True, True),
        ("Action plan: U,R,R,D,D", True, False),
        ("Action plan: R,R,D,D,L", True, False),
        ("Action plan: D,R,R,D", False, False),
        ("Action plan: R,R", False, False),
        ("The player cannot move.", False, False),
        ("Action plan: R,D\nNo, that fails.\nAction plan: R,R,D,D", True, True),
    ],
)
def test_a_plan_is_walked_by_both_rules(reply, maze, strict):
    assert judge(reply, GRID, checker="maze").correct is maze
    assert judge(reply, GRID, checker="maze_strict").correct is strict
    rows = json.dumps([list(row) for row in GRID.split("/")])
    assert judge(reply, rows, checker="maze").correct is maze


def test_the_shortest_plans_of_real_mazes_come_to_the_goal(shared_data):
    for line in (shared_data / "vsp_maze" / "data.jsonl").read_text().splitlines():
        extra = json.loads(line)["extra"]
        gold, plan = "\n".join(extra["grid"]), extra["derived_shortest_path"]
        assert judge(f"Action plan: {plan}", gold, checker="maze_strict").correct
        assert not judge(f"Action plan: {plan[:-2]}", gold, checker="maze").correct


@pytest.mark.parametrize(
    ("reply", "gold", "correct"),
    [
        ("Yes, it is.", "yes", True),
        ("Yes", "1", True),
        ("No.", "0", True),
        ("No, there is not.", "1", False),
        ("The answer is no.", "No", True),
        ("I see a dog. So yes.", "yes", True),
        ("Yes and no", "yes", False),
        ("It is a dog.", "yes", False),
        ("是的", "yes", True),
    ],
)
def test_yes_or_no(reply, gold, correct):
    assert judge(reply, gold, checker="yes_no").correct is correct


@pytest.mark.parametrize(
    ("reply", "gold", "correct"),
    [
        ("3.14159", "3.14", True),
        ("3.15", "3.14", False),
        ("5.2", "5", False),
        ("12 km", "12 m", False),
        ("12 m", "12", True),
        ("The answer is 1/2.", "0.5", True),
        ("50%", "0.5", True),
        ("0.5", "50%", True),
        ("50%", "5", False),
        ("5%", "50%", False),
    ],
)
def test_numbers_are_compared_to_the_decimals_of_the_gold_answer(reply, gold, correct):
    assert judge(reply, gold, checker="number").correct is correct


@pytest.mark.parametrize("checker", ["auto", "math", "number", "relaxed"])
def test_a_percentage_is_the_same_for_every_checker(checker):
    for reply, gold in (("50%", "0.5"), ("0.5", "50%"), ("50%", "50"), ("50 percent", "50%")):
        assert judge(reply, gold, checker=checker).correct
    for reply, gold in (("50%", "5"), ("0.05", "50%"), ("5%", "50%")):
        assert not judge(reply, gold, checker=checker).correct


def test_relaxed_is_near_a_percentage_too():
    assert judge("0.49", "50%", checker="relaxed").correct
    assert not judge("0.4", "50%", checker="relaxed").correct


def test_exact_keeps_case():
    assert judge("**Stop**", "Stop", checker="exact").correct
    assert not judge("stop", "Stop", checker="exact").correct


def test_vqa_counts_people():
    golds = ["red"] * 2 + ["dark red"] * 8
    partial = judge("Red.", golds, checker="vqa")
    assert not partial.correct
    assert partial.score == pytest.approx(2 / 3)
    assert judge("the dark red", golds, checker="vqa").correct
    assert judge("2", "two", checker="vqa").correct


def test_anls_gives_credit_by_edit_distance():
    near = judge("Jon Smith", ["John Smith"], checker="anls")
    assert near.correct
    assert near.score == pytest.approx(0.9)
    assert judge("Paris", ["John Smith"], checker="anls").score == 0


def test_contains_needs_no_commitment():
    assert judge("It says STOP on the sign", ["stop"], checker="contains").correct
    assert judge("", ["stop"], checker="contains").unparsed


@pytest.mark.parametrize("checker", ["auto", "choice", "math", "number", "yes_no", "text", "exact"])
def test_an_empty_reply_is_unparsed(checker):
    for reply in ("", "  \n", "<think>12", "</think>"):
        verdict = judge(reply, "12", checker=checker)
        assert verdict.unparsed
        assert verdict.reason

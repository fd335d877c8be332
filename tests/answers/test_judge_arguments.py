"""`vistill.judge` reads gold answers and options as those of rows, or refuses them with a code."""

from decimal import Decimal

import numpy as np
import pytest

from vistill import judge
from vistill.errors import ConfigError

NAN = float("nan")


@pytest.mark.parametrize(
    "gold",
    [
        5,
        5.0,
        Decimal("5.0"),
        np.int64(5),
        np.float32(5),
        np.array(["4", "5"]),
        np.array([5]),
        [5],
        (4, 5.0),
        {"5"},
        {"ground_truth": 5},
        {"answer": "5"},
        "#### 5",
        "\\boxed{5}",
        "<answer>5</answer>",
    ],
)
def test_a_gold_answer_is_understood_as_in_rows(gold):
    assert judge("The answer is 5.", gold, checker="number").correct
    assert not judge("The answer is 6.", gold, checker="number").correct


def test_true_and_false_are_words():
    assert judge("Yes.", True).correct
    assert judge("false", False).correct
    assert not judge("No.", True).correct


@pytest.mark.parametrize(
    "choices",
    [
        ["30", 40],
        np.array(["30", "40"]),
        {"A": "30", "B": "40"},
        {"B": 40, "A": 30},
        ["30", "40", None, NAN],
        {"label": ["A", "B"], "text": ["30", "40"]},
    ],
)
def test_options_are_understood_as_in_rows(choices):
    assert judge("The answer is B.", "40", choices).correct
    assert judge("The answer is B.", "B", choices).correct
    assert not judge("The answer is A.", "B. 40", choices).correct


def test_a_whole_number_is_the_index_of_an_option():
    assert judge("B", 1, ["x", "y"]).correct
    assert judge("B", np.int64(1), ["x", "y"]).correct


@pytest.mark.parametrize("choices", [None, (), [], NAN, [None], ""])
def test_no_options_are_no_options(choices):
    assert judge("5", "5", choices, checker="number").correct


@pytest.mark.parametrize("gold", [None, NAN, np.float32("nan"), "", [None], b"5", 1 + 2j, {},
                                  {"a": 1}, object(), float("inf"), Decimal("NaN")])  # fmt: skip
def test_a_gold_answer_without_a_convention_is_refused(gold):
    with pytest.raises(ConfigError) as error:
        judge("5", gold)
    assert error.value.code == "C002"


@pytest.mark.parametrize("choices", ["AB", 5, [None, "40"], [NAN, "40"], {"x": 1}, ["a"] * 27])
def test_options_without_a_convention_are_refused(choices):
    with pytest.raises(ConfigError) as error:
        judge("A", "A", choices)
    assert error.value.code == "C002"


@pytest.mark.parametrize("more", [{"take": "lats"}, {"take": None}, {"checker": 5},
                                  {"checker": None}, {"reply": None}, {"reply": 5}])  # fmt: skip
def test_another_argument_of_the_wrong_kind_is_refused(more):
    with pytest.raises(ConfigError) as error:
        judge(**{"reply": "5", "gold": "5"} | more)
    assert error.value.code == "C002"


def test_a_maze_of_numbers_is_no_crash():
    assert judge("R", '[[1,"@"],["*"]]', checker="maze").correct is False

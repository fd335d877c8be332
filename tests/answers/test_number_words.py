"""Numbers in words are read whole, by every checker that reads numbers."""

from fractions import Fraction

import pytest

from vistill import judge
from vistill.answers.number_words import find_word_numbers, parse_word_number

NUMBERS = {
    "zero": 0,
    "twelve": 12,
    "twenty-one": 21,
    "Twenty One": 21,
    "ninety-nine": 99,
    "a hundred": 100,
    "one hundred and five": 105,
    "three hundred twenty-one": 321,
    "nine hundred ninety nine": 999,
    "a thousand": 1000,
    "two thousand three hundred": 2300,
    "twelve thousand, three hundred and four": 12304,
    "one million two hundred thousand": 1_200_000,
    "two thirds": Fraction(2, 3),
    "three-quarters": Fraction(3, 4),
    "a half": Fraction(1, 2),
}


@pytest.mark.parametrize("words", NUMBERS)
def test_a_number_in_words_has_its_value(words):
    assert parse_word_number(words) == NUMBERS[words]


@pytest.mark.parametrize("text", ["one-way", "phone", "tenth", "a cat", "two hundred-foot", "none"])
def test_a_part_of_another_word_is_no_number(text):
    assert list(find_word_numbers(text)) == []


def test_two_numbers_side_by_side_stay_two():
    numbers = [word.number for word in find_word_numbers("twenty eleven, five and six")]
    assert numbers == [20, 11, 5, 6]


@pytest.mark.parametrize("checker", ["auto", "math", "number", "relaxed"])
def test_checkers_read_a_number_in_words_whole(checker):
    reply = "There are three hundred twenty-one birds."
    assert judge(reply, "321", checker=checker).correct
    for wrong in ("300", "3", "20", "21"):
        assert not judge(reply, wrong, checker=checker).correct


def test_options_are_named_by_a_number_in_words():
    assert judge("There are twenty-one birds.", "B", ("20", "21", "1")).correct
    assert not judge("There are twenty-one birds.", "A", ("20", "21", "1")).correct

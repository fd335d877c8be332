"""The checker and the reward of the package."""

import pytest
from vistill_gap_opd.answers import brief, year


@pytest.mark.parametrize(
    ("response", "take", "correct"),
    [
        ("It was built in 1889.", "last", True),
        ("Not 1887 but 1889", "last", True),
        ("Not 1887 but 1889", "first", False),
        ("It has 18890 parts", "last", False),
    ],
)
def test_the_year_is_judged(response, take, correct):
    verdict = year(response, "1889", (), take, None)
    assert verdict.correct is correct
    assert bool(verdict.reason) is not correct


def test_a_reply_without_a_year_is_unparsed():
    assert year("long ago", "1889", (), "last", None).unparsed


def test_a_longer_reply_gets_a_smaller_reward():
    values = [brief("x" * length, None, None, None) for length in (0, 1000, 4000)]
    assert values == [1.0, 0.5, 0.0]

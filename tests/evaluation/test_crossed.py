"""Differences over students and teachers: means, intervals and tests by hand."""

import math

import pytest

from vistill.evaluation.crossed import (
    crossed_bootstrap,
    crossed_statistics,
    sign_flips,
    student_means,
    t_tail,
    t_test,
)
from vistill.evaluation.paired import T_QUANTILES, holm_correction


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 29, 30])
def test_the_tail_of_students_t_agrees_with_the_table_of_quantiles(freedom):
    assert t_tail(T_QUANTILES[freedom - 1], freedom) == pytest.approx(0.05, abs=2e-4)
    assert t_tail(0.0, freedom) == pytest.approx(1.0)


def test_a_t_test_of_three_values_by_hand():
    """Mean 2, deviation 1: t = 2 sqrt(3) with two degrees of freedom."""
    low, high, p = t_test([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)))
    t = 2 * math.sqrt(3)
    assert p == pytest.approx(1 - t / math.sqrt(t * t + 2))
    assert all(math.isnan(x) for x in t_test([1.0]))
    assert t_test([0.0, 0.0])[2] == 1.0
    assert t_test([0.1, 0.1])[2] == 0.0


def test_the_mean_of_a_student_is_over_its_teachers_not_over_its_runs():
    values = {(0, 0, 0): 0.1, (0, 0, 2): 0.3, (0, 1, 3): 0.8, (1, 1, 1): -0.1}
    assert student_means(values) == pytest.approx([0.5, -0.1])


def test_sign_flips_count_every_pattern():
    assert sign_flips([1.0, 1.0, 1.0]) == pytest.approx(2 / 8)
    assert sign_flips([1.0, -1.0]) == 1.0
    assert math.isnan(sign_flips([0.1] * 17))


def test_the_bootstrap_draws_students_and_teachers_and_repeats_to_the_last_digit():
    values = {(s, t, 2 * s + t): 0.1 * s + 0.01 * t for s in range(3) for t in range(2)}
    first = crossed_bootstrap(values, draws=500)
    assert first == crossed_bootstrap(dict(reversed(values.items())), draws=500)
    assert 0.0 <= first[0] < 0.105 < first[1] <= 0.21
    assert all(math.isnan(x) for x in crossed_bootstrap({(0, 0, 0): 0.1, (0, 0, 1): 0.2}))


def test_a_constant_difference_has_an_interval_of_width_zero():
    statistics = crossed_statistics({(0, 0, 0): 0.05, (1, 1, 1): 0.05, (0, 1, 2): 0.05})
    assert (statistics.low, statistics.high) == pytest.approx((0.05, 0.05))
    assert (statistics.runs, statistics.students, statistics.teachers) == (3, 2, 2)
    assert (statistics.ahead, statistics.behind) == (3, 0)
    assert statistics.p == pytest.approx(0.0)


def test_a_difference_that_is_not_a_number_has_no_p_value():
    """Comparisons with NaN are false, which would be p = 0."""
    statistics = crossed_statistics({(0, 0, 0): math.nan, (1, 1, 1): 0.1, (2, 0, 2): 0.1})
    for value in (statistics.mean, statistics.low, statistics.student_low):
        assert math.isnan(value)
    assert math.isnan(statistics.p)
    assert math.isnan(statistics.sign_flip_p)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_missing_p_value_stays_missing_and_counts_as_a_hypothesis(order):
    values = (0.01, 0.03, math.nan)
    corrected = holm_correction([values[place] for place in order])
    expected = (3 * 0.01, 2 * 0.03, math.nan)
    assert corrected == pytest.approx([expected[place] for place in order], nan_ok=True)


def test_draws_without_a_run_are_drawn_again():
    """Two runs on the diagonal: half of the draws have no run."""
    low, high = crossed_bootstrap({(0, 0, 0): 0.0, (1, 1, 1): 1.0}, draws=200)
    assert (low, high) == (0.0, 1.0)

"""Paired statistics of two evaluations, joined by question."""

import itertools
import math
import random
import subprocess
import sys
from math import comb

import pytest

from vistill.evaluation.paired import (
    PairedComparison,
    Question,
    compare,
    compare_over_seeds,
    difference_interval,
    holm_correction,
    questions_by_id,
    sign_flip_p,
)


def record(name, correct, **changes):
    default = {
        "prompt": name,
        "asked": f"digest-{name}",
        "view": "full",
        "mode": "sampled",
        "sample": 0,
    }
    return default | {"question": f"What of {name}?", "gold": "7", "correct": correct} | changes


def evaluation(answers, **changes):
    """Questions of an evaluation; `answers` is `{"q1": [True, False]}`."""
    lines = [
        record(n, c, sample=i, **changes) for n, row in answers.items() for i, c in enumerate(row)
    ]
    return questions_by_id(lines)


def test_questions_are_joined_by_id_and_not_by_position():
    a = evaluation({"x": [True], "y": [False], "z": [True]})
    b = evaluation({"z": [True], "x": [True], "y": [False]})
    pair = compare(a, b)
    assert (pair.questions, pair.difference, pair.better, pair.worse, pair.p) == (3, 0.0, 0, 0, 1.0)
    assert pair.same_questions
    assert pair.denominator("a", "b") == "on the same 3 questions"


def test_questions_of_one_evaluation_alone_are_counted_and_left_out_of_both_accuracies():
    a = evaluation({str(i): [i < 6] for i in range(10)})
    b = evaluation({str(i): [i < 4] for i in range(4)})
    pair = compare(a, b)
    assert (pair.questions, pair.only_a, pair.only_b) == (4, 6, 0)
    assert pair.accuracy_a == pair.accuracy_b == 1.0
    assert pair.denominator("a", "b") == "on the 4 questions both answered; 6 only in a"
    assert not pair.same_questions


@pytest.mark.parametrize(
    "changed", [{"question": "Another?"}, {"gold": "8"}, {"asked": "another image"}]
)
def test_different_questions_under_equal_ids_are_not_compared(changed):
    a = evaluation({str(i): [True] for i in range(9)})
    b = evaluation({str(i): [False] for i in range(9)}, **changed)
    pair = compare(a, b)
    assert not pair.is_comparable
    assert not pair.is_significant
    assert math.isnan(pair.difference)
    assert "different questions under the same ids (9 differ, 0 are equal)" in pair.denominator(
        "a", "b"
    )


def test_a_question_with_a_corrected_gold_answer_is_left_out_and_counted():
    a = evaluation({str(i): [True] for i in range(9)})
    b = evaluation({str(i): [True] for i in range(8)}) | evaluation({"8": [False]}, gold="8")
    pair = compare(a, b)
    assert (pair.questions, pair.mismatched, pair.difference) == (8, 1, 0.0)
    assert pair.denominator("a", "b") == (
        "on the 8 questions both answered; 1 with another question under the same id"
    )


def test_data_that_share_only_row_numbers_are_not_compared():
    """Rows numbered 0, 1, 2, ...: a few gold answers agree by chance."""
    a = {str(i): Question("How many?", str(i % 3), "", (True,)) for i in range(30)}
    b = {str(i): Question("How many?", str(i % 5), "", (False,)) for i in range(30)}
    pair = compare(a, b)
    assert 0 < pair.questions < pair.mismatched
    assert not pair.is_comparable


def test_data_without_a_common_question_are_not_compared():
    pair = compare(evaluation({"x": [True]}), evaluation({"y": [True], "z": [True]}))
    assert (
        pair.denominator("a", "b")
        == "not compared: a and b have no question in common (1 and 2 questions)"
    )
    assert "no answers are stored for b" in compare(evaluation({"x": [True]}), {}).denominator(
        "a", "b"
    )


def test_rows_without_a_gold_answer_and_other_views_and_modes_are_left_out():
    lines = [record("x", True), record("y", False, gold=""), record("z", False, gold=None)]
    lines += [record("x", False, view="swapped"), record("x", False, mode="greedy")]
    assert [*questions_by_id(lines)] == ["x"]
    assert questions_by_id(lines)["x"].share == 1.0
    assert questions_by_id(lines, mode="greedy")["x"].share == 0.0


def test_pairing_reveals_a_difference_that_two_separate_standard_errors_hide():
    """200 questions: 4 points difference; the unpaired standard error would be 5 points."""
    a = evaluation({str(i): [i < 108] for i in range(200)})
    b = evaluation({str(i): [i < 100] for i in range(200)})
    pair = compare(a, b)
    assert pair.difference == pytest.approx(0.04)
    assert pair.standard_error == pytest.approx(math.sqrt(0.04 * 0.96 / 199))
    assert pair.p == pytest.approx(2 / 2**8)
    assert pair.is_significant
    assert pair.low > 0


def test_the_p_value_of_one_sample_is_mcnemars_exact_test():
    for better, worse in ((9, 1), (3, 0), (5, 5), (40, 20), (0, 0)):
        n, k = better + worse, min(better, worse)
        by_hand = min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)
        assert sign_flip_p([1] * better + [-1] * worse + [0] * 7) == pytest.approx(by_hand), (
            better,
            worse,
        )


def test_the_p_value_of_several_samples_equals_the_enumeration_of_all_signs():
    rng = random.Random(0)
    for _ in range(30):
        values = [rng.randint(-4, 4) for _ in range(rng.randint(1, 9))]
        sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True)))
                for signs in itertools.product((1, -1), repeat=len(values))]  # fmt: skip
        expected = sum(s >= abs(sum(values)) for s in sums) / len(sums)
        assert sign_flip_p(values) == pytest.approx(expected), values


def test_the_p_value_of_a_large_set_approaches_the_normal_distribution():
    rng = random.Random(1)
    values = [rng.choice((-2, -1, 0, 0, 1, 2)) for _ in range(3000)]
    z = (abs(sum(values)) - 1) / math.sqrt(sum(v * v for v in values))  # sums are two apart
    assert sign_flip_p(values) == pytest.approx(math.erfc(z / math.sqrt(2)), abs=1e-3)


def test_the_interval_of_a_difference_has_a_width_even_if_all_answers_agree():
    low, high = difference_interval([0.0] * 50)
    assert low < -0.02
    assert high > 0.02
    assert low == -high


def test_coverage_and_false_positives_on_simulated_pairs():
    """Correlated students, 60 questions: coverage near 95 %, at most 5 % false positives."""
    rng = random.Random(2)
    covered = false_positives = 0
    trials = 2000
    for trial in range(trials):
        gain = 0.1 if trial % 2 else 0.0
        values = []
        for _ in range(60):
            hard = rng.random()
            a, b = rng.random() < min(1.0, 0.2 + 0.6 * hard + gain), rng.random() < 0.2 + 0.6 * hard
            values.append(int(a) - int(b))
        low, high = difference_interval(values)
        covered += low <= gain <= high
        false_positives += not gain and sign_flip_p(values) < 0.05
    assert 0.94 < covered / trials < 0.98
    assert false_positives / (trials / 2) < 0.055


def test_samples_of_one_question_count_as_one_value():
    """8 answers to each of 10 questions are not 80 independent pairs."""
    a = evaluation({str(i): [i < 6] * 8 for i in range(10)})
    b = evaluation({str(i): [i < 5] * 8 for i in range(10)})
    pair = compare(a, b)
    assert pair.questions == 10
    assert pair.p == 1.0
    assert pair.standard_error == pytest.approx(0.1)


def test_runs_with_different_numbers_of_samples_are_compared_by_their_means():
    a = evaluation({"x": [True] * 3, "y": [True]})
    b = evaluation({"x": [True, False], "y": [False]})
    assert compare(a, b).difference == pytest.approx(0.75)


def test_over_seeds_by_hand():
    pairs = [PairedComparison(10, 0, 0, 0, difference=d) for d in (0.02, 0.04, 0.06)]
    seeds = compare_over_seeds(pairs)
    assert seeds.mean == pytest.approx(0.04)
    assert seeds.deviation == pytest.approx(0.02)
    assert seeds.high - seeds.mean == pytest.approx(4.303 * 0.02 / math.sqrt(3))
    assert math.isnan(compare_over_seeds(pairs[:1]).high)


def test_many_comparisons_are_corrected():
    assert holm_correction([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm_correction([]) == []


def test_comparing_needs_no_torch():
    modules = "vistill.evaluation.paired, vistill.report.page"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""`benchmarks/stated_test.py`: the test that was stated before its runs, on made results."""

import json
import sys

import pytest
from conftest import REPO

sys.path.insert(0, str(REPO / "benchmarks"))
import map_page
import stated_test

#: Points of the five students around the mean of a difference; each has two teachers.
SPREAD = (-1.0, -0.5, 0.0, 0.5, 1.0)


def cell(of_opd, of_va, noise=1.0):
    """A complete cell: `grounded_opd` is so many points ahead of `opd` and of `va_opd`."""
    runs = []
    for student, spread in enumerate(SPREAD):
        for teacher in range(2):
            ours = 70.0 + noise * spread
            seed = 2 * student + teacher
            for arm, points in (
                ("opd", 70.0 - of_opd), ("va_opd", 70.0 - of_va), ("grounded_opd", ours)
            ):  # fmt: skip
                runs.append(
                    {"arm": arm, "seed": seed, "student": student, "teacher": teacher,
                     "rate": 3e-4, "before": 0.25, "accuracy": points / 100, "greedy": 0.8,
                     "accuracy_equal_compute": points / 100, "compute": 1.0}
                    | ({"misread/rollout_share": 0.4} if arm == "grounded_opd" else {})
                )  # fmt: skip
    return {"what": {}, "notes": [], "runs": runs}


def first_line(first, second):
    """What is said of two cells, in the order of the map."""
    return stated_test.lines_of(dict(zip(stated_test.HELD_BACK, (first, second), strict=True)))[0]


def test_the_two_cells_are_those_of_the_lab_notes():
    assert stated_test.HELD_BACK == ("figure_only", "mild_k2")


@pytest.mark.parametrize(
    ("first", "second", "said_so"),
    [
        (cell(8, 3), cell(5, 2), "**Success**"),
        (cell(8, 0), cell(5, 0), "ahead of `opd` in both cells and of `va_opd` in neither"),
        (cell(8, 0), cell(0, 0), "`opd` in one of two cells: in `figure_only`, not in `mild_k2`"),
        (cell(8, 3), cell(5, 0), "of `va_opd` in one of two cells: in `figure_only`"),
        (cell(0, 0), cell(0, 0), "**Failure**: no significant gain"),
        (cell(8, 3), cell(-5, 2), "**Failure**: `grounded_opd` is significantly behind `opd` in"),
        (cell(8, 3), cell(5, -2), "significantly behind `va_opd` in `mild_k2`"),
        (cell(0.3, 5), cell(0.3, 5), "**Failure**: no significant gain"),
    ],
)  # fmt: skip
def test_each_outcome_is_named_as_it_was_stated(first, second, said_so):
    assert said_so in first_line(first, second)


def test_p_is_a_t_test_over_five_students_corrected_over_the_two_cells():
    # t = mean * sqrt(5) / sd with sd = sqrt(2.5 / 4): 1 point gives 2.828, p = 0.0474.
    results = dict(zip(stated_test.HELD_BACK, (cell(1, 1), cell(9, 9)), strict=True))
    difference = stated_test.tested(results)["figure_only", "opd"]
    assert difference.facts.p == pytest.approx(0.0474, abs=1e-4)
    assert difference.p == difference.facts.p
    assert difference.word == "ahead"
    results["mild_k2"] = cell(0.9, 9)
    difference = stated_test.tested(results)["figure_only", "opd"]
    assert difference.p == pytest.approx(2 * 0.0474, abs=2e-4)
    assert difference.word == "neither"


def test_no_test_is_computed_before_both_cells_are_complete():
    assert stated_test.lines_of({"figure_only": cell(8, 3)}) == ["Not complete yet: `mild_k2`."]
    short = cell(8, 3)
    short["runs"] = [run for run in short["runs"] if run["seed"] != 9]
    with pytest.raises(SystemExit, match=r"figure_only is not complete: opd has 9 pairs"):
        first_line(short, cell(8, 3))
    uneven = cell(8, 3)
    del uneven["runs"][0]
    with pytest.raises(SystemExit, match="opd has 9 pairs"):
        first_line(cell(8, 3), uneven)


def test_no_test_is_computed_from_runs_that_were_added_or_did_not_match():
    more = cell(8, 3)
    more["runs"] += [{**run, "seed": 10} for run in more["runs"] if run["seed"] == 0]
    with pytest.raises(SystemExit, match="opd has 10 pairs in 11 runs"):
        first_line(more, cell(8, 3))
    apart = cell(8, 3)
    apart["notes"].append("NOT MATCHED: the arms of seed 3 have different accuracies.")
    with pytest.raises(SystemExit, match="figure_only is not complete: NOT MATCHED: the arms of s"):
        first_line(apart, cell(8, 3))


def test_every_pair_and_arm_is_on_the_page():
    page = f"before\n{stated_test.BEGIN}\nstale\n{stated_test.END}\nafter\n"
    text = stated_test.page_with(page, dict.fromkeys(stated_test.HELD_BACK, cell(8, 3)))
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert sum(line.startswith("| `figure_only` | ") for line in text.splitlines()) == 2 + 3 + 10
    assert "| `mild_k2` | 4, 1 | 62.0 | 67.0 | 71.0 | 40.0 |" in text


def test_the_page_of_the_project_is_that_of_its_stored_results():
    results = json.loads(map_page.RESULTS.read_text())
    page = map_page.PAGE.read_text()
    assert stated_test.page_with(page, results) == page


def test_the_readme_has_the_stored_result():
    results = json.loads(map_page.RESULTS.read_text())
    lines = (REPO / "README.md").read_text().splitlines()
    rows = {name: [line for line in lines if line.startswith(f"| `{name}`")] for name in results}
    for name in stated_test.HELD_BACK:
        accuracies = [
            f"{map_page.mean_of(results[name], arm, 'accuracy')} %" for arm in stated_test.TEST_ARMS
        ]
        assert " | ".join(accuracies) in rows[name][0]
    for (name, _), row in stated_test.tested(results).items():
        interval = f"{row.facts.student_low:+.1f} to {row.facts.student_high:+.1f}"
        p = f"{row.p:.2f}".removeprefix("0")
        assert f"{row.facts.mean:+.1f} ({interval}), p = {p}" in rows[name][0]

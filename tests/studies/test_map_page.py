"""`benchmarks/map_page.py`: table and figure of finished cells, from what a comparison wrote."""

import json
import sys

import pytest
from conftest import REPO

sys.path.insert(0, str(REPO / "benchmarks"))
import map_page

ARMS = ("opd", "va_opd", "va_rollouts", "grounded_opd")


def write_cell(folder, name, gain, arms=ARMS):
    """A cell in which every arm is `gain` ahead of the one before it, on two students."""
    keys = [(s, a) for s in range(2) for a in range(len(arms))]
    runs = [
        {"arm": arms[a], "seed": s, "student": s, "teacher": 0, "rate": 3e-4, "before": 0.25,
         "accuracy": 0.5 + gain * a + 0.01 * s, "accuracy_equal_compute": 0.5, "greedy": 0.75,
         "misread/rollout_share": 0.4 + 0.1 * s * (gain > 0), "misread/kept_share": 0.5,
         "compute": 1.0, "updates": 64}
        for s, a in keys
    ]  # fmt: skip
    (folder / name).mkdir(parents=True)
    (folder / name / "compare.json").write_text(json.dumps({"notes": ["a note"], "runs": runs}))


@pytest.fixture
def own_files(monkeypatch, tmp_path):
    """Page, figure and results of the test, so that those of the project stay as they are."""
    page = tmp_path / "results.md"
    page.write_text(
        f"before\n{map_page.BEGIN}\nstale\n{map_page.END}\nbetween\n"
        f"{map_page.VARIANTS_BEGIN}\nstale\n{map_page.VARIANTS_END}\nafter\n"
    )
    for name, path in (("PAGE", page), ("FIGURE", tmp_path / "f.svg"), ("RESULTS", tmp_path / "r")):
        monkeypatch.setattr(map_page, name, path)
    return tmp_path


def test_without_a_finished_cell_nothing_is_written(own_files):
    before = map_page.PAGE.read_text()
    with pytest.raises(SystemExit, match="no finished cell"):
        map_page.main([str(own_files)])
    assert map_page.PAGE.read_text() == before
    assert not map_page.RESULTS.exists()


def test_the_table_has_paired_differences_of_finished_cells_in_points(own_files):
    write_cell(own_files / "runs", "short", -0.05)
    write_cell(own_files / "runs", "demo", 0.1)
    write_cell(own_files / "runs", "figure_only", 0.1)
    map_page.main([str(own_files / "runs")])
    page = map_page.PAGE.read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "stale" not in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ["demo", "short"] * 3 + ["demo"] * 2 + [
        "short"
    ] * 2
    assert "| **+10.0** (+10.0 to +10.0), 2 of 2 | **+20.0**" in rows[0]
    assert rows[0].endswith("| **+20.0** (+20.0 to +20.0), 2 of 2 |")
    assert "**-5.0** (-5.0 to -5.0), 0 of 2" in rows[1]
    assert rows[2].count("**+0.0**") == 4  # at equal compute all arms are equal here
    assert rows[4] == (
        "| `demo` | 25.0 | 50.5 (75.0) | 60.5 (75.0) | 70.5 (75.0) | 80.5 (75.0) | 45.0 | 50.0 |"
    )
    assert rows[7] == "| `demo` | 1 | +10.0 | +30.0 | +20.0 | 50 |"
    assert (
        "- `grounded_opd` is not ahead of `va_opd` in: `short` (-10.0; student 0, teacher 0, seed "
        "0), `short` (-10.0; student 1, teacher 0, seed 1)."
    ) in page
    assert "- `grounded_opd` minus `opd`: +7.5 points, ahead in 2 of 4 runs." in page
    assert map_page.FIGURE.read_text().count('r="3.5"') == 2 * 4 * 2


def test_variants_are_compared_on_the_cells_that_have_them(own_files):
    write_cell(own_files / "runs", "demo", 0.05, (*ARMS, "grounded_kept"))
    write_cell(own_files / "runs", "short", 0.05)
    map_page.main([str(own_files / "runs")])
    page = map_page.PAGE.read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `demo` | `grounded")]
    assert rows == [
        "| `demo` | `grounded_opd` | 65.5 (75.0) | **+15.0** (+15.0 to +15.0), 2 of 2 "
        "| **+10.0** (+10.0 to +10.0), 2 of 2 | - |",
        "| `demo` | `grounded_kept` | 70.5 (75.0) | **+20.0** (+20.0 to +20.0), 2 of 2 "
        "| **+15.0** (+15.0 to +15.0), 2 of 2 | **+5.0** (+5.0 to +5.0), 2 of 2 |",
    ]
    assert "| `short` | `grounded" not in page


def test_cells_of_an_earlier_time_stay_and_a_held_back_cell_is_stored_alone(own_files):
    write_cell(own_files / "runs", "demo", 0.1)
    map_page.main([str(own_files / "runs")])
    write_cell(own_files / "others", "short", 0.1)
    write_cell(own_files / "others", "mild_k2", 0.1)
    map_page.main([str(own_files / "others")])
    assert list(json.loads(map_page.RESULTS.read_text())) == ["demo", "short", "mild_k2"]
    assert "`short`" in map_page.PAGE.read_text()
    assert "mild_k2" not in map_page.PAGE.read_text()


def test_table_and_figure_of_the_project_are_those_of_its_stored_results(own_files):
    page, figure = REPO / "docs" / "results.md", REPO / "docs" / "images" / "map.svg"
    map_page.RESULTS.write_text((REPO / "benchmarks" / "results" / "map.json").read_text())
    map_page.PAGE.write_text(page.read_text())
    map_page.main([])
    assert map_page.PAGE.read_text() == page.read_text()
    assert map_page.FIGURE.read_text() == figure.read_text()

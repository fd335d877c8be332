"""The stored comparison with other trainers, and the table of it in README.md."""

import json

import pytest
from conftest import REPO

TITLES = {
    "vistill": "vistill 0",
    "trl": "TRL 1, `DistillationTrainer`",
    "hf": "transformers 5, `Trainer`",
}


def example_rows():
    """Rows as `benchmarks/compare_trainers.py` stores them; TRL is not deterministic."""
    kill, stop = {"tried": 9, "different": 0, "stuck": 0}, {"tried": 11}
    mistakes = {"name": "mistakes", "tried": 5, "silent": 1}
    return [
        {"name": "stop", "tool": "vistill", "same": 11, **stop},
        {"name": "kill", "tool": "vistill", "same": 9, **kill},
        {"name": "stop", "tool": "hf", "same": 10, **stop},
        {"name": "kill", "tool": "hf", "same": 5, **kill, "stuck": 3, "different": 1},
        *({"tool": tool, "useful": 2, "named": 3, **mistakes} for tool in TITLES),
    ]


def test_the_comparison_table_is_replaced_between_its_markers(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    from compare_trainers_table import BEGIN, END, with_table

    about = {
        "command": "python compare_trainers.py",
        "date": "2026-11-25",
        "python": "3.11",
        "torch": "2",
        "cores": 2,
    }
    text = with_table(
        f"before\n{BEGIN}\nold\n{END}\nafter\n", example_rows(), {**about, "titles": TITLES}
    )
    assert text.startswith(
        f"before\n{BEGIN}\n"
        "| | vistill 0 | TRL 1, `DistillationTrainer` | transformers 5, `Trainer` |\n"
    )
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    lines = dict(
        line.strip("|").split("|", 1) for line in text.splitlines() if line.startswith("| ")
    )
    assert " 11 of 11 | two undisturbed runs differ | 10 of 11 " in lines.values()
    assert " 0 of 9 | two undisturbed runs differ | 3 of 9 " in lines.values()
    assert " 3 of 5 | 3 of 5 | 3 of 5 " in lines.values()
    with pytest.raises(AssertionError, match="lost its markers"):
        with_table("no markers", example_rows(), {**about, "titles": TITLES})


def test_the_stored_comparison_counts_every_trial_once():
    stored = json.loads(
        (REPO / "benchmarks" / "results" / "compare_trainers.json").read_text(encoding="utf-8")
    )
    counted = {
        "stop": ("same", "different", "stuck"),
        "kill": ("same", "different", "stuck"),
        "mistakes": ("useful", "only_named", "unnamed", "late", "warned", "silent"),
    }
    rows = [row for row in stored["rows"] if row["name"] in counted]
    assert {row["tool"] for row in rows} == set(TITLES)
    for row in rows:
        assert sum(row[end] for end in counted[row["name"]]) == row["tried"], (
            row["name"],
            row["tool"],
        )
        assert len(row.get("tries", range(row["tried"]))) == row["tried"]


def test_the_table_of_the_readme_equals_the_stored_results(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    from compare_trainers_table import README, RESULTS, with_table

    text = README.read_text(encoding="utf-8")
    assert with_table(text, **json.loads(RESULTS.read_text(encoding="utf-8"))) == text

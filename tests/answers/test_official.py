"""Agreement with the benchmarks' own verdicts on real replies, and what the page says about it."""

import pytest
from answers_official import (
    BENCHMARKS,
    disagreements,
    listed,
    official_names,
    read,
    shuffled_rates,
)
from conftest import REPO, SHARED

PAGE = (REPO / "docs" / "answers.md").read_text(encoding="utf-8")
FOLDER = SHARED / "official_replies"
#: Least agreement in percent: as it is, and without the official errors that the page lists.
LEAST = {"mathvision": (98.0, 99.5), "blink": (97.0, 97.0), "mmmu": (95.0, 95.0)}
#: Points by which `auto` may accept more shuffled gold answers than the official rule. MathVision's
#: official strings run letter and value together (kinds 1 and 2 of the page) and equal no gold.
MOST_ABOVE = {"mathvision": 1.5, "blink": 0.0, "mmmu": 0.0}
#: The same, where `d40` counts as the option D whose text is `40°`.
MOST_ABOVE_NAMED = 0.5


@pytest.fixture(scope="module")
def replies():
    if not FOLDER.is_dir():
        pytest.skip(f"no official replies in {FOLDER}")
    return {name: read(FOLDER, name) for name in BENCHMARKS}


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_auto_agrees_with_the_official_verdicts_and_the_page_lists_the_rest(replies, name):
    rows = replies[name]
    differing = disagreements(rows)
    keys = {(name, row["id"], row["model"]) for row, _ in differing}
    page = {key: right for key, right in listed(PAGE).items() if key[0] == name}
    assert keys == set(page)
    official_errors = sum(right == "`auto`" for right in page.values())
    agreement = 100 * (1 - len(differing) / len(rows))
    assert agreement >= LEAST[name][0]
    assert agreement + 100 * official_errors / len(rows) >= LEAST[name][1]
    assert f"{agreement:.2f} %" in PAGE


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_shuffled_gold_answers_are_not_accepted_more_often(replies, name):
    ours, theirs = shuffled_rates(replies[name], seed=0)
    assert 100 * (ours - theirs) <= MOST_ABOVE[name]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_on_mathvision_only_the_form_of_official_strings_makes_a_difference(replies, seed):
    ours, theirs = shuffled_rates(replies["mathvision"], seed, official_names)
    assert 100 * (ours - theirs) <= MOST_ABOVE_NAMED

"""Our verdicts and the committed ones of other packages' checkers; each difference is explained."""

import copy
import json
import re

import pytest
from answers_oracles import (
    BENCHMARKS,
    PAGE,
    PAIRS,
    REPLIES,
    RESULTS,
    compare,
    not_asked,
    rows_by_source,
    shown,
    tables,
    unexplained,
)

TEXT = PAGE.read_text(encoding="utf-8")
COMMITTED = json.loads(RESULTS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def rows():
    files = [*(REPLIES / f"{name}.jsonl" for name in BENCHMARKS), *PAIRS.values()]
    if missing := [str(path) for path in files if not path.is_file()]:
        pytest.skip(f"no real replies: {', '.join(missing)}")
    every = rows_by_source()
    if count := not_asked(COMMITTED, every):
        pytest.fail(f"{count} questions are not in {RESULTS.name}; run `make oracles`")
    return every


@pytest.fixture(scope="module")
def answered(rows):
    return compare(COMMITTED, rows, TEXT)


def test_the_committed_file_has_verdicts_and_no_text():
    sources = [
        *(ids for models in COMMITTED["replies"].values() for ids in models.values()),
        *COMMITTED["pairs"].values(),
    ]
    states = {state for ids in sources for state in ids.values()}
    form = re.compile(f"[10ugt-]{{{len(COMMITTED['oracles'])}}}")
    assert states
    assert all(form.fullmatch(state) for state in states)
    names = {name for ids in sources for name in ids}
    assert max(map(len, names)) < 50


@pytest.mark.slow
def test_every_disagreement_with_another_checker_is_explained(answered):
    assert unexplained(answered) == []


@pytest.mark.slow
def test_the_page_shows_the_agreements_and_the_kinds(answered):
    assert shown(TEXT) == tables(answered, COMMITTED)


@pytest.mark.slow
def test_one_other_verdict_of_an_oracle_changes_the_tables(rows):
    results = copy.deepcopy(COMMITTED)
    ids = results["replies"]["mmmu"]["qwen_vl"]
    name, states = next((n, s) for n, s in ids.items() if s.endswith("1---"))
    ids[name] = states[:-4] + "0---"
    assert tables(compare(results, {"mmmu": rows["mmmu"]}, TEXT), results) != tables(
        compare(COMMITTED, {"mmmu": rows["mmmu"]}, TEXT), COMMITTED
    )

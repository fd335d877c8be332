"""The examples of docs/answers.md are what `vistill.judge` says."""

import pytest
from conftest import REPO

from vistill import judge
from vistill.registry import checkers

PAGE = (REPO / "docs" / "answers.md").read_text(encoding="utf-8")


def table(heading):
    """The rows of the first table behind a heading."""
    lines = PAGE.split(f"## {heading}\n", 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


EXAMPLES = table("Examples")


@pytest.mark.parametrize("row", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_of_the_page(row):
    reply, gold, options, take, expected, rule = row
    text = reply.strip("`").replace("\\n", "\n").replace("¦", "|")
    choices = [option.strip() for option in options.split(";") if option.strip()]
    verdict = judge(text, gold.strip("`"), choices, take=take)
    shown = "correct" if verdict.correct else "unparsed" if verdict.unparsed else "wrong"
    assert (shown, verdict.rule) == (expected, rule)


def test_the_page_lists_every_checker():
    listed = {row[0].strip("`") for row in table("Checkers")}
    assert listed == set(checkers.names()) - {"answers"}

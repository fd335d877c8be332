"""The tests that CHANGELOG.md names exist."""

import re
from pathlib import Path

REPO = Path(__file__).parent.parent


def test_every_test_that_the_changelog_names_exists():
    text = (REPO / "CHANGELOG.md").read_text()
    defined = set(re.findall(r"def (test_\w+)\(", "".join(map(Path.read_text, files_of_tests()))))
    table = re.findall(r"^\| .+ \| (`.*) \|$", text, re.MULTILINE)
    assert len(table) >= 25
    names = set(re.findall(r"(test_\w+)`", " ".join(table)))
    assert len(names) >= 25
    assert sorted(names - defined) == []


def files_of_tests():
    return sorted((REPO / "tests").rglob("test_*.py"))

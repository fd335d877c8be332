"""Every fix that an error prints works when it is pasted into a shell."""

import importlib

import pytest
from fix_cases import SITUATIONS, try_fixes

for module in ("recipe", "data", "rows"):
    importlib.import_module(f"fix_cases_{module}")
FIRST = [case for case in SITUATIONS if case.is_first_tier]


@pytest.mark.parametrize("case", SITUATIONS, ids=lambda case: case.name)
def test_one(case, tmp_path):
    try_fixes(case, tmp_path)

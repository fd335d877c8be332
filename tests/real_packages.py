"""Packages that hold real models and vocabularies. `make real` installs them."""

import importlib.util
import os
from pathlib import Path

import pytest

#: CI sets this: a test then fails where it would be skipped.
NEEDED = "VISTILL_NEEDS_REAL"


def package_folder(name):
    """The folder of a package, without importing it. Skip where it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        assert not os.environ.get(NEEDED), f"CI must have {name}: make real"
        pytest.skip(f"{name} is not installed: make real")
    return Path(spec.submodule_search_locations[0])

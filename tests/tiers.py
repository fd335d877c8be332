"""Split the parameters of a test between the first and the second tier (docs/development.md)."""

import pytest


def few(values, *first, marks=pytest.mark.more):
    """The values; those at these indices are in the first tier, the others in the second."""
    params = []
    for index, value in enumerate(values):
        arguments = value if isinstance(value, tuple) else (value,)
        params.append(pytest.param(*arguments, marks=[] if index in first else marks))
    return params

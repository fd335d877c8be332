"""Counts of the work that a run does: tokens, image patches, rows of a head, operations.

The code that does the work calls `count`. Without a listener that only checks an empty list.
"""

from collections.abc import Iterator
from contextlib import contextmanager

#: Totals of every open `counting` block. No context variable: autograd has threads of its own.
_listeners: list[dict[str, float]] = []


def count(**amounts: float) -> None:
    """Add amounts to the totals of every open `counting` block.

    Args:
        **amounts: `prompt_tokens` and `response_tokens` that a model read, image `patches` that it
            encoded, `head_rows` that a head projected, `flops` of the matrix products.
    """
    for totals in _listeners:
        for name, amount in amounts.items():
            totals[name] = totals.get(name, 0.0) + amount


def is_counting() -> bool:
    """Whether a `counting` block is open. If none is, skip counts that are costly to compute."""
    return bool(_listeners)


@contextmanager
def counting() -> Iterator[dict[str, float]]:
    """Collect the totals of everything that is counted inside the block."""
    totals: dict[str, float] = {}
    _listeners.append(totals)
    try:
        yield totals
    finally:
        _listeners[:] = [x for x in _listeners if x is not totals]

"""What the work was made of, counted where it is done. While nobody listens a count is one look at an empty list."""

from collections.abc import Iterator
from contextlib import contextmanager

#: Whoever listens. Not a context variable: autograd calls us from threads of its own on a GPU.
_listeners: list[dict[str, float]] = []


def count(**amounts: float) -> None:
    """Tell every listener.

    Args:
        **amounts: `prompt_tokens` and `response_tokens` that were read, picture `patches` that were encoded,
            `head_rows` that went through a head, `flops` of matrix products.
    """
    for totals in _listeners:
        for name, amount in amounts.items():
            totals[name] = totals.get(name, 0.0) + amount


def is_counting() -> bool:
    """Whether anybody listens; what is costly to work out need not be when nobody does."""
    return bool(_listeners)


@contextmanager
def counting() -> Iterator[dict[str, float]]:
    """Sums of everything that is counted inside the block."""
    totals: dict[str, float] = {}
    _listeners.append(totals)
    try:
        yield totals
    finally:
        _listeners[:] = [x for x in _listeners if x is not totals]

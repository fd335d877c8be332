"""The built-in methods, one file each.

A method defines its passes, its signals and its loss terms. Everything else (rollouts, scoring,
reduction, the loop, checkpoints, evaluation, reports) is shared. To add a method to vistill: a file
here, a line in `vistill/registry.py`, a golden test, a page in `vistill/objectives/pages/`. To add
a method of your own: `docs/extending.md`. A class is imported on first access, so that the names
are known without torch.
"""

from typing import Any

from vistill.plugins import import_attribute
from vistill.registry import Shipped, methods

#: Name -> class of every method that comes with vistill.
METHODS = Shipped(methods)
_TARGETS = {target.partition(":")[2]: target for target in methods.builtin.values()}

__all__ = ["METHODS", *_TARGETS]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _TARGETS:
        return import_attribute(_TARGETS[name])
    raise AttributeError(f"module 'vistill.objectives' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_TARGETS])

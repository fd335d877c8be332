"""The built-in methods, one file each. A method says what must be seen, what is measured and what is minimised.

Everything else (rollouts, scoring, reduction, the loop, checkpoints, evaluation, reports) is shared. To add one to
vistill: a file here, a line in `vistill/registry.py`, a golden test, a page in `vistill/objectives/pages/`. To add one
of your own: `docs/extending.md`. Classes are imported when they are asked for, so that names cost no torch.
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

"""Whether a function of transformers knows an argument, where it would accept any keyword."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from transformers import __version__ as transformers_version

from vistill.errors import ModelError


def check_signature(function: Callable[..., Any], names: Iterable[str]) -> None:
    """M110 where a function does not name an argument; `**kwargs` would swallow it silently."""
    parameters = inspect.signature(function).parameters
    missing = [name for name in names if name not in parameters]
    if missing:
        where = getattr(function, "__qualname__", str(function))
        raise ModelError(
            "M110",
            f"{where} of transformers {transformers_version} has no argument {missing[0]!r}",
            where=where,
            why="it would accept the argument and ignore it, and the model would not see its pictures",
            fix="pip install 'transformers>=5.19'",
        )

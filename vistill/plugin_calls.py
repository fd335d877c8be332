"""Calls of the functions of plug-ins: an exception there becomes C106, with place and fix.

What comes with vistill is called as it is: an exception there is a defect of vistill, and its
traceback is what helps.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from vistill.errors import ConfigError, VistillError
from vistill.lookup import Registry
from vistill.plugins import Origin, place_in
from vistill.registry import methods

#: Arguments of `Pass` that name a reader, by the name that a pass begins with.
READERS = ("student", "old", "teacher", "ema", "reference")


class UndeclaredPassError(KeyError):
    """A method reads a pass that is not among its `passes()`."""

    def __init__(self, name: str, declared: list[str]) -> None:
        super().__init__(name)
        self.name, self.declared = name, declared


@contextmanager
def plugin_call(registry: Registry, name: str) -> Iterator[None]:
    """C106 if the function that a plug-in registered under a name raises an exception."""
    if name in registry.builtin:
        yield
        return
    function = registry.get(name)
    try:
        yield
    except Exception as error:  # a plug-in may raise anything; the cause is kept
        if is_ours(error):
            raise
        origin = registry.entry(name).origin
        raise failed_call(f"the {registry.one} {name}", function, origin, error) from error


def checked_function(registry: Registry, name: str) -> Callable[..., Any]:
    """The function of a name; that of a plug-in raises C106 in place of its own exceptions."""
    function = registry.get(name)
    if name in registry.builtin:
        return function

    @wraps(function)
    def call(*arguments: Any) -> Any:
        with plugin_call(registry, name):
            return function(*arguments)

    return call


@contextmanager
def method_call(objective: Any, function: str) -> Iterator[None]:
    """C106 if a function of a method that does not come with vistill raises an exception."""
    kind = type(objective)
    if is_part_of_vistill(kind):
        yield
        return
    try:
        yield
    except UndeclaredPassError as error:
        raise undeclared_pass(kind, function, error) from error
    except Exception as error:  # a plug-in may raise anything; the cause is kept
        own = next((base for base in kind.__mro__ if function in vars(base)), kind)
        if is_ours(error) or is_part_of_vistill(own):
            raise
        code = getattr(objective, function, None) if function != "requirements" else None
        code = code or vars(own)[function].fget
        what = f"{kind.__qualname__}.{function}"
        raise failed_call(what, code, origin_of(kind), error) from error


def is_ours(error: Exception) -> bool:
    """Whether an exception is handled elsewhere: a coded error, or memory that ran out."""
    memory = ("out of memory", "can't allocate memory")
    return isinstance(error, (VistillError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in memory)
    )


def is_part_of_vistill(kind: type) -> bool:
    """Whether a class comes with vistill."""
    return kind.__module__.partition(".")[0] == "vistill"


def origin_of(kind: type) -> Origin:
    """Where a method comes from: as the registry has it, or the module of its class."""
    name = methods.name_of(kind)
    return methods.entry(name).origin if name else Origin("Python", kind.__module__)


def failed_call(what: str, function: Any, origin: Origin, error: Exception) -> ConfigError:
    """C106 for an exception of a plug-in's function."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    file = Path(code.co_filename) if code else Path(origin.name)
    place = place_in(file, error)
    return ConfigError(
        "C106",
        f"{what} raised {type(error).__name__}",
        where=str(origin),
        why=f"{type(error).__name__}: {error}"[:300],
        fix=f"correct {place}, then run the same command again",
        note="vistill --traceback VERB ... prints the whole traceback",
    )


def undeclared_pass(kind: type, function: str, error: UndeclaredPassError) -> ConfigError:
    """C106 for a pass that a method reads and does not declare."""
    reader, _, view = error.name.partition(".")
    known = reader in READERS and view
    addition = f'Pass(Reader.{reader.upper()}, "{view}")' if known else f"the pass {error.name}"
    if reader == "student":
        addition = f'Pass(Reader.STUDENT, "{view}", gradient=True)'
    imports = "   (from vistill.types import Pass, Reader)" if known else ""
    return ConfigError(
        "C106",
        f"{kind.__qualname__}.{function} reads {error.name}, which is not among its passes()",
        where=str(origin_of(kind)),
        why=f"passes(): {', '.join(error.declared)}",
        fix=f"add {addition} to {kind.__qualname__}.passes(){imports}",
    )

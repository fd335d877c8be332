"""A registry: the names of one kind and what they stand for. `registry.py` has all of them.

A name stands for, in this order:

1. what comes with vistill;
2. what a plug-in file registered (`--plugin mine.py`), or what the entry points of an installed
   package give (`[project.entry-points."vistill.methods"]`);
3. `module:attribute` of an installed package that requires vistill.

Names are resolved when they are used, so listing and validating them imports no torch.
"""

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, entry_points
from pathlib import Path
from typing import Any, TypeVar

from vistill import plugins
from vistill.errors import ConfigError, closest
from vistill.plugins import BUILT_IN, Origin

Thing = TypeVar("Thing")
PACKAGE = Path(__file__).parent
#: What a registered name looks like.
NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Entry:
    """A name of a registry, what it stands for (`module:attribute`) and where that comes from."""

    name: str
    target: str
    origin: Origin
    point: EntryPoint | None = None


class Registry:
    """The names of one kind."""

    def __init__(
        self,
        kind: str,
        one: str,
        builtin: Mapping[str, str],
        base: str = "",
        arguments: Sequence[str] | None = None,
    ) -> None:
        """An empty registry.

        Args:
            kind: in the plural; `vistill.KIND` is the group of its entry points.
            one: in the singular, for messages.
            builtin: name -> `module:attribute` of what comes with vistill.
            base: `module:Class` that classes of this kind derive from; empty for functions.
            arguments: what functions of this kind are called with, in order.
        """
        self.kind, self.one, self.builtin = kind, one, dict(builtin)
        self.a_name = f"{'an' if one[0] in 'aeiou' else 'a'} {one}"
        self.base, self.arguments = base, arguments
        self._given: dict[str, tuple[Entry, Any]] = {}
        self._resolved: dict[str, Any] = {}

    # Registering.

    def register(self, name: str) -> Callable[[Thing], Thing]:
        """A decorator that gives a class or function a name: `@methods.register("mine")`.

        It is for plug-in files; a package names its entry points instead. Recipes can use the name
        for the rest of the process.

        Raises:
            ConfigError: C106, the name is taken, is no name, or the object is not of this kind.
        """

        def add(thing: Thing) -> Thing:
            where = plugins.executing() or Origin("Python", getattr(thing, "__module__", "") or "")
            entry = Entry(name, target_of(thing), where)
            self.check_name(entry)
            self.check(thing, entry)
            self._given[name] = (entry, thing)
            self._resolved.pop(name, None)
            return thing

        return add

    def check_name(self, entry: Entry) -> None:
        """C106 where something cannot be registered under its name."""
        other = self._given.get(entry.name)
        taken = other is not None and str(other[0].origin) != str(entry.origin)
        reason = ""
        if not NAME.fullmatch(entry.name):
            reason = (
                "a name has lower-case letters, digits and underscores, and begins with a letter"
            )
        elif entry.name in self.builtin:
            reason = "vistill has one of that name"
        elif taken and other is not None:
            reason = f"{other[0].origin} has registered that name"
        if reason:
            raise ConfigError(
                "C106",
                f'{self.a_name} cannot be registered as "{entry.name}"',
                where=str(entry.origin),
                why=reason,
                fix=f'@{self.kind}.register("my_{self.one.replace(" ", "_")}")',
            )

    def forget(self, origin: Origin) -> None:
        """Drop what one origin registered."""
        for name in [name for name, (entry, _) in self._given.items() if entry.origin == origin]:
            del self._given[name]
            self._resolved.pop(name, None)

    def forget_all(self) -> None:
        """Drop everything that was registered in this process."""
        self._given.clear()
        self._resolved.clear()

    # Looking up.

    def names(self) -> list[str]:
        """Every name: built-in ones, those of plug-in files, those of installed packages."""
        points = [entry.name for entry in self._points()]
        return list(dict.fromkeys([*self.builtin, *self._given, *points]))

    def __contains__(self, name: object) -> bool:
        if ":" not in str(name):
            return str(name) in self.names()
        try:
            self.entry(str(name))
        except ConfigError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def entries(self) -> list[Entry]:
        """Every name with where it comes from; a name that two give stands twice."""
        own = [Entry(name, target, BUILT_IN) for name, target in self.builtin.items()]
        return [*own, *(entry for name in self._foreign() for entry in self._candidates(name))]

    def entry(self, name: str) -> Entry:
        """What a name stands for; nothing is imported.

        Raises:
            ConfigError: C102 (methods) or C105, the name is unknown; C106, two plug-ins give it.
        """
        name = str(name)
        if name in self.builtin:
            return Entry(name, self.builtin[name], BUILT_IN)
        candidates = self._candidates(name)
        if len(candidates) > 1:
            raise ConfigError(
                "C106",
                f'two plug-ins give {self.a_name} called "{name}"',
                why=" and ".join(str(entry.origin) for entry in candidates),
                fix="leave one of them out",
            )
        if candidates:
            return candidates[0]
        if ":" in name:
            return self._installed(name)
        raise self.unknown(name)

    def get(self, name: str) -> Any:
        """What a name stands for, imported and checked.

        Raises:
            ConfigError: as `entry`; C106, it cannot be imported or is not of this kind.
        """
        name = str(name)
        if name not in self._resolved:
            entry = self.entry(name)
            if entry.origin.kind == "built-in":
                self._resolved[name] = plugins.import_attribute(entry.target)
            elif name in self._given:
                self._resolved[name] = self._given[name][1]
            else:
                thing = self._imported(entry)
                self.check(thing, entry)
                self._resolved[name] = thing
        return self._resolved[name]

    def name_of(self, thing: Any) -> str | None:
        """The name that a class or function is known by; None where it has none."""
        target = target_of(thing)
        return next((entry.name for entry in self.entries() if entry.target == target), None)

    def source_hash(self, name: str) -> str:
        """A hash of the source behind a name; empty for what comes with vistill."""
        return plugins.source_hash(self.get(name), self.entry(name).origin)

    def require(self, field: str, name: str, fix: str = "") -> None:
        """C105 for a field of the settings that names nothing of this kind. Nothing is imported.

        Args:
            field: the key within its group.
            name: what it names.
            fix: the fix; by default the field with the nearest name, else the first built-in one.
        """
        if name not in self.builtin:
            try:
                self.entry(name)
            except ConfigError as error:
                if error.code != "C105":
                    raise
                near = next(iter(closest(name, self.names())), next(iter(self.builtin)))
                what, fix = f"{field} = {name} is no {self.one}", fix or f"{field}={near}"
                raise ConfigError("C105", what, why=error.why, fix=fix) from error

    def summary(self, entry: Entry) -> str:
        """The first line of the docstring of an entry. It does not import built-in ones."""
        text = (
            docstring(entry.target)
            if entry.origin.kind == "built-in"
            else inspect.getdoc(self.get(entry.name))
        )
        return (text or "").partition("\n")[0]

    # Errors.

    def unknown(self, name: str, where: str = "", fix: str = "", note: str = "") -> ConfigError:
        """C102 for an unknown method, C105 for other unknown names, with similar names."""
        known, module = self.names(), name.partition(":")[0]
        near = closest(name, known)
        why = f"{self.kind}: {', '.join(known)}" + (f'   did you mean "{near[0]}"?' if near else "")
        if ":" in name:
            why = (
                f"{module} is no module of an installed package that requires vistill,"
                " and files of the working folder are never imported"
            )
        own = f"{self.a_name} of your own: --plugin FILE.py, or a package with entry points"
        return ConfigError(
            "C102" if self.kind == "methods" else "C105",
            f'unknown {self.one} "{name:.80}"' if name else f"the recipe names no {self.one}",
            where=where,
            why=f"{why}\n{own}",
            fix=fix or f"vistill list {self.kind}",
            note=note,
        )

    def check(self, thing: Any, entry: Entry) -> None:
        """C106 where an object is not of this kind."""
        reason = self.objection(thing)
        if reason:
            raise ConfigError(
                "C106",
                f"{entry.target} cannot be {self.a_name}",
                where=str(entry.origin),
                why=reason,
                fix=f"correct {entry.target.partition(':')[2] or entry.target}; "
                f"docs/extending.md shows {self.a_name}",
            )

    def objection(self, thing: Any) -> str:
        """Why an object is not of this kind; empty where it is."""
        if self.base:
            return objection_to_class(thing, self.base)
        if not callable(thing):
            return "it is no function"
        if self.arguments is not None:
            try:
                inspect.signature(thing).bind(*self.arguments)
            except (TypeError, ValueError):
                return f"it is called with ({', '.join(self.arguments)})"
        return ""

    # Plug-ins.

    def _points(self) -> tuple[EntryPoint, ...]:
        return points_of(f"vistill.{self.kind}", tuple(sys.path))

    def _foreign(self) -> list[str]:
        points = (entry.name for entry in self._points())
        return [name for name in dict.fromkeys([*self._given, *points]) if name not in self.builtin]

    def _candidates(self, name: str) -> list[Entry]:
        """What plug-in files and packages give under a name; the same object is listed once."""
        candidates = [self._given[name][0]] if name in self._given else []
        for point in self._points():
            target = f"{point.module}:{point.attr}"
            if point.name == name and target not in {entry.target for entry in candidates}:
                candidates.append(Entry(name, target, origin_of_package(point.dist), point))
        return candidates

    def _installed(self, name: str) -> Entry:
        """`module:attribute` of an installed package that requires vistill."""
        module, _, attribute = name.partition(":")
        if (
            not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", module)
            or not attribute.isidentifier()
        ):
            raise self.unknown(name)
        try:
            package = plugins.package_of(module)
        except PackageNotFoundError as error:
            raise self.unknown(name, fix="pip install PACKAGE") from error
        return Entry(name, name, origin_of_package(package))

    def _imported(self, entry: Entry) -> Any:
        try:
            return plugins.import_attribute(entry.target)
        except ConfigError:
            raise
        except Exception as error:  # a package may raise anything; the cause is kept
            raise ConfigError(
                "C106",
                f'the {self.one} "{entry.name}" cannot be imported',
                where=str(entry.origin),
                why=f"{entry.target}: {type(error).__name__}: {error}"[:300],
                fix=f"pip install --upgrade {entry.origin.name}",
            ) from error


def objection_to_class(thing: Any, base: str) -> str:
    """Why an object is no class that can be made and derives from a base; empty where it is."""
    if not (inspect.isclass(thing) and issubclass(thing, plugins.import_attribute(base))):
        return f"it is no subclass of {base.replace(':', '.')}"
    if inspect.isabstract(thing):
        return f"it does not define {', '.join(sorted(getattr(thing, '__abstractmethods__', ())))}"
    return ""


def target_of(thing: Any) -> str:
    """`module:qualified.name` of a class or function."""
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{kind.__module__}:{kind.__qualname__}"


def origin_of_package(package: Distribution | None) -> Origin:
    """The package an entry point belongs to."""
    return (
        Origin("package", package.name, package.version)
        if package is not None
        else Origin("package", "unknown")
    )


@cache
def points_of(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """The entry points of a group, looked for once per search path."""
    return tuple(entry_points(group=group))


@cache
def docstring(target: str) -> str:
    """The docstring of a built-in object, read from its source without importing it."""
    module, _, attribute = target.partition(":")
    file = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == attribute:
            return ast.get_docstring(node) or ""
    raise AssertionError(f"{target} is not in {file.name}")


class Shipped(Mapping[str, Any]):
    """The built-in names of a registry with what they stand for, imported on first use."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def __getitem__(self, name: str) -> Any:
        if name not in self.registry.builtin:
            raise KeyError(name)
        return self.registry.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.registry.builtin)

    def __len__(self) -> int:
        return len(self.registry.builtin)

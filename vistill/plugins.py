"""Code that does not come with vistill: installed packages, and files that the user gives.

A recipe only names things; it never makes vistill execute a file. A file is executed only if the
user names it on the command line (`--plugin mine.py`) or in Python (`plugins=["mine.py"]`).
`module:Class` is imported only from a package that pip installed and that requires vistill.
`SECURITY.md` says why.
"""

import ast
import hashlib
import importlib.util
import inspect
import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.metadata import Distribution, PackageNotFoundError, distributions
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from urllib.parse import unquote, urlparse

from vistill.errors import ConfigError


@dataclass(frozen=True)
class Origin:
    """Where something that a recipe names comes from."""

    kind: Literal["built-in", "package", "file", "Python"]
    name: str = ""
    """The package, the file as it was given, or the module."""
    version: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.kind, self.name, self.version) if part)


BUILT_IN = Origin("built-in")


@dataclass(frozen=True)
class PluginFile:
    """A file that was given and executed."""

    given: str
    """The path as the person wrote it."""
    path: Path
    sha256: str
    module: ModuleType

    @property
    def origin(self) -> Origin:
        """Where its registrations come from."""
        return Origin("file", self.given)


#: The plug-in files of this process, by resolved path.
FILES: dict[Path, PluginFile] = {}
#: The file that is executed just now: what it registers comes from it.
_executing: list[Origin] = []


def executing() -> Origin | None:
    """The plug-in file that is executed just now, if any."""
    return _executing[-1] if _executing else None


class LoaderOfBytes(SourceFileLoader):
    """Executes the given bytes, which were hashed; never a cached compilation of other bytes."""

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self.source = source

    def path_stats(self, path: Any) -> Any:
        """No date, so no cached compilation is read or written."""
        raise OSError

    def get_data(self, path: Any) -> bytes:
        """The bytes."""
        return self.source


def execute_file(given: str) -> PluginFile:
    """Execute a plug-in file and remember it.

    Raises:
        ConfigError: C106, it cannot be read or executed.
    """
    path = Path(given).resolve()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            "C106",
            f"the plug-in {given} cannot be read",
            why=f"{type(error).__name__}: {error.strerror}",
            fix=f"--plugin FILE.py   in place of --plugin {shlex.quote(given)}",
        ) from error
    name = f"vistill_plugin_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{hash_of_text(str(path))}"
    spec = importlib.util.spec_from_loader(
        name, LoaderOfBytes(name, str(path), source), origin=str(path)
    )
    assert spec is not None
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    plugin = PluginFile(given, path, hashlib.sha256(source).hexdigest(), module)
    sys.modules[name] = module
    _executing.append(plugin.origin)
    try:
        assert spec.loader is not None
        spec.loader.exec_module(module)
    except ConfigError:
        sys.modules.pop(name, None)
        raise
    except Exception as error:  # a plug-in may raise anything; the cause is kept
        sys.modules.pop(name, None)
        raise ConfigError(
            "C106",
            f"the plug-in {given} cannot be executed",
            where=place_in(path, error),
            why=f"{type(error).__name__}: {error}"[:300],
            fix=f"correct it; the error is shown by   python {shlex.quote(given)}",
        ) from error
    finally:
        _executing.pop()
    FILES[path] = plugin
    return plugin


def place_in(path: Path, error: BaseException) -> str:
    """`mine.py:12`, the line of a file that an error comes from."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{path.name}:{error.lineno}"
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f"{path.name}:{lines[-1]}" if lines else path.name


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hash_of_text(text: str) -> str:
    """A short hash."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# Installed packages.


def import_attribute(target: str) -> Any:
    """What `module:attribute` stands for."""
    module, _, attribute = target.partition(":")
    thing: Any = import_module(module)
    for part in attribute.split("."):
        thing = getattr(thing, part)
    return thing


def packages_for_vistill() -> Iterator[Distribution]:
    """Installed packages that name vistill among their requirements."""
    for package in distributions():
        requirements = package.requires or ()
        if any(re.match(r"vistill(?![\w.-])", text, re.IGNORECASE) for text in requirements):
            yield package


def package_of(module: str) -> Distribution:
    """The installed package made for vistill that a module belongs to.

    The module must be one of the files that the package installed, or be in the folder of an
    editable installation. A file of the same name in the working folder is neither.

    Raises:
        PackageNotFoundError: there is none.
    """
    inside = module.replace(".", "/")
    for package in packages_for_vistill():
        wanted = {f"{inside}.py", f"{inside}/__init__.py"}
        installed = [file for file in package.files or () if file.as_posix() in wanted]
        if installed and is_found_at(module, [Path(str(file.locate())) for file in installed]):
            return package
        folder, top = editable_folder(package), module.partition(".")[0]
        if folder is not None and top in top_level_names(package):
            places = [root / name for root in (folder, folder / "src") for name in wanted]
            if is_found_at(module, places):
                return package
    raise PackageNotFoundError(module)


def is_found_at(module: str, files: Sequence[Path]) -> bool:
    """Whether Python would import the module from one of these files. It imports no parent."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return False
    if rest:
        roots = list(spec.submodule_search_locations or ())
        sources = [Path(root, *rest).with_suffix(".py") for root in roots]
        sources += [Path(root, *rest, "__init__.py") for root in roots]
    else:
        sources = [Path(spec.origin)]
    return bool({p.resolve() for p in sources if p.is_file()} & {p.resolve() for p in files})


def editable_folder(package: Distribution) -> Path | None:
    """The project folder of an editable installation (`pip install -e`), else None."""
    facts = json.loads(package.read_text("direct_url.json") or "{}")
    if not facts.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlparse(facts["url"]).path))


def top_level_names(package: Distribution) -> set[str]:
    """The modules that an editable package lists in `top_level.txt` or in its entry points."""
    listed = (package.read_text("top_level.txt") or "").split()
    return {*listed, *(entry.module.partition(".")[0] for entry in package.entry_points)}


# Hashes of source, by which a changed plug-in is noticed.


def source_hash(thing: Any, origin: Origin) -> str:
    """A hash of the source that something comes from; empty where there is no source to read.

    Of a file: all of it. Of a package: the module, and every module of the package that it imports.
    Of a class passed in Python: the text of the class and of its bases outside vistill.
    """
    if origin.kind == "built-in":
        return ""
    if origin.kind == "file":
        return next((file.sha256 for file in FILES.values() if file.given == origin.name), "")
    if origin.kind == "package":
        files = package_sources(thing.__module__)
        parts = [f"{name} {digest(file)}" for name, file in sorted(files.items())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    texts = [text for kind in getattr(thing, "__mro__", (thing,)) if (text := own_source(kind))]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest() if texts else ""


def own_source(kind: Any) -> str:
    """The text of a class that is neither vistill's nor Python's; empty where it has none."""
    top = kind.__module__.partition(".")[0]
    if top in ("vistill", "builtins") or top in sys.stdlib_module_names - {"__main__"}:
        return ""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed in at a prompt
        return ""


def package_sources(module: str) -> dict[str, Path]:
    """By module name: the source files of a module and of what it imports from its own package."""
    top, sources, waiting = module.partition(".")[0], {}, [module]
    while waiting:
        name = waiting.pop()
        file = source_file(name)
        if name in sources or file is None:
            continue
        sources[name] = file
        parents = [name.rpartition(".")[0]] if "." in name else []
        imported = imports_in(file, name)
        waiting += [other for other in (*parents, *imported) if other.partition(".")[0] == top]
    return sources


def source_file(module: str) -> Path | None:
    """The source file of a module; None where there is no such module, or no source."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return (
        Path(spec.origin)
        if spec is not None and spec.origin and spec.origin.endswith(".py")
        else None
    )


def imports_in(file: Path, module: str) -> list[str]:
    """Names that a source file imports, each perhaps a module."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            base = ".".join([*start, *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names

"""Every import of tests, benchmarks and examples names something that exists.

Imports inside functions run seldom, so a renamed function would be noticed late.
"""

import ast
from functools import cache

import pytest
from conftest import REPO

FOLDERS = ("tests", "benchmarks", "examples")  # the type checker reads vistill/
FILES = sorted(file for folder in FOLDERS for file in (REPO / folder).rglob("*.py"))
#: Folders that scripts and tests put on the path.
ROOTS = (
    REPO,
    REPO / "tests",
    REPO / "tests" / "faults",
    REPO / "benchmarks",
    REPO / "examples" / "plugin" / "src",
)


def file_of(module):
    """The file of a module of the repository, or None."""
    path = module.replace(".", "/")
    candidates = [root / f"{path}{end}" for root in ROOTS for end in (".py", "/__init__.py")]
    return next((file for file in candidates if file.is_file()), None)


@cache
def names_of(file):
    """The names that a module defines at its top level, or None if it makes names as it likes."""
    tree = ast.parse(file.read_text())
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                if name == "__getattr__":
                    return None
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {a.asname or a.name.partition(".")[0] for a in aliases}
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case _:
                pass
    return names


def wrong_imports(file):
    """Imports of a file that name nothing."""
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ImportFrom) or node.level or not node.module:
            continue
        source = file_of(node.module)
        if source is None:
            if node.module.partition(".")[0] == "vistill":
                yield f"line {node.lineno}: {node.module}"
            continue
        names = names_of(source)
        for alias in node.names:
            known = names is None or alias.name in names or file_of(f"{node.module}.{alias.name}")
            if not known and source.name == "__init__.py":
                known = (source.parent / alias.name).is_dir()
            if not known:
                yield f"line {node.lineno}: {node.module}.{alias.name}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_imported_exists(folder):
    files = [file for file in FILES if file.is_relative_to(REPO / folder)]
    assert len(files) > 1
    wrong = {str(file.relative_to(REPO)): list(wrong_imports(file)) for file in files}
    assert {name: lines for name, lines in wrong.items() if lines} == {}


def test_a_stale_import_is_noticed(tmp_path):
    file = tmp_path / "stale.py"
    file.write_text(
        "def f():\n    from bad_rows import planted\n    from vistill.nowhere import x\n"
    )
    assert list(wrong_imports(file)) == ["line 2: bad_rows.planted", "line 3: vistill.nowhere"]

#!/usr/bin/env python3
"""Validate every recipe against `vistill schema` with check-jsonschema.

check-jsonschema shares no code with the package. Recipes: `recipes/`, `examples/`, the YAML blocks
of the docs that name a method, and what `vistill init` writes for every method, with the data of a
file, of the hub, and without data. The recipe of `examples/plugin` is checked against the schema
with its method.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
ROWS = [
    {
        "problem": f"What is {n}?",
        "image": f"{n}.png",
        "solution": str(n),
        "options": ["1", "2"],
        "note": None,
    }
    for n in range(40)
]


PLUGIN = REPO / "examples" / "plugin"
#: Gives the example's method its name without an installation, where an entry point would.
REGISTER = """
import sys
from vistill.registry import methods

sys.path.insert(0, {source!r})
from vistill_gap_opd import GapOPD

methods.register("gap_opd")(GapOPD)
"""


def written() -> list[Path]:
    """Recipes of the repository that need no plug-in."""
    files = sorted([*REPO.glob("recipes/*.yaml"), *REPO.glob("examples/**/*.yaml")])
    return [file for file in files if not file.is_relative_to(PLUGIN)]


def of_the_plugin() -> list[Path]:
    """Recipes of the example of a plug-in."""
    return sorted(PLUGIN.rglob("*.yaml"))


def in_docs(folder: Path) -> list[Path]:
    """Whole recipes among the YAML blocks of the documentation, each as a file."""
    files = []
    for page in sorted(
        [*REPO.glob("*.md"), *REPO.glob("docs/*.md"), *REPO.glob("examples/**/*.md")]
    ):
        blocks = re.findall(r"^```yaml\n(.+?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
        for number, block in enumerate(blocks):
            if re.search(r"^method:", block, re.M):
                files.append(folder / f"{page.stem}-{number}.yaml")
                files[-1].write_text(block, encoding="utf-8")
    return files


def made_by_init(folder: Path) -> list[Path]:
    """What `vistill init` writes for every method."""
    from vistill.cli.init import write_recipe
    from vistill.config import method_schemas

    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with contextlib.chdir(folder):
        for method in method_schemas():
            for kind, data in (
                ("file", "rows.jsonl"),
                ("hub", "hf:owner/name[train]"),
                ("none", "diagrams"),
            ):
                write_recipe(f"{method}_{kind}.yaml", "student/model", "teacher/model", data)
    return sorted(folder.glob("*_*.yaml"))


def write_schema(file: Path, *arguments: str) -> Path:
    """Write the output of `vistill schema` into a file."""
    command = [sys.executable, "-m", "vistill", "schema", *arguments]
    file.write_bytes(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return file


def main() -> int:
    """Check all of them; exit code 0 if all fit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        schema = write_schema(folder / "schema.json")
        plugin = folder / "register.py"
        plugin.write_text(REGISTER.format(source=str(PLUGIN / "src")), encoding="utf-8")
        extended = write_schema(folder / "extended.json", "--plugin", str(plugin))
        files = [*written(), *in_docs(folder), *made_by_init(folder)]
        checks: list[list[str | Path]] = [
            ["--schemafile", schema, *files],
            ["--schemafile", extended, *of_the_plugin()],
            ["--check-metaschema", schema, extended],
        ]
        status = 0
        for words in checks:
            command = [sys.executable, "-m", "check_jsonschema", *words]
            environment = {**os.environ, "NO_COLOR": "1"}
            status |= subprocess.run(command, check=False, env=environment).returncode
    number = len(files) + len(of_the_plugin())
    sys.stdout.write(
        f"{number} recipes against vistill schema: {'ok' if status == 0 else 'FAILED'}\n"
    )
    return status


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Validate every recipe against `vistill schema` with check-jsonschema.

check-jsonschema shares no code with the package. Recipes: `recipes/`, `examples/`, the YAML blocks
of the docs that name a method, and what `vistill init` writes for every method, with the data of a
file, of the hub, and without data.
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


def written() -> list[Path]:
    """Recipes of the repository."""
    return sorted([*REPO.glob("recipes/*.yaml"), *REPO.glob("examples/**/*.yaml")])


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


def main() -> int:
    """Check all of them; the number of files that do not fit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        schema = folder / "schema.json"
        schema.write_bytes(
            subprocess.run(
                [sys.executable, "-m", "vistill", "schema"], check=True, stdout=-1
            ).stdout
        )
        files = [*written(), *in_docs(folder), *made_by_init(folder)]
        command = [sys.executable, "-m", "check_jsonschema", "--schemafile", schema, *files]
        status = subprocess.run(
            command, check=False, env={**os.environ, "NO_COLOR": "1"}
        ).returncode
        own = [sys.executable, "-m", "check_jsonschema", "--check-metaschema", schema]
        status = status or subprocess.run(own, check=False).returncode
    sys.stdout.write(
        f"{len(files)} recipes against vistill schema: {'ok' if status == 0 else 'FAILED'}\n"
    )
    return status


if __name__ == "__main__":
    sys.exit(main())

"""Which model a path stands for: a model folder or hub id is itself; a run folder is its chosen student."""

import json
from pathlib import Path

from vistill.errors import ModelError, StorageError, suggest

#: The tiny models that come with the package.
SHIPPED = ("teacher", "student", "base")


def resolve_model(source: str) -> str:
    """The model folder behind a run folder; anything else unchanged.

    `vistill:teacher`, `vistill:student` and `vistill:base` (reads visual thoughts) are shipped with the package.
    """
    if source.startswith("vistill:"):
        if source.removeprefix("vistill:") not in SHIPPED:
            hint = suggest(source.removeprefix("vistill:"), list(SHIPPED))
            raise ModelError(
                "M103",
                f'no shipped model "{source}"',
                why=f"shipped: {', '.join(f'vistill:{name}' for name in SHIPPED)}   {hint}".rstrip(),
                fix="student.model=vistill:student teacher.model=vistill:teacher",
            )
        return str(Path(__file__).parent.parent / "assets" / source.removeprefix("vistill:"))
    folder = Path(source)
    result = folder / "result.json"
    if not result.is_file() or (folder / "config.json").exists():
        return source
    chosen = json.loads(result.read_text(encoding="utf-8")).get("checkpoint")
    student = folder / str(chosen) / "student"
    if not chosen or not student.is_dir():
        raise StorageError(
            "S605", "the run has no checkpoint yet", where=source, fix="train it first, or name a model folder"
        )
    return str(student)

"""Which model a path stands for: a model folder or hub id is itself; a run folder is its chosen student."""

from pathlib import Path

from vistill.errors import ModelError, StorageError
from vistill.runs.missing import ASSETS, nearest
from vistill.runs.storage import read_json

#: The tiny models that come with the package.
SHIPPED = ("teacher", "student", "base")


def resolve_model(source: str, role: str = "student") -> str:
    """The model folder behind a run folder; anything else unchanged.

    `vistill:teacher`, `vistill:student` and `vistill:base` (reads visual thoughts) are shipped with the package.
    """
    if source.startswith("vistill:"):
        name = source.removeprefix("vistill:")
        if name not in SHIPPED:
            raise ModelError(
                "M103",
                f'{role} "{source}" not found: no shipped model has this name',
                why=f"shipped: {', '.join(f'vistill:{name}' for name in SHIPPED)}",
                fix=f"{role}.model=vistill:{[*nearest(name, SHIPPED), role][0]}",
            )
        return str(ASSETS / name)
    folder = Path(source)
    result = folder / "result.json"
    if not result.is_file() or (folder / "config.json").exists():
        return source
    chosen = read_json(result).get("checkpoint")
    student = folder / str(chosen) / "student"
    if not chosen or not student.is_dir():
        raise StorageError(
            "S605", "the run has no checkpoint yet", where=source, fix="train it first, or name a model folder"
        )
    return str(student)

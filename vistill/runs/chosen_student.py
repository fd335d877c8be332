"""Which model a path stands for: a model folder or hub id is itself; a run folder is its chosen student."""

from pathlib import Path

from vistill.errors import ModelError, StorageError
from vistill.runs.folder import checkpoints_in
from vistill.runs.model_not_found import ASSETS, similar_names
from vistill.runs.storage import read_json

#: The tiny models that come with the package.
SHIPPED_MODELS = ("teacher", "student", "base")


def resolve_model(source: str, role: str = "student") -> str:
    """The model folder behind a run folder; anything else unchanged.

    `vistill:teacher`, `vistill:student` and `vistill:base` (reads visual thoughts) are shipped with the package.
    """
    if source.startswith("vistill:"):
        name = source.removeprefix("vistill:")
        if name not in SHIPPED_MODELS:
            raise ModelError(
                "M103",
                f'{role} "{source}" not found: no shipped model has this name',
                why=f"shipped: {', '.join(f'vistill:{name}' for name in SHIPPED_MODELS)}",
                fix=f"{role}.model=vistill:{[*similar_names(name, SHIPPED_MODELS), role][0]}",
            )
        return str(ASSETS / name)
    folder = Path(source)
    result = folder / "result.json"
    if (folder / "config.json").exists() or not (
        result.is_file() or (folder / "run.lock.json").is_file()
    ):
        return source
    chosen = read_json(result).get("checkpoint") if result.is_file() else None
    student = folder / str(chosen) / "student"
    if not chosen or not student.is_dir():
        raise unfinished_run_error(folder, role)
    return str(student)


def unfinished_run_error(folder: Path, role: str) -> StorageError:
    """S605 for a run that has not chosen its student yet."""
    saved = checkpoints_in(folder)
    newest = f"   or its newest checkpoint: {role}.model={saved[-1] / 'student'}" if saved else ""
    return StorageError(
        "S605",
        f"the run {folder} has not chosen its student yet",
        where=str(folder),
        why="it has not come to its end: result.json names the chosen checkpoint only then",
        fix=f"vistill train RECIPE   to its end{newest}",
    )

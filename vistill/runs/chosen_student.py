"""Resolve a model: a model folder or hub id stays, a run folder gives its chosen student."""

import shlex
from pathlib import Path

from vistill.errors import ModelError, StorageError, quote_setting
from vistill.runs.folder import checkpoints_in
from vistill.runs.model_not_found import ASSETS, similar_names
from vistill.runs.storage import read_json

#: Tiny models that the package includes.
SHIPPED_MODELS = ("teacher", "student", "base")


def resolve_model(source: str, role: str = "student") -> str:
    """Resolve a run folder or a `vistill:` name to a model folder; return anything else unchanged.

    `vistill:teacher`, `vistill:student` and `vistill:base` (reads visual thoughts) are the models
    that the package includes.
    """
    if source.startswith("vistill:"):
        name = source.removeprefix("vistill:")
        if name not in SHIPPED_MODELS:
            raise ModelError(
                "M103",
                f'{role} "{source}" not found: the package includes no such model',
                why=f"included: {', '.join(f'vistill:{name}' for name in SHIPPED_MODELS)}",
                fix=f"{role}.model=vistill:{[*similar_names(name, SHIPPED_MODELS), role][0]}",
            )
        return str(ASSETS / name)
    folder = Path(source)
    result = folder / "result.json"
    is_run = result.is_file() or (folder / "run.lock.json").is_file()
    if (folder / "config.json").exists() or not is_run:
        return source
    chosen = read_json(result).get("checkpoint") if result.is_file() else None
    student = folder / str(chosen) / "student"
    if not chosen or not student.is_dir():
        raise unfinished_run_error(folder, role)
    return str(student)


def unfinished_run_error(folder: Path, role: str) -> StorageError:
    """S605 for a run that has no chosen student yet."""
    saved = checkpoints_in(folder)
    newest = ""
    if saved:
        setting = quote_setting(f"{role}.model", saved[-1] / "student")
        newest = f"   or take its newest checkpoint:   {setting}"
    return StorageError(
        "S605",
        f"the run {folder} has no chosen student yet",
        where=str(folder),
        why="the run is not finished: result.json names the chosen checkpoint at its end",
        fix=f"{finish_fix(folder)}{newest}",
    )


def finish_fix(folder: Path) -> str:
    """The fix that finishes a run: the command, or the call in Python, that started it."""
    lock = folder / "run.lock.json"
    command = str(read_json(lock).get("command", "")) if lock.is_file() else ""
    try:
        words = shlex.split(command)
    except ValueError:  # an earlier version wrote quotes of the user without quoting them
        words = []
    if words[:2] == ["vistill", "train"] and [w for w in words[2:3] if Path(w).is_file()]:
        return f"{command}   to finish it"
    if (folder / "data" / "train.jsonl").is_file():  # prompts that `vistill.distill` was given
        program = f" ({command})" if command else ""
        again = f"the same call as at its start{program} finishes it"
        return f"vistill.distill(..., out={str(folder)!r})   {again}"
    return "vistill train RECIPE   to finish it"

"""A run folder that does not exist, and the run folder next to it that was probably meant."""

from pathlib import Path

from vistill.errors import StorageError, closest, quote_command


def runs_in(folder: Path) -> list[str]:
    """The names of the folders of trained runs in a folder."""
    return sorted(path.parent.name for path in folder.glob("*/metrics.jsonl"))


def near_run(path: Path) -> str:
    """The run folder in the same place with the most similar name; empty if none is similar."""
    near = closest(path.name, runs_in(path.parent))
    return str(path.parent / near[0]) if near else ""


def missing_run_error(path: Path, verb: str) -> StorageError:
    """S605 for a folder that does not exist."""
    known, near = runs_in(path.parent)[:6], near_run(path)
    return StorageError(
        "S605",
        f"the folder {path} does not exist",
        why=f"runs in {path.parent}: {', '.join(known) or 'none'}",
        fix=quote_command("vistill", verb, near or "RUN_FOLDER"),
    )

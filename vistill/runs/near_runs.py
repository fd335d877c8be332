"""A run folder that does not exist, and the run folder next to it that was probably meant."""

import re
from pathlib import Path

from vistill.errors import StorageError, closest


def runs_in(folder: Path) -> list[str]:
    """The names of the folders of trained runs in a folder."""
    names = [path.parent.name for path in folder.glob("*/metrics.jsonl")]
    return sorted(name for name in names if re.fullmatch(r"[\w.-]+", name))


def near_run(path: Path) -> str:
    """The run folder in the same place with the most similar name; empty if none is similar."""
    near = closest(path.name, runs_in(path.parent))
    return str(path.parent / near[0]) if near else ""


def missing_run_error(path: Path, verb: str) -> StorageError:
    """S605 for a folder that does not exist."""
    known = runs_in(path.parent)[:6]
    return StorageError(
        "S605",
        f"the folder {path} does not exist",
        why=f"runs in {path.parent}: {', '.join(known) or 'none'}",
        fix=f"vistill {verb} {near_run(path) or 'RUN_FOLDER'}",
    )

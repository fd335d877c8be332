"""A run folder that does not exist, and the run folder next to it that was probably meant."""

import shlex
from collections.abc import Collection
from pathlib import Path

from vistill.errors import StorageError, closest, in_place_of

#: Most runs that a message names.
MOST_RUNS = 6


def runs_in(folder: Path) -> list[str]:
    """The names of the folders of trained runs in a folder."""
    return sorted(path.parent.name for path in folder.glob("*/metrics.jsonl"))


def near_run(path: Path, but: Collection[Path] = ()) -> str:
    """The run folder in the same place with the most similar name; empty if none is similar.

    `but` are runs that are not meant: the command names them already.
    """
    named = {other.absolute() for other in but}
    names = [n for n in runs_in(path.parent) if (path.parent / n).absolute() not in named]
    near = closest(path.name, names)
    return str(path.parent / near[0]) if near else ""


def missing_run_error(path: Path, but: Collection[Path] = ()) -> StorageError:
    """S605 for a folder that does not exist. `but` are the other runs of the command."""
    known = runs_in(path.parent)[:MOST_RUNS]
    return StorageError(
        "S605",
        f"the folder {path} does not exist",
        why=f"runs in {path.parent}: {', '.join(known) or 'none'}",
        fix=in_place_of(near_run(path, but) or "RUN_FOLDER", str(path)),
    )


def runs_inside(folder: Path) -> str:
    """The fix that names the runs in a folder of runs; empty if it holds none."""
    names = [shlex.quote(str(folder / name)) for name in runs_in(folder)[:MOST_RUNS]]
    return f"{' '.join(names)}   in place of {shlex.quote(str(folder))}" if names else ""

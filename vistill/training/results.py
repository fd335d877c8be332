"""What a run leaves at its end: the chosen checkpoint by name, `student/`, the pictures of its report, its failure."""

import os
import shutil
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from vistill.errors import DataError, Preempted, VistillError
from vistill.evaluation.runner import heatmap_rows
from vistill.runs.folder import CHECKPOINT, RunFolder
from vistill.runs.storage import disk_error, remove_tree, to_json, write_json
from vistill.training.checkpoint import newest, weights_hash
from vistill.training.plan import Plan
from vistill.training.run_state import RunState
from vistill.types import Prompt, View
from vistill.views import ViewContext, apply_view

#: A link to the chosen checkpoint's student: the same path whatever its step.
STUDENT = "student"
#: Says in a copy, where links cannot be made, which checkpoint it is of.
COPIED = ".copy-of-checkpoint"


@contextmanager
def record_failures(folder: RunFolder) -> Iterator[None]:
    """What ends a run stands in its folder: `error.json`, and where in the code it came from in `events.log`.

    A folder that another process owns (S602) is left as it is.
    """
    (folder.path / "error.json").unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        if getattr(error, "code", "") != "S602":
            with suppress(OSError):  # a full disk has its own message
                record_failure(folder, error)
        raise


def record_failure(folder: RunFolder, error: Exception) -> None:
    """Message for machines, bad rows where there are any, traceback for a bug report."""
    if isinstance(error, VistillError):
        write_json(folder.path / "error.json", error.to_dict())
    if isinstance(error, DataError) and error.bad_rows:
        folder.write("quarantine.jsonl", "".join(to_json(row) + "\n" for row in error.bad_rows))
    if not isinstance(error, Preempted):
        folder.event("".join(traceback.format_exception(error)).rstrip())


def write_result(folder: RunFolder, plan: Plan, state: RunState) -> None:
    """Name the chosen checkpoint and how it was chosen in `result.json`; let `student/` lead to its model."""
    last = newest(folder)
    best = folder.checkpoint(int(state.best["step"])) if state.best else None
    chosen = best if best is not None and best.exists() else last
    result: dict[str, Any] = {
        "finished": state.step >= plan.num_steps,
        "step": state.step,
        "best": state.best,
        "checkpoint": chosen.name if chosen else None,
        "chosen": None if chosen is None else how_chosen(plan, state, chosen is best),
        "weights_sha256": weights_hash(plan.models.student),
        "skipped_updates": state.skipped,
    }
    write_json(folder.path / "result.json", result)
    if chosen is not None:
        link_student(folder, chosen)
    store_pictures(folder, pictured_prompts(folder, plan), plan.models.view)


def how_chosen(plan: Plan, state: RunState, is_best: bool) -> dict[str, Any]:
    """Step of the chosen checkpoint, by what it was chosen, and the value."""
    if not is_best or state.best is None:
        return {"step": state.step, "by": "last"}
    rows = (
        f"{int(state.best['rows']):,} fixed rows" if "rows" in state.best else "the evaluation rows"
    )
    by = f"accuracy on {rows} x {plan.evaluation.samples} samples"
    return {"step": int(state.best["step"]), "by": by, "value": state.best["value"]}


def link_student(folder: RunFolder, checkpoint: Path) -> None:
    """`RUN/student` leads to the checkpoint's model, replaced in one step; a copy where links cannot be made."""
    place, target = folder.path / STUDENT, Path(checkpoint.name) / "student"
    fresh = folder.path / f".{STUDENT}-{os.getpid()}"
    if not is_ours(place):
        folder.event(
            f"{place} is no link of this run and stays as it is; the chosen student: {folder.path / target}"
        )
        return
    try:
        remove_link(fresh)
        try:
            fresh.symlink_to(target, target_is_directory=True)
        except OSError:  # a file system without links
            shutil.copytree(folder.path / target, fresh)
            (fresh / COPIED).write_text(checkpoint.name, encoding="utf-8")
            remove_link(place)
        fresh.replace(place)
    except OSError as error:
        raise disk_error(place, error) from error


def is_ours(place: Path) -> bool:
    """Whether `student` may be replaced: it is not there, a link to a checkpoint, or a copy that was made of one."""
    if place.is_symlink():
        return (
            place.readlink().parts[:1] != ()
            and CHECKPOINT.fullmatch(place.readlink().parts[0]) is not None
        )
    return not place.exists() or (place / COPIED).is_file()


def remove_link(place: Path) -> None:
    """Remove the link, or the copy that stands for it."""
    if place.is_dir() and not place.is_symlink():
        remove_tree(place)
    else:
        place.unlink(missing_ok=True)


def forget_result(folder: RunFolder) -> None:
    """A run that goes on is no longer finished: its result and the link to its student would be those of earlier."""
    try:
        (folder.path / "result.json").unlink(missing_ok=True)
        if is_ours(folder.path / STUDENT):
            remove_link(folder.path / STUDENT)
    except OSError as error:
        raise disk_error(folder.path / STUDENT, error) from error


def pictured_prompts(folder: RunFolder, plan: Plan) -> list[Prompt]:
    """The prompts whose heatmaps the report shows: held-out ones, and those of the last logged rollouts."""
    logged = {r["prompt"] for path in folder.rollout_files()[-1:] for r in folder.read(path)}
    at_end = replace(plan.evaluation, limit=plan.evaluation.final_limit)
    return [
        *heatmap_rows(plan.eval_prompts, at_end),
        *(p for p in plan.train_prompts if p.id in logged),
    ]


def store_pictures(folder: RunFolder, prompts: Sequence[Prompt], context: ViewContext) -> None:
    """The pictures behind the heatmaps and their pixelated twins, so that the report needs nothing else."""
    pictures = folder.path / "pictures"
    pictures.mkdir(exist_ok=True)
    index: dict[str, Any] = {}
    for number, prompt in enumerate(p for p in prompts if p.images):
        for view in (View.FULL, View.PIXELATED):
            try:
                image = apply_view(prompt, view, context).images[0].load().convert("RGB")
            except DataError as error:  # it was readable when it was needed; the page goes without
                folder.event(f"no picture in the report: {error.what}")
                break
            image.thumbnail((320, 320))
            image.save(pictures / f"{number:03d}-{view}.png")
        else:
            index[prompt.id] = {
                "file": f"{number:03d}",
                "question": prompt.text,
                "gold": prompt.answer,
            }
    write_json(pictures / "index.json", index)

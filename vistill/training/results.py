"""What a run leaves: `result.json`, the link `student/`, the images of its report, its error.

The chosen checkpoint is the best one by validation, or the last.
"""

import json
import os
import shlex
import shutil
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from vistill.errors import DataError, Preempted, VistillError
from vistill.evaluation.runner import heatmap_rows
from vistill.runs.folder import CHECKPOINT, RunFolder
from vistill.runs.recipe_changes import unused_folder
from vistill.runs.storage import disk_error, remove_tree, to_json, write_json
from vistill.training.checkpoint import newest_checkpoint, weights_hash
from vistill.training.plan import Plan
from vistill.training.run_state import RunState
from vistill.training.settings import SaveSettings
from vistill.types import Prompt, View
from vistill.views import ViewContext, apply_view

#: A link to the student of the chosen checkpoint: the same path for every step.
STUDENT = "student"
#: Where links are not possible, a copy: this file in it names its checkpoint.
COPIED = ".copy-of-checkpoint"


@contextmanager
def record_failures(folder: RunFolder) -> Iterator[None]:
    """Write the error that ends a run to `error.json`, and its traceback to `events.log`.

    A folder that another process uses (S602) stays as it is.
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
    """The error as JSON, bad rows if there are any, the traceback for a bug report."""
    if isinstance(error, VistillError):
        write_json(folder.path / "error.json", error.to_dict())
    if isinstance(error, DataError) and error.bad_rows:
        folder.write("quarantine.jsonl", "".join(to_json(row) + "\n" for row in error.bad_rows))
    if not isinstance(error, Preempted):
        folder.event("".join(traceback.format_exception(error)).rstrip())


def write_result(folder: RunFolder, plan: Plan, state: RunState) -> None:
    """Write `result.json` and link `student/` to the model of the chosen checkpoint."""
    last = newest_checkpoint(folder)
    best = folder.checkpoint(int(state.best["step"])) if state.best else None
    chosen = best if best is not None and best.exists() else last
    result: dict[str, Any] = {
        "finished": state.step >= plan.num_steps,
        "step": state.step,
        "best": state.best,
        "checkpoint": chosen.name if chosen else None,
        "chosen": None if chosen is None else describe_choice(plan, state, chosen is best),
        "weights_sha256": weights_hash(plan.models.student),
        "skipped_updates": state.skipped,
    }
    write_json(folder.path / "result.json", result)
    if chosen is not None:
        link_student(folder, chosen)
    store_pictures(folder, prompts_with_heatmaps(folder, plan), plan.models.view)


def was_finished(folder: RunFolder) -> bool:
    """Whether the result of the run is written. A damaged result is not; it is written anew."""
    try:
        return bool(json.loads((folder.path / "result.json").read_bytes())["finished"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def already_finished(folder: RunFolder, step: int) -> str:
    """What is said of a finished run that is started again, perhaps with other settings."""
    new = shlex.quote(f"run={unused_folder(str(folder.path))}")
    return (
        f"already finished: {step} steps in {folder.path}; nothing is trained or evaluated"
        f"   to train with other settings: {new}"
    )


def choose_best(
    evaluations: Sequence[dict[str, Any]], save: SaveSettings
) -> dict[str, float] | None:
    """Step, value and rows of the best evaluation after step 0; the latest of equal ones.

    Only evaluations like the last one are compared: on the same rows, with the same samples and
    noise. (`eval.` may change between starts, and earlier versions have no fixed rows.)
    """
    if save.keep_best == "none":
        return None
    selections = [
        read_selection(r) for r in evaluations if r["step"] > 0 and r.get("accuracy") is not None
    ]
    if not selections:
        return None

    def protocol(selection: Mapping[str, Any]) -> tuple[Any, ...]:
        return selection["fixed"], selection["rows"], selection["protocol"]

    comparable = [s for s in selections if protocol(s) == protocol(selections[-1])]
    best = max(comparable, key=lambda s: (s["value"], s["step"]))
    return {name: best[name] for name in ("step", "value", "rows")}


def read_selection(record: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an evaluation that the choice of the checkpoint uses."""
    fixed = "selection/accuracy" in record
    return {
        "step": record["step"],
        "value": record["selection/accuracy"] if fixed else record["accuracy"],
        "rows": record["selection/rows"] if fixed else record.get("rows"),
        "fixed": fixed,
        "protocol": record.get("selection/protocol"),
    }


def describe_choice(plan: Plan, state: RunState, is_best: bool) -> dict[str, Any]:
    """Step of the chosen checkpoint, the criterion, and its value."""
    if not is_best or state.best is None:
        return {"step": state.step, "by": "last"}
    rows = (
        f"{int(state.best['rows']):,} fixed rows" if "rows" in state.best else "the evaluation rows"
    )
    by = f"accuracy on {rows} x {plan.evaluation.samples} samples"
    return {"step": int(state.best["step"]), "by": by, "value": state.best["value"]}


def link_student(folder: RunFolder, checkpoint: Path) -> None:
    """Link `RUN/student` to the model of a checkpoint; copy it where links are not possible."""
    link, target = folder.path / STUDENT, Path(checkpoint.name) / "student"
    temporary = folder.path / f".{STUDENT}-{os.getpid()}"
    if not is_own_link(link):
        folder.event(
            f"{link} is no link of this run and stays as it is; "
            f"the chosen student: {folder.path / target}"
        )
        return
    try:
        remove_link(temporary)
        try:
            temporary.symlink_to(target, target_is_directory=True)
        except OSError:  # a file system without links
            shutil.copytree(folder.path / target, temporary)
            (temporary / COPIED).write_text(checkpoint.name, encoding="utf-8")
            remove_link(link)
        temporary.replace(link)
    except OSError as error:
        raise disk_error(link, error) from error


def is_own_link(link: Path) -> bool:
    """Whether `student` may be replaced: absent, a link to a checkpoint, or a copy of one."""
    if link.is_symlink():
        parts = link.readlink().parts
        return bool(parts) and CHECKPOINT.fullmatch(parts[0]) is not None
    return not link.exists() or (link / COPIED).is_file()


def remove_link(link: Path) -> None:
    """Remove the link, or the copy in its place."""
    if link.is_dir() and not link.is_symlink():
        remove_tree(link)
    else:
        link.unlink(missing_ok=True)


def forget_result(folder: RunFolder) -> None:
    """Remove result and student link of a run that continues: they are of an earlier step."""
    try:
        (folder.path / "result.json").unlink(missing_ok=True)
        if is_own_link(folder.path / STUDENT):
            remove_link(folder.path / STUDENT)
    except OSError as error:
        raise disk_error(folder.path / STUDENT, error) from error


def prompts_with_heatmaps(folder: RunFolder, plan: Plan) -> list[Prompt]:
    """The prompts with heatmaps in the report: evaluation rows and the last logged rollouts."""
    logged = {r["prompt"] for path in folder.rollout_files()[-1:] for r in folder.read(path)}
    at_end = replace(plan.evaluation, limit=plan.evaluation.final_limit)
    return [
        *heatmap_rows(plan.eval_prompts, at_end),
        *(p for p in plan.train_prompts if p.id in logged),
    ]


def store_pictures(folder: RunFolder, prompts: Sequence[Prompt], context: ViewContext) -> None:
    """Store the images of the heatmaps, full and pixelated, for the report."""
    pictures = folder.path / "pictures"
    pictures.mkdir(exist_ok=True)
    index: dict[str, Any] = {}
    for number, prompt in enumerate(p for p in prompts if p.images):
        for view in (View.FULL, View.PIXELATED):
            try:
                image = apply_view(prompt, view, context).images[0].load().convert("RGB")
            except DataError as error:  # the run could read it; the report does without
                folder.event(f"no image in the report: {error.what}")
                break
            image.thumbnail((320, 320))
            image.save(pictures / f"{number:03d}-{view}.png")
        else:
            index[prompt.id] = {
                "file": f"{number:03d}",
                "question": prompt.text,
                "gold": prompt.gold_text,
            }
    write_json(pictures / "index.json", index)

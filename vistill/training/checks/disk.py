"""Before step 1: the size of a checkpoint, how many exist at a time, and whether the disk fits."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vistill.data.keys import num_steps
from vistill.runs.folder import RunFolder, checkpoints_in, journal_files
from vistill.runs.storage import free_space
from vistill.training.checks.check import Purpose, StartCheck
from vistill.training.disk_needs import DiskNeeds, disk_too_small_error, size_text
from vistill.types import Reader, Writer

if TYPE_CHECKING:  # `vistill check --fast` uses this module without torch
    from vistill.training.recipe import Recipe
    from vistill.training.setup import RunSetup

PURPOSES: tuple[Purpose, ...] = ("train", "check")


def check_disk(setup: "RunSetup") -> str:
    """C131 if the disk of the run folder is too small for the run."""
    # `vistill check` works in a temporary copy of the folder
    folder = setup.folder if setup.purpose == "train" else RunFolder(Path(setup.recipe.run))
    text = describe_disk(needs_of_run(setup), folder, setup.recipe.run)
    if setup.purpose == "train":
        setup.folder.event(f"disk: {text}")
        setup.progress({"event": f"disk: {text}"})
    return text


def describe_disk(needs: DiskNeeds, folder: RunFolder, run: str) -> str:
    """The needs of a run and the free space, in words.

    Raises:
        StorageError: C131, the disk is too small. What earlier starts wrote counts as free: a
            later checkpoint takes its place.
    """
    free = free_space(folder.path)
    available = free + bytes_in(folder)
    if needs.total > available:
        raise disk_too_small_error(needs, available, run, ["run=OTHER_FOLDER"])
    return f"{needs.describe()}; {size_text(free)} free at {run}"


def bytes_in(folder: RunFolder) -> int:
    """Bytes of the checkpoints and of the journal of a run folder."""
    files = [f for path in checkpoints_in(folder.path) for f in path.rglob("*") if f.is_file()]
    return sum(f.stat().st_size for f in [*files, *journal_files(folder.journal).values()])


def needs_of_run(setup: "RunSetup") -> DiskNeeds:
    """What a run needs, with its models loaded."""
    from vistill.training.checkpoint_content import bytes_to_save

    recipe, objective = setup.recipe, setup.objective
    per_step, rows = recipe.train.prompts_per_step, len(setup.train_prompts)
    steps = recipe.train.steps or num_steps(rows, per_step, recipe.train.epochs)
    has_average = any(p.reader is Reader.EMA for p in objective.passes())
    size = bytes_to_save(
        setup.models.student,
        recipe.train.freeze,
        1 + has_average,
        recipe.train.optimizer,
        recipe.student.precision,
    )
    writer = objective.requirements.writer
    return disk_needs(recipe, size, steps, 1 if writer is Writer.DATA else None)


def disk_needs(
    recipe: "Recipe", checkpoint: float, steps: int | None, siblings: int | None = None
) -> DiskNeeds:
    """What a run needs whose checkpoint has this size.

    Args:
        recipe: of the run.
        checkpoint: bytes.
        steps: of the run, if they are known.
        siblings: responses to a prompt; None takes `rollout.per_prompt`.
    """
    responses = recipe.train.prompts_per_step * (siblings or recipe.rollout.per_prompt)
    return DiskNeeds(
        checkpoint=checkpoint,
        save=recipe.save,
        evaluate_every=recipe.eval.every,
        steps=steps,
        tokens_of_step=responses * recipe.rollout.max_new_tokens,
    )


def reads_average(passes: Sequence[str]) -> bool:
    """Whether one of these passes (`ema.full`) reads the moving average."""
    return any(name.partition(".")[0] == str(Reader.EMA) for name in passes)


DISK_CHECK = StartCheck("disk", "the disk holds the checkpoints of the run", check_disk, PURPOSES)

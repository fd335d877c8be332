"""Rows of `make bench` on saves in the background: how long the loop waits, and with what memory.

The same run twice in one process, with and without `save.background`. Its checkpoint has 114 MB:
small next to real ones, large next to what a save costs in any case.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from vistill.data.diagrams import diagram_prompts
from vistill.evaluation.settings import EvalSettings
from vistill.models.tiny import TinySize, build_tiny
from vistill.objectives import METHODS
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.folder import RunFolder
from vistill.studies.make_tiny_models import tiny_tokenizer
from vistill.training import loop
from vistill.training.build import build, make_setup
from vistill.training.checkpoint_content import bytes_to_save
from vistill.training.checkpoint_writer import CheckpointWriter
from vistill.training.recipe import Recipe, StudentSettings, TeacherSettings
from vistill.training.settings import SaveSettings, TrainSettings
from vistill.training.setup import ProvidedInputs

SIZE = TinySize(384, 6, 6, 1024, 64, 2, 4, 128)
TEACHER = TinySize(32, 2, 2, 48, 32, 2, 4, 32)
EVERY, SAVES = 2, 6


def saving_rows(row, quick):
    """Measure how long the loop waits for a save, in the background over in the foreground."""
    tokenizer = tiny_tokenizer()
    saves = 4 if quick else SAVES
    background, size = run_once(tokenizer, True, saves)
    foreground, _ = run_once(tokenizer, False, saves)
    middle = slice(1, saves - 1)  # the first allocates the buffers; a run waits for the last
    mb = f"a checkpoint of {size / 1e6:,.0f} MB"
    return [
        row(
            "background_stall",
            median(background[middle]) / median(foreground[middle]),
            "ratio",
            f"what the loop waits for a save in the foreground, {mb}",
        ),
        row(
            "background_stall_first",
            background[0] / median(foreground[middle]),
            "ratio",
            "the same for the first save, which allocates the buffers",
        ),
        row("foreground_save_seconds", median(foreground[middle]), "s", f"{mb}, fsync and hashes"),
    ]


def run_once(tokenizer, in_background, saves):
    """Train a few steps; return the seconds that the loop waits for each save, and its bytes."""
    seconds = {"save": [], "copy": []}
    originals = CheckpointWriter.save, CheckpointWriter.wait_for_copy
    CheckpointWriter.save = timed(seconds["save"], originals[0])
    CheckpointWriter.wait_for_copy = timed(seconds["copy"], originals[1])
    try:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
            folder = RunFolder(Path(name))
            plan = build(make_run(tokenizer, folder, in_background, saves))
            loop.run(plan, folder)
            size = bytes_to_save(plan.models.student, (), 1)
    finally:
        CheckpointWriter.save, CheckpointWriter.wait_for_copy = originals
    # the update after a save waits for its copy
    waits = [*seconds["copy"][EVERY::EVERY], 0.0]
    return [save + wait for save, wait in zip(seconds["save"], waits, strict=True)], size


def timed(seconds, function):
    """Wrap a method so that each call's seconds are recorded."""

    def call(*args):
        start = time.perf_counter()
        function(*args)
        seconds.append(time.perf_counter() - start)

    return call


def make_run(tokenizer, folder, in_background, saves):
    """A run of OPD that saves every second step."""
    recipe = Recipe(
        run=str(folder.path),
        student=StudentSettings("built here"),
        teacher=TeacherSettings("built here"),
        method="opd",
        train=TrainSettings(prompts_per_step=4, steps=EVERY * saves, lr=1e-4),
        rollout=RolloutSettings(
            per_prompt=4, temperature=1.0, max_new_tokens=32, all_truncated="go_on"
        ),
        save=SaveSettings(every=EVERY, keep=1, keep_best="none", background=in_background),
        eval=replace(EvalSettings(), every=0),
    )
    student, teacher = build_tiny(SIZE, tokenizer, 0), build_tiny(TEACHER, tokenizer, 1).freeze()
    inputs = ProvidedInputs(student, teacher, diagram_prompts("train", 12, 0))
    return make_setup(recipe, folder, given=inputs, objective=METHODS["opd"]())


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in saving_rows(lambda *cells: cells, quick=False):
        print(*line)

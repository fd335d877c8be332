"""Rows of `make bench` on the cost of safety: canary, checkpoints, journal, a late start.

One thread, wall time.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean

from vistill.config import load_stages
from vistill.data.keys import rows_of_step
from vistill.runs.folder import RunFolder
from vistill.training import loop
from vistill.training.build import build, make_setup
from vistill.training.checkpoint_writer import CheckpointWriter
from vistill.training.journal import Journal
from vistill.training.settings import SaveSettings

LATE, ROWS, PER_STEP = 1_000_000, 1_000_000, 16


def safety_rows(row, quick):
    """Measure canary, checkpoint, journal and late start."""
    seconds, steps = demo_run(4 if quick else 24)
    every = SaveSettings().every
    step = steps / len(seconds["journal"])
    save, journal, canary = (mean(seconds[name]) for name in ("save", "journal", "canary"))
    return [
        row(
            "canary_seconds",
            canary,
            "s",
            "before the first step and at every evaluation, shipped tiny models",
        ),
        row(
            "checkpoint_share",
            save / (every * step),
            "share",
            f"of wall time in the foreground, save.every={every}, fsync and hashes",
        ),
        row(
            "journal_share",
            journal / step,
            "share",
            "of wall time: every step's responses synced before the update",
        ),
        row(
            "late_start_ms",
            1000 * (seconds_to_rows(LATE) - seconds_to_rows(0)),
            "ms",
            f"start of step {LATE:,} minus step 1, {ROWS:,} rows",
        ),
    ]


def seconds_to_rows(step, repeats=3):
    """Return the best seconds to find the rows of a step."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        rows_of_step(step, PER_STEP, ROWS, 0)
        times.append(time.perf_counter() - start)
    return min(times)


def timed(seconds, name, function):
    """Wrap a function so that each call's seconds are recorded."""

    def call(*args, **more):
        start = time.perf_counter()
        result = function(*args, **more)
        seconds[name].append(time.perf_counter() - start)
        return result

    return call


def demo_run(steps):
    """Run the demo's first steps.

    Return the seconds of each save, journal entry and canary, and those of all steps together.
    """
    seconds = {"save": [], "journal": [], "canary": []}
    recipe = load_stages("demo.yaml")["va_opd"]
    recipe = replace(
        recipe, train=replace(recipe.train, steps=steps), eval=replace(recipe.eval, every=0)
    )
    save = replace(recipe.save, every=max(1, steps // 4), background=False)
    recipe = replace(recipe, save=save)
    originals = CheckpointWriter.save, loop.run_canary, Journal.write
    CheckpointWriter.save = timed(seconds, "save", CheckpointWriter.save)
    loop.run_canary = timed(seconds, "canary", loop.run_canary)
    Journal.write = timed(seconds, "journal", Journal.write)
    try:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
            folder = RunFolder(Path(name))
            loop.run(build(make_setup(recipe, folder)), folder)
            timing = folder.read(folder.timing)
    finally:
        CheckpointWriter.save, loop.run_canary, Journal.write = originals
    return seconds, sum(sum(record["seconds"].values()) for record in timing)

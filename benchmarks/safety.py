"""Rows of `make bench` on what safety costs: the canary, checkpoints and journal, a late start. One thread, wall time."""

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
from vistill.training.journal import Journal
from vistill.training.settings import SaveSettings

LATE, ROWS, PER_STEP = 1_000_000, 1_000_000, 16


def safety_rows(row, quick):
    """Canary, checkpoint, journal, late start."""
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
            f"of wall time, save.every={every}, fsync and hashes",
        ),
        row(
            "journal_share",
            journal / step,
            "share",
            "of wall time: every step's responses synced before they are learnt",
        ),
        row(
            "late_start_ms",
            1000 * (seek(LATE) - seek(0)),
            "ms",
            f"start of step {LATE:,} minus step 1, {ROWS:,} rows",
        ),
    ]


def seek(step, repeats=3):
    """Best seconds to the rows of a step."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        rows_of_step(step, PER_STEP, ROWS, 0)
        times.append(time.perf_counter() - start)
    return min(times)


def timed(seconds, name, function):
    """The function, each call's seconds noted."""

    def call(*args, **more):
        start = time.perf_counter()
        made = function(*args, **more)
        seconds[name].append(time.perf_counter() - start)
        return made

    return call


def demo_run(steps):
    """Seconds of each save, journal entry and canary of the demo's first steps, and of the steps themselves."""
    seconds = {"save": [], "journal": [], "canary": []}
    recipe = load_stages("demo.yaml")["va_opd"]
    recipe = replace(
        recipe, train=replace(recipe.train, steps=steps), eval=replace(recipe.eval, every=0)
    )
    recipe = replace(recipe, save=replace(recipe.save, every=max(1, steps // 4)))
    plain = loop.publish_checkpoint, loop.run_canary, Journal.write
    loop.publish_checkpoint, loop.run_canary = (
        timed(seconds, "save", loop.publish_checkpoint),
        timed(seconds, "canary", loop.run_canary),
    )
    Journal.write = timed(seconds, "journal", Journal.write)
    try:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
            folder = RunFolder(Path(name))
            loop.run(build(make_setup(recipe, folder)), folder)
            timing = folder.read(folder.timing)
    finally:
        loop.publish_checkpoint, loop.run_canary, Journal.write = plain
    return seconds, sum(sum(record["seconds"].values()) for record in timing)

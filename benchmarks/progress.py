"""Row of `make bench`: what showing a run costs, as a share of its steps.

A run of the demo's sizes records what its progress callback receives, and when. The same records
are then shown on a fake terminal, at the same times, by the display that `vistill train` uses,
through the stream that escapes output. Processor seconds of one thread, everything in one process.
"""

import io
import tempfile
import time
from pathlib import Path

from vistill.api import distill
from vistill.cli.terminal import EscapingStream
from vistill.data.diagrams import diagram_prompts
from vistill.display.run_display import TICK_SECONDS, RunDisplay
from vistill.evaluation.settings import EvalSettings
from vistill.objectives import VAOPD
from vistill.phases import WRITING
from vistill.rollouts.settings import RolloutSettings
from vistill.training.load_model import load
from vistill.training.settings import TrainSettings

STEPS = 8
REPLAYS = 20


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def recorded_run():
    """The records of a run with their wall-clock times, and its processor seconds per step."""
    records, began, steps = [], [0.0], []

    def progress(record):
        records.append((time.monotonic(), record))
        if record.get("phase") == WRITING and record["done"] == 0:
            began[0] = time.process_time()
        elif "loss" in record:
            steps.append(time.process_time() - began[0])

    with tempfile.TemporaryDirectory() as folder:
        distill(
            load("vistill:student"),
            load("vistill:teacher", frozen=True),
            diagram_prompts("train", 64, 0),
            VAOPD(),
            out=Path(folder) / "run",
            train=TrainSettings(prompts_per_step=16, steps=STEPS, lr=3e-4),
            rollout=RolloutSettings(per_prompt=4, max_new_tokens=96),
            evaluation=EvalSettings(every=0),
            progress=progress,
        )
    first = next(i for i, (_, r) in enumerate(records) if r.get("step") == 1 and "loss" in r)
    last = next(i for i, (_, r) in enumerate(records) if r.get("step") == STEPS and "loss" in r)
    return records[first : last + 1], sum(steps[1:]) / (STEPS - 1)


def show_seconds(records):
    """Processor seconds of showing records at their times, on a fake terminal."""
    now = [records[0][0]]
    stream = EscapingStream(Terminal(), progress=True)
    display = RunDisplay(stream, lambda: now[0], ticks=False)
    start = time.process_time()
    for at, record in records:
        while now[0] + TICK_SECONDS < at:
            now[0] += TICK_SECONDS
            display.tick()
        now[0] = at
        display.show(record)
    return time.process_time() - start


def progress_rows(row):
    """The cost of showing a step over the cost of the step."""
    records, step = recorded_run()
    shown = min(show_seconds(records) for _ in range(REPLAYS)) / (STEPS - 1)
    count = len(records) / (STEPS - 1)
    reference = f"showing {1e6 * shown:.0f} us, {count:.1f} records; a step takes {step:.2f} s"
    return [row("progress_over_step", shown / step, "ratio", reference)]


if __name__ == "__main__":
    from vistill.runtime import prepare_process

    prepare_process()
    print(progress_rows(lambda *values: values))

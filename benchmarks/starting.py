"""Rows of `make bench`: starts at many rows, against the version without a start cache.

    python benchmarks/starting.py --rows 10000

A script makes JPEG files of 1024 x 768 pixels. There are 300 pictures; each file also holds its
row's number, so all files differ and none is decoded for another. In turn, fresh processes make the
start checks of `vistill train` in a run folder: the old package (twice: its first and its second
start do the same), and ours without and with the entries of the first start. Processor seconds of
one thread; imports of Python modules are not counted, on either side.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import demo_before

REPO = Path(__file__).parent.parent
#: The last commit in which every start decodes every picture twice.
BEFORE = "078dffb"
PICTURES = 300
SIZE = (1024, 768)

START = """
import sys, time
from pathlib import Path
from vistill.data.settings import DataSettings
from vistill.runs.folder import RunFolder
from vistill.runtime import prepare_process
from vistill.training.build import START_CHECKS, build, make_setup
from vistill.training.recipe import Recipe, StudentSettings, TeacherSettings
from vistill.training.settings import TrainSettings
prepare_process()
folder = Path(sys.argv[2])
recipe = Recipe(
    run=str(folder), method="va_opd", data=DataSettings(train=sys.argv[1], holdout=64),
    student=StudentSettings(model="vistill:student", device="cpu"),
    teacher=TeacherSettings(model="vistill:teacher", device="cpu"), train=TrainSettings(steps=1),
)
setup = make_setup(recipe, RunFolder(folder))
start = time.process_time()
plan = build(setup)
seconds = time.process_time() - start
print(seconds, len(plan.train_prompts), plan.train_prompts[0].id)
"""


def make_rows(folder, rows):
    """Write a data file and its pictures; return the file."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    pictures = []
    for _ in range(min(rows, PICTURES)):
        coarse = Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC)).astype(int)
        noise = random.integers(-8, 9, smooth.shape)
        buffer = io.BytesIO()
        Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8)).save(
            buffer, "JPEG", quality=85
        )
        pictures.append(buffer.getvalue())
    folder.mkdir(parents=True)
    lines = []
    for row in range(rows):
        data, comment = pictures[row % len(pictures)], b"%d" % row
        marker = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        (folder / f"{row}.jpg").write_bytes(data[:2] + marker + data[2:])
        question = f"Question {row}: which coloured region is larger, and by how many units?"
        lines.append({"question": question, "images": f"{row}.jpg", "answer": str(row % 97)})
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def start_seconds(package, data, run, cache):
    """Processor seconds of the start checks in a fresh process, and what the start saw."""
    environment = os.environ | {
        "PYTHONPATH": str(package),
        "OMP_NUM_THREADS": "1",
        "VISTILL_CACHE": str(cache),
    }
    done = subprocess.run(
        [sys.executable, "-c", START, str(data), str(run)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=run.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seconds, *seen = done.stdout.split()
    return float(seconds), seen


def starting_rows(row, rows=10_000):
    """Measure first and second starts of both versions over the same rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = demo_before.checkout(folder / "before", BEFORE)
        if before is None:
            print(f"second_start_over_first_before left out: this clone has no commit {BEFORE}")
            return []
        data, cache = make_rows(folder / "data", rows), folder / "cache"
        runs = folder / "runs"
        runs.mkdir()
        old, seen = start_seconds(before, data, runs / "before", cache)
        old_again, _ = start_seconds(before, data, runs / "before", cache)
        first, seen_first = start_seconds(REPO, data, runs / "now", cache)
        second, seen_second = start_seconds(REPO, data, runs / "now", cache)
    assert seen == seen_first == seen_second, (seen, seen_first, seen_second)
    text = f"{rows:,} rows, JPEG of {SIZE[0]} x {SIZE[1]}; {BEFORE}: {old:.1f} s, again"
    text += f" {old_again:.1f} s; ours {first:.1f} s, again {second:.2f} s"
    return [
        row("second_start_over_first_before", second / old, "ratio", text),
        row("first_start_over_first_before", first / old, "ratio", "the same run"),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000)
    for line in starting_rows(lambda *values: values, parser.parse_args().rows):
        print(*line)

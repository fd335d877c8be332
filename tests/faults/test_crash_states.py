"""After any power cut, the newest complete checkpoint loads and no logged step of it is lost."""

import json
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from crash_states import Disk, Operation, Recorder, build_folder, losses

from vistill.errors import VistillError
from vistill.runs.folder import RunFolder
from vistill.studies.chaos import ChaosTest
from vistill.training.checkpoint import MANIFEST, newest_checkpoint, remove_leftovers


@pytest.fixture
def memory_folder(tmp_path):
    """A folder in memory if possible: the test writes and removes thousands of states."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    shutil.rmtree(folder)


def record_run(root):
    """Record a run of a few steps, operation by operation."""
    chaos = ChaosTest(root / "chaos")
    folder = RunFolder(root / "run")
    folder.path.mkdir()
    recorder = Recorder(folder.path)
    with recorder.watching():
        chaos.go(folder, stop_after=6)
    return recorder.operations


def safe_checkpoints(ops):
    """For each prefix, the step of the newest checkpoint whose rename is durable."""
    renamed, safe, steps = None, None, []
    for op in ops:
        if op.kind == "rename" and op.other.startswith("checkpoint-"):
            renamed = int(op.other.split("-")[1])
        if op.kind == "syncdir" and op.path == "." and renamed is not None:
            safe = renamed
        steps.append(safe)
    return steps


def check_states(ops, folder, limit, seed=0):
    """Check the state after each loss; return their number and the problems."""
    disk, rng, problems, tried = Disk(), random.Random(seed), [], 0
    store, state = folder / "store", folder / "state"
    store.mkdir()
    for number, (op, safe) in enumerate(zip(ops, safe_checkpoints(ops), strict=True)):
        disk.apply(op)
        for loss in losses(disk, rng, limit):
            build_folder(disk.root, loss, state, store)
            tried += 1
            problem = find_problem(RunFolder(state), safe)
            if problem:
                problems.append(f"after operation {number} ({op.kind} {op.path}): {problem}")
            shutil.rmtree(state)
    return tried, problems


def find_problem(folder, safe):
    """The problem of a folder that a power cut left, or None."""
    try:
        remove_leftovers(folder)
        checkpoint = newest_checkpoint(folder)
    except (VistillError, OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    step = -1 if checkpoint is None else json.loads((checkpoint / MANIFEST).read_text())["step"]
    if safe is not None and step < safe:
        return f"checkpoint {safe} was published, {step} loads"
    logged = (
        [record["step"] for record in folder.read(folder.metrics)]
        if folder.metrics.exists()
        else []
    )
    missing = set(range(1, step + 1)) - set(logged)
    return (
        f"checkpoint {step} loads, but steps {sorted(missing)} are missing in metrics.jsonl"
        if missing
        else None
    )


def test_the_disk_model_loses_what_was_not_synced(tmp_path):
    disk = Disk()
    for op in (
        Operation("mkdir", "a"),
        Operation("write", "a/x", content=b"new"),
        Operation("sync", "a/x"),
    ):
        disk.apply(op)
    shapes = set()
    for number, loss in enumerate(losses(disk, random.Random(0), 100)):
        (tmp_path / "s").mkdir(exist_ok=True)
        build_folder(disk.root, loss, tmp_path / str(number), tmp_path / "s")
        shapes.add(
            tuple(
                sorted(
                    str(p.relative_to(tmp_path / str(number)))
                    for p in (tmp_path / str(number)).rglob("*")
                )
            )
        )
    assert shapes == {(), ("a",), ("a", "a/x")}
    for op in (
        Operation("syncdir", "a"),
        Operation("syncdir", "."),
        Operation("rename", "a", "b"),
        Operation("syncdir", "."),
    ):
        disk.apply(op)
    (last,) = losses(disk, random.Random(0), 100)
    build_folder(disk.root, last, tmp_path / "end", tmp_path / "s")
    assert (tmp_path / "end" / "b" / "x").read_bytes() == b"new"


@pytest.mark.slow
def test_every_power_cut_leaves_the_newest_complete_checkpoint(memory_folder):
    ops = record_run(memory_folder)
    assert {"mkdir", "write", "sync", "syncdir", "rename", "remove"} == {op.kind for op in ops}
    tried, problems = check_states(ops, memory_folder, limit=24)
    assert not problems, f"{len(problems)} of {tried} states, first: {problems[:3]}"
    assert tried > 2000


@pytest.mark.slow
@pytest.mark.parametrize("skipped", ["syncdir", "sync"])
def test_the_enumeration_detects_a_save_that_does_not_sync(memory_folder, skipped):
    ops = [
        op
        for op in record_run(memory_folder)
        if op.kind != skipped or (op.path == "." and op.kind == "syncdir")
    ]
    tried, problems = check_states(ops, memory_folder, limit=6)
    assert problems, f"{tried} states without a problem"

"""Power cuts: in every folder one can leave, the newest complete checkpoint loads and no logged step of it is lost."""

import json
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from crash_states import Disk, Op, Recorder, build, losses

from vistill.errors import VistillError
from vistill.runs.folder import RunFolder
from vistill.studies.chaos import Chaos
from vistill.training.checkpoint import MANIFEST, newest, remove_leftovers


@pytest.fixture
def fast(tmp_path):
    """A folder in memory, where there is one: thousands of states are laid out and removed."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    shutil.rmtree(folder)


def recorded(folder):
    """A run of a few steps, operation by operation."""
    chaos = Chaos(folder / "chaos")
    place = RunFolder(folder / "run")
    place.path.mkdir()
    recorder = Recorder(place.path)
    with recorder.watching():
        chaos.go(place, stop_after=6)
    return recorder.ops


def published(ops):
    """For each prefix the newest checkpoint whose rename is durable: what must load from then on."""
    waiting, safe, found = None, None, []
    for op in ops:
        if op.kind == "rename" and op.other.startswith("checkpoint-"):
            waiting = int(op.other.split("-")[1])
        if op.kind == "syncdir" and op.path == "." and waiting is not None:
            safe = waiting
        found.append(safe)
    return found


def examine(ops, folder, most, seed=0):
    """States tried, and what went wrong in those where something did."""
    disk, rng, wrong, tried = Disk(), random.Random(seed), [], 0
    store, state = folder / "store", folder / "state"
    store.mkdir()
    for number, (op, safe) in enumerate(zip(ops, published(ops), strict=True)):
        disk.do(op)
        for loss in losses(disk, rng, most):
            build(disk.root, loss, state, store)
            tried += 1
            problem = judge(RunFolder(state), safe)
            if problem:
                wrong.append(f"after operation {number} ({op.kind} {op.path}): {problem}")
            shutil.rmtree(state)
    return tried, wrong


def judge(place, safe):
    """What is wrong with a folder that a power cut left, or None."""
    try:
        remove_leftovers(place)
        found = newest(place)
    except (VistillError, OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    step = -1 if found is None else json.loads((found / MANIFEST).read_text())["step"]
    if safe is not None and step < safe:
        return f"checkpoint {safe} was published, {step} loads"
    logged = (
        [record["step"] for record in place.read(place.metrics)] if place.metrics.exists() else []
    )
    missing = set(range(1, step + 1)) - set(logged)
    return (
        f"checkpoint {step} loads, but steps {sorted(missing)} are gone from metrics.jsonl"
        if missing
        else None
    )


def test_the_model_of_a_disk_loses_what_was_not_synced(tmp_path):
    disk = Disk()
    for op in (Op("mkdir", "a"), Op("write", "a/x", content=b"new"), Op("sync", "a/x")):
        disk.do(op)
    shapes = set()
    for number, loss in enumerate(losses(disk, random.Random(0), 100)):
        (tmp_path / "s").mkdir(exist_ok=True)
        build(disk.root, loss, tmp_path / str(number), tmp_path / "s")
        shapes.add(
            tuple(
                sorted(
                    str(p.relative_to(tmp_path / str(number)))
                    for p in (tmp_path / str(number)).rglob("*")
                )
            )
        )
    assert shapes == {(), ("a",), ("a", "a/x")}
    for op in (Op("syncdir", "a"), Op("syncdir", "."), Op("rename", "a", "b"), Op("syncdir", ".")):
        disk.do(op)
    (last,) = losses(disk, random.Random(0), 100)
    build(disk.root, last, tmp_path / "end", tmp_path / "s")
    assert (tmp_path / "end" / "b" / "x").read_bytes() == b"new"


@pytest.mark.slow
def test_every_power_cut_leaves_the_newest_complete_checkpoint(fast):
    ops = recorded(fast)
    assert {"mkdir", "write", "sync", "syncdir", "rename", "remove"} == {op.kind for op in ops}
    tried, wrong = examine(ops, fast, most=24)
    assert not wrong, f"{len(wrong)} of {tried} states, first: {wrong[:3]}"
    assert tried > 2000


@pytest.mark.slow
@pytest.mark.parametrize("forgotten", ["syncdir", "sync"])
def test_the_enumeration_finds_a_save_that_forgets_to_sync(fast, forgotten):
    ops = [
        op
        for op in recorded(fast)
        if op.kind != forgotten or (op.path == "." and op.kind == "syncdir")
    ]
    tried, wrong = examine(ops, fast, most=6)
    assert wrong, f"{tried} states and nothing found"

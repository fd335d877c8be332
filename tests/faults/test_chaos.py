"""Runs that are killed, stopped or out of disk space: the same command ends with the same bits."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vistill.errors import StorageError
from vistill.faults import POINTS, VARIABLE, fault, reset_visits
from vistill.runs.folder import RunFolder, checkpoint_step, checkpoints_in
from vistill.studies.chaos import SAVE_POINTS, ChaosTest, TrialCounts, format_report
from vistill.training import checkpoint
from vistill.training.checkpoint import newest_checkpoint
from vistill.training.journal import Journal

#: Points inside a run. The report comes after it, and `opd` probes no gradient.
NOT_IN_A_RUN = ("learn.probe", "report.begin", "benchmark.after_call")
IN_A_RUN = [point for point in POINTS if point not in NOT_IN_A_RUN]


@pytest.fixture(scope="module")
def chaos(tmp_path_factory):
    return ChaosTest(tmp_path_factory.mktemp("chaos"))


def test_without_the_variable_a_fault_point_does_nothing(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not any(fault(point) for point in POINTS)


def test_a_fault_acts_at_its_visit_and_an_unknown_point_is_refused(monkeypatch):
    reset_visits()
    monkeypatch.setenv(VARIABLE, "learn.loss:nan@2")
    assert [fault("learn.loss"), fault("learn.loss"), fault("learn.loss")] == [False, True, False]
    with pytest.raises(AssertionError, match="no fault point"):
        fault("nowhere")
    reset_visits()


def test_every_fault_point_occurs_in_the_code():
    root = Path(checkpoint.__file__).parent.parent
    text = "".join(f.read_text() for f in root.rglob("*.py") if f.name != "faults.py")
    assert {point for point in POINTS if f'fault("{point}")' not in text} == set()


@pytest.mark.slow
@pytest.mark.parametrize("point", IN_A_RUN)
def test_killed_at_a_named_point_the_same_command_ends_with_the_same_bits(chaos, point):
    folder = chaos.folder / f"at-{point}"
    assert chaos.child(folder, f"{point}:kill@2")() == -9
    assert chaos.outcome(folder, point) is None


@pytest.mark.slow
@pytest.mark.parametrize("number", range(8))
def test_killed_at_a_random_instant_the_same_command_ends_with_the_same_bits(chaos, number):
    assert chaos.kill(number) is None


@pytest.mark.slow
@pytest.mark.parametrize("number", range(6))
def test_a_signal_in_any_phase_saves_exits_with_75_and_the_run_resumes_to_the_same_bits(
    chaos, number
):
    assert chaos.terminate(number) is None


@pytest.mark.slow
@pytest.mark.parametrize("point", SAVE_POINTS)
def test_a_full_disk_during_a_save_leaves_the_previous_checkpoint(chaos, point):
    folder = chaos.folder / f"full-{point}"
    second_save = 3 if point == "save.shard" else 2  # a save has two shards
    assert chaos.child(folder, f"{point}:enospc@{second_save}")() == 1
    assert newest_checkpoint(RunFolder(folder)) is not None
    assert "S601" in (chaos.folder / "console.log").read_text()
    assert chaos.outcome(folder, point) is None


@pytest.mark.slow
@pytest.mark.parametrize("point", SAVE_POINTS)
def test_killed_while_a_thread_is_at_a_point_of_a_save_the_run_ends_with_the_same_bits(
    chaos, point
):
    """The second save is held at the point while the loop takes another step and is killed."""
    folder = RunFolder(chaos.folder / f"held-at-{point}")
    second_save = 3 if point == "save.shard" else 2  # a save has two shards
    # the update waits for the snapshot
    in_step_5 = "learn.loss" if point == "save.snapshot" else "learn.after_update"
    assert chaos.child(folder.path, f"{point}:hang@{second_save};{in_step_5}:kill@5")() == -9
    saved = [checkpoint_step(path) for path in checkpoints_in(folder.path)]
    published = point == "save.after_rename"
    assert saved == ([2, 4] if published else [2])
    assert Journal(folder.journal, "").steps() == [3, 4, 5]
    assert chaos.outcome(folder.path, point) is None


@pytest.mark.slow
@pytest.mark.parametrize("point", SAVE_POINTS)
def test_a_signal_while_a_thread_saves_waits_for_it_and_saves_the_last_step(chaos, point):
    folder = RunFolder(chaos.folder / f"signal-at-{point}")
    assert chaos.child(folder.path, f"{point}:slow@2;learn.before_update:term@5")() == 75
    newest = newest_checkpoint(folder)
    assert newest is not None
    assert checkpoint_step(newest) in (4, 5)
    assert chaos.outcome(folder.path, point) is None


@pytest.mark.slow
def test_too_little_space_is_reported_before_anything_is_written(chaos):
    folder = chaos.folder / "little"

    def limit_free_space():
        checkpoint.free_space = lambda path: 1000

    assert chaos.child(folder, before=limit_free_space)() == 1
    assert newest_checkpoint(RunFolder(folder)) is None
    assert not list(folder.glob(".inprogress-*"))
    assert "a checkpoint needs" in (chaos.folder / "console.log").read_text()
    assert chaos.outcome(folder, "little space") is None


def set_free_space(monkeypatch, free):
    """Make the operating system report that `free()` bytes of the disk are free."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free()))


def test_little_space_drops_older_checkpoints_and_then_refuses(tmp_path, monkeypatch, student):
    from published import publish_checkpoint

    from vistill.training.checkpoint import check_space, list_checkpoints
    from vistill.training.checkpoint_content import TrainedObjects, content_to_save
    from vistill.training.optim import make_optimizer
    from vistill.training.run_state import RunState
    from vistill.training.settings import TrainSettings

    folder, optimizer = RunFolder(tmp_path), make_optimizer(student.model, TrainSettings())

    def objects_at(step):
        return TrainedObjects(student, optimizer, RunState(step=step))

    for step in (1, 2, 3):
        publish_checkpoint(folder, objects_at(step), "x", keep=3)
    set_free_space(monkeypatch, lambda: 10 if len(list_checkpoints(folder)) > 1 else 10**12)
    check_space(folder, content_to_save(objects_at(4)), keep=1)
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-000003"]
    set_free_space(monkeypatch, lambda: 10)
    with pytest.raises(StorageError) as caught:
        check_space(folder, content_to_save(objects_at(4)), keep=1)
    assert caught.value.code == "S601"
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-000003"]


@pytest.mark.slow
def test_the_selftest_command_prints_its_result(tmp_path):
    command = [
        sys.executable,
        "-m",
        "vistill",
        "selftest",
        "--chaos",
        "1",
        "--folder",
        str(tmp_path / "runs"),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sigkill    1 of 1 ended with the same bits" in done.stdout
    assert not list((tmp_path / "runs").iterdir())


def test_the_report_names_failed_trials():
    row = TrialCounts("sigkill", 2, 1, 3.0, ["trial 1, killed after 0.5 s: other weights"])
    assert (
        format_report([row]).splitlines()[1] == "failed: trial 1, killed after 0.5 s: other weights"
    )

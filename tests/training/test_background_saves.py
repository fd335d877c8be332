"""Checkpoints written in a thread: what they hold, when the loop waits, errors of the thread."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import build_model, build_untied
from published import publish_checkpoint
from safetensors.torch import load_file, save_file
from tiers import few
from tiny_families import BUILDERS, build_family
from training.test_loop import make_plan, run_plan
from transformers import Qwen3VLForConditionalGeneration

from vistill.errors import StorageError
from vistill.faults import VARIABLE, reset_visits
from vistill.models.save import model_folder, save_vlm
from vistill.models.tensor_files import write_tensors
from vistill.objectives import METHODS
from vistill.runs.folder import RunFolder, checkpoint_step, checkpoints_in, leftovers_in
from vistill.runs.storage import file_hash
from vistill.training.checkpoint import (
    CheckpointTarget,
    newest_checkpoint,
    reason_to_reject,
    restore_checkpoint,
)
from vistill.training.checkpoint_content import (
    TrainedObjects,
    bytes_to_save,
    content_to_save,
    small_files,
)
from vistill.training.checkpoint_writer import CheckpointWriter, SnapshotBuffers
from vistill.training.host_memory import free_host_bytes
from vistill.training.journal import Journal
from vistill.training.optim import freeze_parts, make_optimizer
from vistill.training.run_state import RunState
from vistill.training.settings import SaveSettings, TrainSettings
from vistill.training.shards import save_indexed_shards


def make_objects(tokenizer, step=2):
    """A student with moments, as after some steps."""
    student = build_model(tokenizer, 0)
    optimizer = make_optimizer(student.model, TrainSettings())
    update(student, optimizer)
    return TrainedObjects(student, optimizer, RunState(step=step))


def update(student, optimizer):
    """Change every weight and every moment."""
    for number, parameter in enumerate(student.model.parameters()):
        parameter.grad = torch.full_like(parameter, 1e-3 * (number + 1))
    optimizer.step()


def make_writer(folder, saved, **more):
    """A writer that keeps one checkpoint."""
    writer = CheckpointWriter(CheckpointTarget(folder, "x", 1), saved, **more)
    writer.files = small_files(saved)
    return writer


@pytest.fixture
def fault_at(monkeypatch):
    """Set a fault for the rest of the test."""

    def set_fault(text):
        reset_visits()
        monkeypatch.setenv(VARIABLE, text)

    yield set_fault
    reset_visits()


def values_of(path):
    """Every tensor of a checkpoint, by file."""
    return {str(f.relative_to(path)): load_file(f) for f in sorted(path.rglob("*.safetensors"))}


def same_values(one, other):
    return one.keys() == other.keys() and all(
        one[file].keys() == other[file].keys()
        and all(torch.equal(one[file][name], other[file][name]) for name in one[file])
        for file in one
    )


def test_files_are_those_that_safetensors_writes(tmp_path):
    tensors = {
        "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "a": torch.arange(5, dtype=torch.bfloat16),
        "é": torch.tensor(7, dtype=torch.int64),
        "none": torch.empty(0, 4),
        "view": torch.arange(12, dtype=torch.float32).reshape(3, 4).T,
        "flags": torch.tensor([True, False]),
        "codes": torch.arange(256, dtype=torch.uint8),
    }
    written = write_tensors(tmp_path / "ours", tensors, {"format": "pt"})
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "x", {"format": "pt"})
    back, theirs = load_file(tmp_path / "ours"), load_file(tmp_path / "x")
    assert same_values({"": back}, {"": theirs})
    assert written.size == (tmp_path / "ours").stat().st_size
    assert written.digest == file_hash(tmp_path / "ours")


@pytest.mark.parametrize(
    "kind", ["tied", "untied", "llava", *few(sorted(BUILDERS.keys() - {"llava"}))]
)
def test_a_model_folder_of_a_checkpoint_is_the_one_that_transformers_writes(
    kind, tokenizer, tmp_path
):
    builders = {"tied": build_model, "untied": build_untied}
    vlm = builders[kind](tokenizer, 0) if kind in builders else build_family(kind)
    save_vlm(vlm, tmp_path / "theirs")
    folder, ours = model_folder(vlm), tmp_path / "ours"
    ours.mkdir()
    for name, data in folder.files.items():
        (ours / name).write_bytes(data)
    save_indexed_shards(folder.weights, ours, folder.stem, 10**9)
    assert sorted(p.name for p in ours.iterdir()) == sorted(
        p.name for p in (tmp_path / "theirs").iterdir()
    )
    for path in (tmp_path / "theirs").iterdir():
        if path.suffix != ".safetensors":
            assert (ours / path.name).read_bytes() == path.read_bytes(), path.name
    assert same_values(values_of(ours), values_of(tmp_path / "theirs"))


def test_plain_transformers_loads_a_student_in_several_files(tokenizer, tmp_path):
    vlm = build_model(tokenizer, 0)
    folder = model_folder(vlm)
    for name, data in folder.files.items():
        (tmp_path / name).write_bytes(data)
    files = save_indexed_shards(folder.weights, tmp_path, folder.stem, 60_000)
    names = [file.path.name for file in files]
    assert names[0] == f"model-00001-of-{len(names) - 1:05d}.safetensors"
    assert names[-1] == "model.safetensors.index.json"
    index = json.loads((tmp_path / names[-1]).read_text())
    assert index["weight_map"].keys() == folder.weights.keys()
    loaded = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in folder.weights.items())


def test_a_checkpoint_holds_every_tensor_once_and_nothing_else(tokenizer, tmp_path):
    saved = make_objects(tokenizer)
    path = publish_checkpoint(RunFolder(tmp_path), saved, "x", 1)
    parameters = list(saved.student.model.parameters())
    size = sum(p.nbytes for p in parameters)
    steps = sum(t.nbytes for n, t in content_to_save(saved).moments.items() if n.endswith(".step"))
    stored = sum(t.nbytes for f in values_of(path).values() for t in f.values())
    noise = torch.get_rng_state().nbytes
    assert stored == 3 * size + steps + noise
    assert bytes_to_save(saved.student, (), 1) == 3 * size
    freeze_parts(saved.student, ("language",))
    trained = sum(p.nbytes for p in parameters if p.requires_grad)
    assert 0 < trained < size
    saved.student.model.requires_grad_(True)
    assert bytes_to_save(saved.student, ("language",), 2) == 2 * size + 2 * trained


def test_a_background_save_has_the_values_of_its_step_whatever_follows(
    tokenizer, tmp_path, fault_at
):
    saved = make_objects(tokenizer)
    expected = values_of(publish_checkpoint(RunFolder(tmp_path / "a"), saved, "x", 1))
    folder = RunFolder(tmp_path / "b")
    writer = make_writer(folder, saved)
    fault_at("save.snapshot:slow@1;save.after_weights:slow@1")
    writer.save()
    writer.wait_for_copy()
    assert newest_checkpoint(folder) is None
    update(saved.student, saved.optimizer)
    saved.state.step += 1
    writer.finish()
    path = newest_checkpoint(folder)
    assert checkpoint_step(path) == 2
    assert same_values(values_of(path), expected)


def test_the_buffers_of_a_snapshot_are_used_again(tokenizer, tmp_path):
    saved = make_objects(tokenizer)
    writer = make_writer(RunFolder(tmp_path), saved)
    content = content_to_save(saved, writer.files)
    tensors = content.tensors()
    assert writer.buffers.missing_bytes(tensors) == sum(t.nbytes for t in tensors.values())
    writer.save()
    writer.finish()
    pointers = {key: buffer.data_ptr() for key, buffer in writer.buffers.buffers.items()}
    assert writer.buffers.missing_bytes(content.tensors()) == 0
    update(saved.student, saved.optimizer)
    saved.state.step = 4
    writer.save()
    writer.finish()
    assert {k: buffer.data_ptr() for k, buffer in writer.buffers.buffers.items()} == pointers
    student = build_model(tokenizer, 1)
    optimizer = make_optimizer(student.model, TrainSettings())
    assert restore_checkpoint(newest_checkpoint(RunFolder(tmp_path)), student, optimizer).step == 4
    pairs = zip(student.model.parameters(), saved.student.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_without_memory_for_a_copy_the_loop_waits_and_an_event_says_so(tokenizer, tmp_path):
    saved, events, folder = make_objects(tokenizer), [], RunFolder(tmp_path)
    writer = make_writer(folder, saved, report=events.append, free_memory=lambda: 1000.0)
    writer.save()
    assert newest_checkpoint(folder) == folder.checkpoint(2)
    assert not writer.buffers.buffers
    saved.state.step = 4
    writer.save()
    assert newest_checkpoint(folder) == folder.checkpoint(4)
    assert len(events) == 1
    assert "not written in the background" in events[0]


def test_memory_that_runs_out_in_a_copy_gives_the_same_checkpoint(tokenizer, tmp_path, fault_at):
    saved, folder = make_objects(tokenizer), RunFolder(tmp_path)
    writer = make_writer(folder, saved)
    fault_at("save.snapshot:oom;save.after_weights:slow")
    writer.save()
    writer.wait_for_copy()
    assert newest_checkpoint(folder) == folder.checkpoint(2)
    writer.finish()


@pytest.mark.parametrize(
    "point",
    ["save.begin", "save.shard", "save.after_weights", "save.after_files", "save.after_manifest"],
)
def test_a_disk_that_fills_up_leaves_the_last_good_checkpoint_and_a_coded_error(
    tokenizer, tmp_path, fault_at, point
):
    saved, folder = make_objects(tokenizer), RunFolder(tmp_path)
    writer = make_writer(folder, saved)
    writer.save()
    writer.finish()
    saved.state.step = 4
    fault_at(f"{point}:enospc")
    writer.save()
    writer.wait_for_copy()
    writer.current.wait()
    with pytest.raises(StorageError) as caught:
        writer.raise_error()
    assert caught.value.code == "S601"
    writer.raise_error()  # it is raised once
    assert [checkpoint_step(path) for path in checkpoints_in(tmp_path)] == [2]
    assert reason_to_reject(folder.checkpoint(2)) is None
    assert not leftovers_in(tmp_path)


def test_an_error_of_the_thread_is_raised_at_the_end_of_the_run_at_the_latest(
    tokenizer, tmp_path, fault_at
):
    writer = make_writer(RunFolder(tmp_path), make_objects(tokenizer))
    fault_at("save.after_weights:raise")
    with pytest.raises(RuntimeError, match=r"save\.after_weights"), writer.open():
        writer.save()


def test_another_error_stays_the_error_of_the_run_and_that_of_the_thread_is_an_event(
    tokenizer, tmp_path, fault_at
):
    events = []
    writer = make_writer(RunFolder(tmp_path), make_objects(tokenizer), report=events.append)
    fault_at("save.after_weights:enospc")

    def fail_after_save():
        with writer.open():
            writer.save()
            raise KeyError("another one")

    with pytest.raises(KeyError):
        fail_after_save()
    assert len(events) == 1
    assert "S601" in events[0]


def test_an_event_names_the_step_of_the_checkpoint_that_could_not_be_written(
    tokenizer, tmp_path, fault_at
):
    events, saved = [], make_objects(tokenizer)
    writer = make_writer(RunFolder(tmp_path), saved, report=events.append)
    fault_at("save.after_weights:enospc")
    writer.save()
    writer.wait_for_copy()
    saved.state.step = 3  # the run goes on meanwhile
    writer.settle()
    assert [event.partition(" could")[0] for event in events] == ["the checkpoint of step 2"]


def test_a_copy_waits_for_the_device_of_the_tensors_not_for_the_current_one(monkeypatch):
    waited, values = [], torch.arange(3.0)
    monkeypatch.setattr("torch.cuda.synchronize", waited.append)
    facts = {"shape": values.shape, "dtype": values.dtype, "detach": lambda: values}
    tensors = {
        n: SimpleNamespace(is_cuda=True, device=torch.device("cuda", n), **facts) for n in (1, 2)
    }
    buffers = SnapshotBuffers()
    buffers.buffers = {n: torch.empty(3) for n in tensors}  # page-locked memory needs a device
    copies = buffers.copy(tensors)
    assert {str(device) for device in waited} == {"cuda:1", "cuda:2"}
    assert torch.equal(copies[1], values)


def test_a_signal_waits_for_the_checkpoint_and_then_saves_the_last_step(
    tokenizer, tmp_path, fault_at
):
    saved, folder = make_objects(tokenizer), RunFolder(tmp_path)
    writer = make_writer(folder, saved)
    fault_at("save.after_weights:slow")
    writer.save()
    writer.wait_for_copy()
    saved.state.step = 3
    assert writer.save_now() == folder.checkpoint(3)
    assert reason_to_reject(folder.checkpoint(3)) is None
    writer.save()
    assert [checkpoint_step(path) for path in checkpoints_in(tmp_path)] == [3]


def test_a_second_ctrl_c_abandons_the_checkpoint_and_it_never_appears(
    tokenizer, tmp_path, fault_at
):
    saved, folder = make_objects(tokenizer), RunFolder(tmp_path)
    publish_checkpoint(folder, saved, "x", 1)
    saved.state.step = 4
    writer = make_writer(folder, saved)
    fault_at("save.after_manifest:slow")
    threads = []

    def interrupt_after_save():
        with writer.open():
            writer.save()
            threads.append(writer.current.thread)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt_after_save()
    threads[0].join()
    assert [checkpoint_step(path) for path in checkpoints_in(tmp_path)] == [2]
    assert not leftovers_in(tmp_path)


def test_older_checkpoint_and_journal_stay_until_the_new_one_is_complete(
    tokenizer, tmp_path, fault_at
):
    saved, folder = make_objects(tokenizer), RunFolder(tmp_path)
    publish_checkpoint(folder, saved, "x", 1)
    folder.journal.mkdir()
    for step in range(1, 7):
        (folder.journal / f"{step:06d}.json").write_text("{}")
    saved.state.step = 4
    writer = make_writer(folder, saved)
    fault_at("save.after_manifest:slow")
    writer.save()
    writer.save()  # the same step: it neither waits nor writes again
    assert [checkpoint_step(path) for path in checkpoints_in(tmp_path)] == [2]
    assert Journal(folder.journal, "").steps() == [1, 2, 3, 4, 5, 6]
    writer.finish()
    assert [checkpoint_step(path) for path in checkpoints_in(tmp_path)] == [4]
    assert Journal(folder.journal, "").steps() == [5, 6]


@pytest.mark.parametrize("background", [True, False])
def test_a_run_saves_the_same_in_the_background_although_the_copy_is_slow(
    tokenizer, teacher, tmp_path, fault_at, background
):
    """The next update waits for the copy: without that, it would hold weights of two steps."""
    plan = make_plan(tokenizer, teacher, METHODS["visual_opsd"](gate=False), stop_after=2)
    run_plan(plan, RunFolder(tmp_path / "short"))
    fault_at("save.snapshot:slow@every;save.after_weights:slow@every")
    save = SaveSettings(every=2, keep=9, background=background)
    folder = RunFolder(tmp_path / "long")
    plan = make_plan(tokenizer, teacher, METHODS["visual_opsd"](gate=False), save=save)
    run_plan(replace(plan, stop_after=3), folder)
    short = values_of(tmp_path / "short" / "checkpoint-000002")
    assert same_values(short, values_of(folder.checkpoint(2)))


def test_free_memory_is_that_of_the_container_if_it_has_less(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 100 kB\n")
    assert free_host_bytes(tmp_path / "meminfo", tmp_path / "none") == 100 * 1024
    (tmp_path / "memory.max").write_text("50000\n")
    (tmp_path / "memory.current").write_text("40000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 5000\n")
    assert free_host_bytes(tmp_path / "meminfo", tmp_path) == 15000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_host_bytes(tmp_path / "meminfo", tmp_path) == 100 * 1024
    assert free_host_bytes(tmp_path / "none", tmp_path) == float("inf")

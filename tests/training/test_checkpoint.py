"""What counts as a checkpoint, what is refused, what an older version wrote, and tensors in shards."""

import json
import math
import shutil

import pytest
import torch
from conftest import build_model

from vistill.errors import NonFiniteError, StorageError
from vistill.runs.folder import RunFolder, checkpoints_in
from vistill.runs.storage import file_hash, read_json, write_json
from vistill.training import checkpoint
from vistill.training.checkpoint import (
    MANIFEST,
    TrainedObjects,
    format_older_terms,
    newest,
    publish,
    reason_to_reject,
    remove_leftovers,
    restore,
)
from vistill.training.optim import make_optimizer
from vistill.training.run_state import RunState
from vistill.training.settings import TrainSettings
from vistill.training.shards import (
    in_shards,
    missing_shard_error,
    read_shards,
    save_shards,
    shards_of,
)
from vistill.training.state_file import FIELDS, checked_state


@pytest.fixture(scope="module")
def learner(tokenizer):
    """A student and an optimizer with moments."""
    student = build_model(tokenizer, 0)
    optimizer = make_optimizer(student.model, TrainSettings())
    for number, parameter in enumerate(student.model.parameters()):
        parameter.grad = torch.full_like(parameter, 1e-3 * (number + 1))
    optimizer.step()
    return student, optimizer


@pytest.fixture
def saved(learner):
    """What is saved at some step."""
    return lambda step, **more: TrainedObjects(*learner, RunState(step=step, **more))


def moments(optimizer):
    """Every moment, in the order of the parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [(slot, value) for p in parameters for slot, value in sorted(optimizer.state[p].items())]


def same_moments(one, other):
    """Whether two optimizers hold the same bits."""
    pairs = zip(moments(one), moments(other), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


STRAY = [
    "checkpoint-000006-backup",
    "checkpoint-6",
    "checkpoint-latest",
    "checkpoint-0000006",
    "checkpoint-000009 (copy)",
]


def test_copies_and_backups_of_people_neither_count_nor_are_removed(tmp_path, saved):
    folder = RunFolder(tmp_path)
    for name in STRAY:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    for name in (".inprogress-notes", ".trash-bin", ".trash-checkpoint-000001"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-000002").write_text("a file is no checkpoint")
    assert not folder.has_started()
    for step in (4, 6, 8, 10):
        publish(folder, saved(step), "x", keep=2)
        remove_leftovers(folder)
    assert [path.name for path in checkpoints_in(tmp_path)] == [
        "checkpoint-000008",
        "checkpoint-000010",
    ]
    assert newest(folder) == folder.checkpoint(10)
    assert all((tmp_path / name / "mine.txt").exists() for name in STRAY)
    assert all(
        (tmp_path / name).is_dir()
        for name in (".inprogress-notes", ".trash-bin", ".trash-checkpoint-000001")
    )


def test_checkpoints_are_ordered_by_step_beyond_six_digits(tmp_path):
    for step in (999_999, 1_000_000, 20):
        (tmp_path / f"checkpoint-{step:06d}").mkdir()
    assert [path.name[11:] for path in checkpoints_in(tmp_path)] == ["000020", "999999", "1000000"]


def test_files_of_people_beside_rollouts_and_tokens_do_not_count(tmp_path):
    folder = RunFolder(tmp_path)
    for name in (
        "rollouts/000004.jsonl",
        "rollouts/zz.jsonl",
        "rollouts/1000000.jsonl",
        "tokens/step-000004.json",
        "tokens/x.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    assert [path.name for path in folder.rollout_files()] == ["000004.jsonl", "1000000.jsonl"]
    assert [path.name for path in folder.token_files()] == ["step-000004.json"]


def test_a_checkpoint_under_the_name_of_another_step_is_rejected(tmp_path, saved):
    folder = RunFolder(tmp_path)
    publish(folder, saved(4), "x", keep=2)
    shutil.copytree(folder.checkpoint(4), folder.checkpoint(9))
    assert newest(folder) == folder.checkpoint(4)
    assert "rejected checkpoint-000009: its manifest is that of step 4" in folder.events.read_text()


def damage(path):
    """Flip a bit of the weights."""
    file = path / "student" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))


def test_a_damaged_checkpoint_is_written_again_when_its_step_is_taken_again(tmp_path, saved):
    folder = RunFolder(tmp_path)
    for step in (4, 6):
        publish(folder, saved(step), "x", keep=2)
    damage(folder.checkpoint(6))
    assert newest(folder) == folder.checkpoint(4)
    publish(folder, saved(6), "x", keep=2)
    assert newest(folder) == folder.checkpoint(6)


def test_a_damaged_later_checkpoint_never_costs_a_valid_one(tmp_path, saved):
    folder = RunFolder(tmp_path)
    for step in (4, 6):
        publish(folder, saved(step), "x", keep=2)
    damage(folder.checkpoint(6))
    publish(folder, saved(5), "x", keep=1)
    assert newest(folder) == folder.checkpoint(5)


def test_a_checkpoint_that_lies_elsewhere_and_is_linked_is_unlinked_and_stays_there(
    tmp_path, saved
):
    folder, elsewhere = RunFolder(tmp_path / "run"), tmp_path / "elsewhere"
    publish(folder, saved(4), "x", keep=1)
    shutil.move(folder.checkpoint(4), elsewhere)
    folder.checkpoint(4).symlink_to(elsewhere)
    assert reason_to_reject(folder.checkpoint(4)) is None
    publish(folder, saved(6), "x", keep=1)
    assert [path.name for path in (tmp_path / "run").glob("*checkpoint*")] == ["checkpoint-000006"]
    assert (elsewhere / MANIFEST).exists()


def test_the_optimizer_in_shards_is_restored_to_the_last_bit(
    tmp_path, saved, learner, tokenizer, monkeypatch
):
    folder = RunFolder(tmp_path)
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 60_000)
    place = publish(folder, saved(4), "x", keep=1)
    shards = sorted(place.glob("optimizer*"))
    assert len(shards) > 2
    assert shards[0].name == f"optimizer-00001-of-{len(shards):05d}.safetensors"
    assert {str(file.relative_to(place)) for file in shards} <= {
        name for name, _, _ in read_json(place / MANIFEST)["files"]
    }
    shutil.copy(shards[0], place / "optimizer.safetensors")  # not in the manifest: never read
    student = build_model(tokenizer, 1)
    optimizer = make_optimizer(student.model, TrainSettings())
    assert restore(place, student, optimizer).step == 4
    assert same_moments(optimizer, learner[1])
    shards[1].unlink()
    assert reason_to_reject(place) == f"{shards[1].name} is missing"


def test_moments_of_another_model_are_an_error_with_a_code(tmp_path, saved, tokenizer):
    place = publish(RunFolder(tmp_path), saved(4), "x", keep=1)
    other = torch.nn.Linear(3, 3)
    tensors = list(read_shards([place / "optimizer.safetensors"]))
    with pytest.raises(StorageError) as caught:
        checkpoint.restore_optimizer(other, torch.optim.AdamW(other.parameters()), tensors)
    assert caught.value.code == "S604"


def forged(place, **changes):
    """Write a manifest again, as a save would have done."""
    files = [p for p in sorted(place.rglob("*")) if p.is_file() and p.name != MANIFEST]
    entries = [[str(p.relative_to(place)), p.stat().st_size, file_hash(p)] for p in files]
    write_json(
        place / MANIFEST, {**read_json(place / MANIFEST), "files": entries, **changes}, exact=True
    )


def test_weights_in_shards_are_whole_or_rejected(tmp_path, saved, learner):
    place = publish(RunFolder(tmp_path), saved(4), "x", keep=1)
    (place / "student" / "model.safetensors").unlink()
    learner[0].model.save_pretrained(place / "student", max_shard_size="100KB")
    shards = sorted((place / "student").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert "is missing" in str(reason_to_reject(place))
    forged(place)
    assert reason_to_reject(place) is None
    shards[-1].unlink()
    assert reason_to_reject(place) == f"student/{shards[-1].name} is missing"
    forged(place)
    assert reason_to_reject(place) == f"student/{shards[-1].name} is missing"


def test_weights_that_a_loader_would_prefer_and_no_manifest_names_are_rejected(tmp_path, saved):
    place = publish(RunFolder(tmp_path), saved(4), "x", keep=1)
    (place / "student" / "notes.safetensors").write_text("mine")
    assert reason_to_reject(place) is None
    (place / "student" / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert "is not in its manifest" in str(reason_to_reject(place))


@pytest.mark.parametrize("most", [1, 100, 400, 10**9])
def test_shards_hold_every_tensor_once_and_no_more_than_they_may(tmp_path, most):
    tensors = {
        f"t{i}": torch.arange(i * 10, dtype=torch.float32).reshape(i, 10) for i in range(1, 9)
    }
    parts = in_shards(tensors, most)
    assert [name for part in parts for name in part] == list(tensors)
    assert all(len(part) == 1 or sum(tensors[n].nbytes for n in part) <= most for part in parts)
    files = save_shards(tensors, tmp_path, "x", most)
    assert shards_of([file.name for file in files], "x") == [file.name for file in files]
    assert missing_shard_error([file.name for file in files], tmp_path) is None
    back = dict(read_shards(files))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_no_tensors_are_one_empty_shard(tmp_path):
    files = save_shards({}, tmp_path, "x", 10)
    assert [file.name for file in files] == ["x.safetensors"]
    assert dict(read_shards(files)) == {}


#: As the version before wrote it.
FORMAT_1 = {
    "best": {"step": 2, "value": 0.0},
    "gone": {"row": "D208"},
    "ladder": {"learn": 1},
    "method": {"all_truncated": 3, "memory": {"eta": 0.37399633001247834}, "warned": ["truncated"]},
    "skipped": 0,
    "step": 3,
}


def as_format_1(place, state=FORMAT_1):
    """Make a checkpoint one of format 1."""
    (place / "state.json").write_text(json.dumps(state))
    forged(place, format=1, step=3)


def test_a_checkpoint_of_format_1_is_restored(tmp_path, saved, learner, tokenizer):
    place = publish(RunFolder(tmp_path), saved(3), "x", keep=1)
    assert format_older_terms(place) == ""
    as_format_1(place)
    assert (
        "up to step 3 loss/* in metrics.jsonl are times their coefficients"
        in format_older_terms(place)
    )
    assert reason_to_reject(place) is None
    student = build_model(tokenizer, 1)
    optimizer = make_optimizer(student.model, TrainSettings())
    state = restore(place, student, optimizer)
    assert same_moments(optimizer, learner[1])
    assert checked_state(state.to_dict()) == {
        "step": 3,
        "best": {"step": 2, "value": 0.0},
        "skipped": 0,
        "gone": {"row": "D208"},
        "ladder": {"learn": 1},
        "memory": {"eta": 0.37399633001247834},
        "non_finite_in_a_row": 0,
        "warned": ["truncated"],
        "all_truncated_in_a_row": 3,
        "reference_sha256": None,
        "chain": file_hash(place / MANIFEST),
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"method": {"memory": {"eta": None}}}, "no such memory"),  # NaN, as format 1 wrote it
        ({"method": {"mood": 1}}, "no such method"),
        ({"step": 4}, "is that of step 4"),
        ({"step": "3"}, "no such step"),
        ({"ladder": {"learn": 0.5}}, "no such ladder"),
        ({"best": {"step": 2}}, "no such best"),
        ({"more": 1}, "a field that this version does not know: more"),
    ],
)
def test_a_state_that_cannot_be_continued_is_rejected_and_the_checkpoint_before_it_is_used(
    tmp_path, saved, change, reason
):
    folder = RunFolder(tmp_path)
    for step in (2, 3):
        publish(folder, saved(step), "x", keep=2)
    as_format_1(folder.checkpoint(3), FORMAT_1 | change)
    assert reason in str(reason_to_reject(folder.checkpoint(3)))
    assert newest(folder) == folder.checkpoint(2)


def test_a_format_to_come_is_rejected_with_its_number(tmp_path, saved):
    place = publish(RunFolder(tmp_path), saved(3), "x", keep=1)
    forged(place, format=3)
    assert reason_to_reject(place) == "format 3, this version reads 1 and 2"


def test_a_state_comes_back_as_it_was(tmp_path, saved, tokenizer):
    full = {"best": {"step": 2, "value": 1 / 3}, "skipped": 1, "gone": {"r": "D202"}, "ladder": {"score": 2}, "chain": "abc",
            "memory": {"eta": math.pi}, "warned": ["blind"], "non_finite_in_a_row": 1, "all_truncated_in_a_row": 2,
            "reference_sha256": "f00"}  # fmt: skip
    place = publish(RunFolder(tmp_path), saved(3, **full), "x", keep=1)
    assert set(read_json(place / "state.json")) == set(FIELDS)
    student = build_model(tokenizer, 1)
    assert restore(place, student, make_optimizer(student.model, TrainSettings())) == RunState(
        step=3, **full
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_state_that_is_not_finite_is_refused_before_anything_is_written(tmp_path, saved, value):
    folder = RunFolder(tmp_path)
    publish(folder, saved(2), "x", keep=1)
    with pytest.raises(NonFiniteError, match=r"memory\.eta is (nan|inf)") as caught:
        publish(folder, saved(3, memory={"eta": value}), "x", keep=1)
    assert caught.value.code == "N702"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000002"]

"""What is a checkpoint, what is rejected, older formats, and tensors in shards."""

import json
import math
import shutil

import pytest
import torch
from conftest import build_model
from published import publish_checkpoint

from vistill.errors import NonFiniteError, StorageError
from vistill.runs.folder import RunFolder, checkpoints_in
from vistill.runs.storage import file_hash, read_json, write_json
from vistill.training import checkpoint
from vistill.training.checkpoint import (
    MANIFEST,
    TrainedObjects,
    format_older_terms,
    newest_checkpoint,
    reason_to_reject,
    remove_leftovers,
    restore_checkpoint,
)
from vistill.training.optim import make_optimizer
from vistill.training.rollout_health import RolloutHealth
from vistill.training.run_state import FIELDS, HEALTH_FIELDS, RunState
from vistill.training.settings import TrainSettings
from vistill.training.shards import (
    find_missing_shard,
    find_shards,
    read_shards,
    save_shards,
    split_into_shards,
)


@pytest.fixture(scope="module")
def trained_student(tokenizer):
    """A student and an optimizer with moments."""
    student = build_model(tokenizer, 0)
    optimizer = make_optimizer(student.model, TrainSettings())
    for number, parameter in enumerate(student.model.parameters()):
        parameter.grad = torch.full_like(parameter, 1e-3 * (number + 1))
    optimizer.step()
    return student, optimizer


@pytest.fixture
def saved(trained_student):
    """Make the objects to save at a step."""

    def objects_at(step, **state):
        return TrainedObjects(*trained_student, RunState(step=step, **state))

    return objects_at


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


def test_copies_and_backups_made_by_the_user_neither_count_nor_are_removed(tmp_path, saved):
    folder = RunFolder(tmp_path)
    for name in STRAY:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    for name in (".inprogress-notes", ".trash-bin", ".trash-checkpoint-000001"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-000002").write_text("a file is no checkpoint")
    assert not folder.has_started()
    for step in (4, 6, 8, 10):
        publish_checkpoint(folder, saved(step), "x", keep=2)
        remove_leftovers(folder)
    assert [path.name for path in checkpoints_in(tmp_path)] == [
        "checkpoint-000008",
        "checkpoint-000010",
    ]
    assert newest_checkpoint(folder) == folder.checkpoint(10)
    assert all((tmp_path / name / "mine.txt").exists() for name in STRAY)
    assert all(
        (tmp_path / name).is_dir()
        for name in (".inprogress-notes", ".trash-bin", ".trash-checkpoint-000001")
    )


def test_checkpoints_are_ordered_by_step_beyond_six_digits(tmp_path):
    for step in (999_999, 1_000_000, 20):
        (tmp_path / f"checkpoint-{step:06d}").mkdir()
    assert [path.name[11:] for path in checkpoints_in(tmp_path)] == ["000020", "999999", "1000000"]


def test_files_of_the_user_next_to_rollouts_and_tokens_do_not_count(tmp_path):
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
    publish_checkpoint(folder, saved(4), "x", keep=2)
    shutil.copytree(folder.checkpoint(4), folder.checkpoint(9))
    assert newest_checkpoint(folder) == folder.checkpoint(4)
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
        publish_checkpoint(folder, saved(step), "x", keep=2)
    damage(folder.checkpoint(6))
    assert newest_checkpoint(folder) == folder.checkpoint(4)
    publish_checkpoint(folder, saved(6), "x", keep=2)
    assert newest_checkpoint(folder) == folder.checkpoint(6)


def test_a_damaged_later_checkpoint_never_makes_a_valid_one_disappear(tmp_path, saved):
    folder = RunFolder(tmp_path)
    for step in (4, 6):
        publish_checkpoint(folder, saved(step), "x", keep=2)
    damage(folder.checkpoint(6))
    publish_checkpoint(folder, saved(5), "x", keep=1)
    assert newest_checkpoint(folder) == folder.checkpoint(5)


def test_of_a_checkpoint_behind_a_link_only_the_link_is_removed(tmp_path, saved):
    folder, elsewhere = RunFolder(tmp_path / "run"), tmp_path / "elsewhere"
    publish_checkpoint(folder, saved(4), "x", keep=1)
    shutil.move(folder.checkpoint(4), elsewhere)
    folder.checkpoint(4).symlink_to(elsewhere)
    assert reason_to_reject(folder.checkpoint(4)) is None
    publish_checkpoint(folder, saved(6), "x", keep=1)
    assert [path.name for path in (tmp_path / "run").glob("*checkpoint*")] == ["checkpoint-000006"]
    assert (elsewhere / MANIFEST).exists()


def test_the_optimizer_in_shards_is_restored_to_the_last_bit(
    tmp_path, saved, trained_student, tokenizer, small_shards
):
    folder = RunFolder(tmp_path)
    path = publish_checkpoint(folder, saved(4), "x", keep=1)
    shards = sorted(path.glob("optimizer*"))
    assert len(shards) > 2
    assert shards[0].name == f"optimizer-00001-of-{len(shards):05d}.safetensors"
    assert {str(file.relative_to(path)) for file in shards} <= {
        name for name, _, _ in read_json(path / MANIFEST)["files"]
    }
    shutil.copy(shards[0], path / "optimizer.safetensors")  # not in the manifest: never read
    student = build_model(tokenizer, 1)
    optimizer = make_optimizer(student.model, TrainSettings())
    assert restore_checkpoint(path, student, optimizer).step == 4
    assert same_moments(optimizer, trained_student[1])
    shards[1].unlink()
    assert reason_to_reject(path) == f"{shards[1].name} is missing"


def test_moments_of_another_model_are_an_error_with_a_code(tmp_path, saved, tokenizer):
    place = publish_checkpoint(RunFolder(tmp_path), saved(4), "x", keep=1)
    other = torch.nn.Linear(3, 3)
    tensors = list(read_shards([place / "optimizer.safetensors"]))
    with pytest.raises(StorageError) as caught:
        checkpoint.restore_optimizer(other, torch.optim.AdamW(other.parameters()), tensors)
    assert caught.value.code == "S604"


def rewrite_manifest(place, **changes):
    """Write a manifest again that fits the files, as a save does."""
    files = [p for p in sorted(place.rglob("*")) if p.is_file() and p.name != MANIFEST]
    entries = [[str(p.relative_to(place)), p.stat().st_size, file_hash(p)] for p in files]
    write_json(
        place / MANIFEST, {**read_json(place / MANIFEST), "files": entries, **changes}, exact=True
    )


def test_weights_in_shards_are_complete_or_rejected(tmp_path, saved, trained_student):
    place = publish_checkpoint(RunFolder(tmp_path), saved(4), "x", keep=1)
    (place / "student" / "model.safetensors").unlink()
    trained_student[0].model.save_pretrained(place / "student", max_shard_size="100KB")
    shards = sorted((place / "student").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert "is missing" in str(reason_to_reject(place))
    rewrite_manifest(place)
    assert reason_to_reject(place) is None
    shards[-1].unlink()
    assert reason_to_reject(place) == f"student/{shards[-1].name} is missing"
    rewrite_manifest(place)
    assert reason_to_reject(place) == f"student/{shards[-1].name} is missing"


def test_weights_that_a_loader_would_prefer_and_no_manifest_names_are_rejected(tmp_path, saved):
    place = publish_checkpoint(RunFolder(tmp_path), saved(4), "x", keep=1)
    (place / "student" / "notes.safetensors").write_text("mine")
    assert reason_to_reject(place) is None
    (place / "student" / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert "is not in its manifest" in str(reason_to_reject(place))


@pytest.mark.parametrize("max_bytes", [1, 100, 400, 10**9])
def test_shards_hold_every_tensor_once_within_their_limit(tmp_path, max_bytes):
    tensors = {
        f"t{i}": torch.arange(i * 10, dtype=torch.float32).reshape(i, 10) for i in range(1, 9)
    }
    parts = split_into_shards(tensors, max_bytes)
    assert [name for part in parts for name in part] == list(tensors)
    sizes = [sum(tensors[name].nbytes for name in part) for part in parts]
    assert all(len(p) == 1 or size <= max_bytes for p, size in zip(parts, sizes, strict=True))
    files = save_shards(tensors, tmp_path, "x", max_bytes)
    names = [file.path.name for file in files]
    assert find_shards(names, "x") == names
    assert find_missing_shard(names, tmp_path) is None
    back = dict(read_shards([file.path for file in files]))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_without_tensors_there_is_one_empty_shard(tmp_path):
    files = save_shards({}, tmp_path, "x", 10)
    assert [file.path.name for file in files] == ["x.safetensors"]
    assert dict(read_shards([file.path for file in files])) == {}


#: State files as versions of format 1 and 2 wrote them.
FORMAT_1 = {
    "best": {"step": 2, "value": 0.0},
    "gone": {"row": "D208"},
    "ladder": {"learn": 1},
    "method": {"all_truncated": 3, "memory": {"eta": 0.37399633001247834}, "warned": ["truncated"]},
    "skipped": 0,
    "step": 3,
}


FORMAT_2 = {
    "all_truncated_in_a_row": 2,
    "best": {"rows": 8.0, "step": 2, "value": 1 / 3},
    "chain": "3f21ab",
    "gone": {"row": "D208"},
    "ladder": {"learn": 1},
    "memory": {"eta": 0.37399633001247834},
    "non_finite_in_a_row": 1,
    "reference_sha256": "f00",
    "skipped": 1,
    "step": 3,
    "warned": ["truncated"],
}


def write_as_format(number, place, state):
    """Turn a checkpoint into one of an older format."""
    (place / "state.json").write_text(json.dumps(state))
    rewrite_manifest(place, format=number, step=3)


def test_a_checkpoint_of_format_1_is_restored(tmp_path, saved, trained_student, tokenizer):
    place = publish_checkpoint(RunFolder(tmp_path), saved(3), "x", keep=1)
    assert format_older_terms(place) == ""
    write_as_format(1, place, FORMAT_1)
    assert (
        "up to step 3 loss/* in metrics.jsonl are times their coefficients"
        in format_older_terms(place)
    )
    assert reason_to_reject(place) is None
    student = build_model(tokenizer, 1)
    optimizer = make_optimizer(student.model, TrainSettings())
    state = restore_checkpoint(place, student, optimizer)
    assert same_moments(optimizer, trained_student[1])
    assert state == RunState(
        step=3,
        best={"step": 2, "value": 0.0},
        rollout_health=RolloutHealth(3, ["truncated"]),
        replaced_rows={"row": "D208"},
        halvings={"learn": 1},
        memory={"eta": 0.37399633001247834},
        chain=file_hash(place / MANIFEST),
    )


def test_a_checkpoint_of_format_2_is_restored(tmp_path, saved, trained_student, tokenizer):
    place = publish_checkpoint(RunFolder(tmp_path), saved(3), "x", keep=1)
    write_as_format(2, place, FORMAT_2)
    assert reason_to_reject(place) is None
    assert format_older_terms(place) == ""
    student = build_model(tokenizer, 1)
    optimizer = make_optimizer(student.model, TrainSettings())
    assert restore_checkpoint(place, student, optimizer) == RunState(
        step=3,
        best={"step": 2, "value": 1 / 3, "rows": 8.0},
        skipped=1,
        non_finite_in_a_row=1,
        rollout_health=RolloutHealth(2, ["truncated"]),
        replaced_rows={"row": "D208"},
        halvings={"learn": 1},
        memory={"eta": 0.37399633001247834},
        reference_sha256="f00",
        chain="3f21ab",
    )
    assert same_moments(optimizer, trained_student[1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"method": {"memory": {"eta": None}}},
            "bad value for memory",
        ),  # NaN, as format 1 wrote it
        ({"method": {"mood": 1}}, "bad value for method"),
        ({"step": 4}, "is that of step 4"),
        ({"step": "3"}, "bad value for step"),
        ({"ladder": {"learn": 0.5}}, "bad value for halvings"),
        ({"best": {"step": 2}}, "bad value for best"),
        ({"more": 1}, "a field that this version does not know: more"),
        ({"method": {"warned": [1]}}, "bad value for warned"),
        ({"halvings": {}}, "a field that format 2 does not know: halvings"),
    ],
)
def test_a_state_that_cannot_be_continued_is_rejected_and_the_checkpoint_before_it_is_used(
    tmp_path, saved, change, reason
):
    folder = RunFolder(tmp_path)
    for step in (2, 3):
        publish_checkpoint(folder, saved(step), "x", keep=2)
    write_as_format(1, folder.checkpoint(3), FORMAT_1 | change)
    assert reason in str(reason_to_reject(folder.checkpoint(3)))
    assert newest_checkpoint(folder) == folder.checkpoint(2)


def test_a_later_format_is_rejected_with_its_number(tmp_path, saved):
    place = publish_checkpoint(RunFolder(tmp_path), saved(3), "x", keep=1)
    rewrite_manifest(place, format=4)
    assert reason_to_reject(place) == "format 4, this version reads 1, 2, 3"


def test_a_state_comes_back_as_it_was(tmp_path, saved, tokenizer):
    full = {
        "best": {"step": 2, "value": 1 / 3},
        "skipped": 1,
        "non_finite_in_a_row": 1,
        "rollout_health": RolloutHealth(2, ["blind"]),
        "replaced_rows": {"r": "D202"},
        "halvings": {"score": 2},
        "memory": {"eta": math.pi},
        "reference_sha256": "f00",
        "chain": "abc",
    }
    place = publish_checkpoint(RunFolder(tmp_path), saved(3, **full), "x", keep=1)
    stored = read_json(place / "state.json")
    assert set(stored) == set(FIELDS)
    assert set(stored["rollout_health"]) == set(HEALTH_FIELDS)
    student = build_model(tokenizer, 1)
    assert restore_checkpoint(
        place, student, make_optimizer(student.model, TrainSettings())
    ) == RunState(step=3, **full)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_state_that_is_not_finite_is_refused_before_anything_is_written(tmp_path, saved, value):
    folder = RunFolder(tmp_path)
    publish_checkpoint(folder, saved(2), "x", keep=1)
    with pytest.raises(NonFiniteError, match=r"memory\.eta is (nan|inf)") as caught:
        publish_checkpoint(folder, saved(3, memory={"eta": value}), "x", keep=1)
    assert caught.value.code == "N702"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000002"]


def test_restoring_a_checkpoint_restores_the_random_state_of_torch(tmp_path, saved, tokenizer):
    """Dropout and other noise in training mode comes from this state."""
    folder = RunFolder(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        path = publish_checkpoint(folder, saved(4), "x", keep=1)
        expected = torch.rand(3)
        torch.manual_seed(8)
        student = build_model(tokenizer, 1)
        restore_checkpoint(path, student, make_optimizer(student.model, TrainSettings()))
        assert torch.equal(torch.rand(3), expected)


def test_the_best_checkpoint_is_kept_however_many_follow(tmp_path, saved):
    folder, best = RunFolder(tmp_path), {"step": 2, "value": 0.5, "rows": 4.0}
    for step in (2, 4, 6, 8):
        publish_checkpoint(folder, saved(step, best=best), "x", keep=1)
    assert [path.name for path in checkpoints_in(tmp_path)] == [
        "checkpoint-000002",
        "checkpoint-000008",
    ]

"""Saved weights: one file or shards, loaded bit for bit. A mismatch changes nothing."""

import json

import pytest
import torch
from conftest import build_model, build_untied
from published import publish_checkpoint
from safetensors.torch import load_file, save_file
from tiers import few
from transformers import Qwen3VLForConditionalGeneration

from vistill.errors import ModelError
from vistill.models.loading import load_vlm
from vistill.models.save import load_weights_into, save_vlm
from vistill.runs.folder import RunFolder
from vistill.training.checkpoint import (
    TrainedObjects,
    newest_checkpoint,
    restore_checkpoint,
    weights_hash,
)
from vistill.training.optim import make_optimizer
from vistill.training.run_state import RunState
from vistill.training.settings import TrainSettings

INDEX = "model.safetensors.index.json"
KINDS = {"tied": build_model, "untied": build_untied}


@pytest.fixture(params=["tied", "untied"])
def kind(request):
    return request.param


@pytest.fixture
def shards(kind, tokenizer, tmp_path, small_shards):
    """A folder of several files."""
    save_vlm(KINDS[kind](tokenizer, 7), tmp_path / "saved")
    return tmp_path / "saved"


def equal(a, b):
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


@pytest.mark.parametrize("size", ["60KB", "50GB"])
def test_saved_weights_are_loaded_bit_for_bit(size, kind, tokenizer, tmp_path, request):
    if size == "60KB":
        request.getfixturevalue("small_shards")
    vlm, other = KINDS[kind](tokenizer, 7), KINDS[kind](tokenizer, 8)
    save_vlm(vlm, tmp_path)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert (files == ["model.safetensors"]) == (size == "50GB")
    assert (tmp_path / INDEX).exists() == (len(files) > 1)
    parameters = [id(p) for p in other.model.parameters()]
    assert not equal(vlm.model, other.model)
    load_weights_into(tmp_path, other.model)
    assert equal(vlm.model, other.model)
    assert [id(p) for p in other.model.parameters()] == parameters
    tied = kind == "tied"
    assert (other.model.lm_head.weight is other.model.get_input_embeddings().weight) == tied
    assert equal(vlm.model, load_vlm(tmp_path).model)
    assert equal(vlm.model, Qwen3VLForConditionalGeneration.from_pretrained(tmp_path))


def test_a_checkpoint_of_several_files_is_restored(tokenizer, tmp_path, small_shards):
    settings, folder = TrainSettings(), RunFolder(tmp_path)
    student, average = build_model(tokenizer, 7), build_model(tokenizer, 9)
    saved = TrainedObjects(
        student, make_optimizer(student.model, settings), RunState(step=3), {"ema": average}
    )
    publish_checkpoint(folder, saved, "test", 1)
    other, second = build_model(tokenizer, 8), build_model(tokenizer, 8)
    state = restore_checkpoint(
        newest_checkpoint(folder), other, make_optimizer(other.model, settings), {"ema": second}
    )
    assert state.step == 3
    assert weights_hash(other) == weights_hash(student)
    assert weights_hash(second) == weights_hash(average)


def drop_one_file(folder):
    sorted(folder.glob("*.safetensors"))[1].unlink()
    return "-00002-of-"


def drop_all_files(folder):
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink()
    return "neither"


def rewrite_first_shard(folder, change):
    """Change the tensors of the first shard. The index stays as it is."""
    path = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(path)
    name = next(iter(tensors))
    change(tensors, name)
    save_file(tensors, path, metadata={"format": "pt"})
    return name


def drop_weight(folder):
    return rewrite_first_shard(folder, lambda tensors, name: tensors.pop(name))


def drop_weight_from_file_and_index(folder):
    name = drop_weight(folder)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"].pop(name)
    (folder / INDEX).write_text(json.dumps(index))
    return f"contains {name} 0 times"


def add_unknown_weight(folder):
    def change(tensors, name):
        tensors["model.extra"] = torch.zeros(2)

    rewrite_first_shard(folder, change)
    index = json.loads((folder / INDEX).read_text())
    first = min(path.name for path in folder.glob("*.safetensors"))
    index["weight_map"]["model.extra"] = first
    (folder / INDEX).write_text(json.dumps(index))
    return "model.extra, which the model does not have"


def duplicate_weight(folder):
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    tensors, others = load_file(first), load_file(second)
    name = next(iter(tensors))
    save_file({**others, name: tensors[name]}, second, metadata={"format": "pt"})
    return f"{name} is in"


def change_shape(folder):
    def change(tensors, name):
        tensors[name] = torch.cat([tensors[name], tensors[name]])

    return rewrite_first_shard(folder, change) + " has the shape"


def change_precision(folder):
    def change(tensors, name):
        tensors[name] = tensors[name].bfloat16()

    return rewrite_first_shard(folder, change) + " is BF16"


def truncate_file(folder):
    path = sorted(folder.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-100])
    return "SafetensorError"


def break_index(folder):
    (folder / INDEX).write_text("{")
    return "index of weights cannot be read"


def point_index_outside(folder):
    index = json.loads((folder / INDEX).read_text())
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = "../model.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    return "'../model.safetensors'"


DAMAGES = [
    drop_one_file,
    drop_all_files,
    drop_weight,
    drop_weight_from_file_and_index,
    add_unknown_weight,
    duplicate_weight,
    change_shape,
    change_precision,
    truncate_file,
    break_index,
    point_index_outside,
]


@pytest.mark.parametrize("damage", few(DAMAGES, 0, 2, 5, 8), ids=lambda f: f.__name__)
def test_a_damaged_folder_is_an_error_and_changes_nothing(damage, shards, kind, tokenizer):
    expected = damage(shards)
    other = KINDS[kind](tokenizer, 8)
    before = weights_hash(other)
    with pytest.raises(ModelError) as caught:
        load_weights_into(shards, other.model)
    assert caught.value.code == "M107"
    assert expected in caught.value.render()
    assert weights_hash(other) == before


def test_an_untied_head_that_was_not_saved_is_an_error(tokenizer, tmp_path):
    """A tied head need not be saved. An untied one must be."""
    save_vlm(build_model(tokenizer, 7), tmp_path)
    other = build_untied(tokenizer, 8)
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_weights_into(tmp_path, other.model)
    assert "contains lm_head.weight 0 times" in caught.value.render()

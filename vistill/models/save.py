"""Write model folders that transformers can read, and load saved weights into a model."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from vistill.errors import ModelError
from vistill.models.adapters import (
    WEIGHTS,
    file_names,
    has_adapters,
    save_adapters,
    save_configs,
)
from vistill.models.loading import VLM
from vistill.models.tensor_files import DTYPES

#: Weights above this size are written as several files and an index.
MAX_SHARD_SIZE = "50GB"


def save_vlm(vlm: VLM, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write an ordinary model folder: weights, tokenizer with chat template, image processor.

    Weights are `model.safetensors`, or shards with `model.safetensors.index.json`, under the names
    they have in the model. A model with adapters is written as a folder of adapters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if has_adapters(vlm.model):
        save_adapters(vlm.model, folder)
        vlm.family.save_processor(folder)
        return
    model: Any = vlm.model if dtype is None else vlm.model.to(dtype)  # pyright: ignore[reportArgumentType,reportCallIssue]
    model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE, save_original_format=False)
    vlm.family.save_processor(folder)


@dataclass(frozen=True)
class ModelFolder:
    """What a model folder holds, before it is written."""

    files: Mapping[str, bytes]
    """Configuration, tokenizer, chat template and image processor, by file name."""
    weights: Mapping[str, torch.Tensor]
    """By their names in the model, on its device."""
    stem: str = "model"
    """Of the files of weights."""
    is_one_file: bool = False
    """Whether the weights stay in one file of any size: PEFT reads no shards."""


def model_folder(vlm: VLM, files: Mapping[str, bytes] | None = None) -> ModelFolder:
    """What the folder of a model holds: the same as `save_vlm` writes.

    Args:
        vlm: the model.
        files: the files without weights, if they are known: they do not change in a run.
    """
    small = files_without_weights(vlm) if files is None else files
    if has_adapters(vlm.model):
        return ModelFolder(small, weights_of(vlm), WEIGHTS.partition(".")[0], is_one_file=True)
    return ModelFolder(small, weights_of(vlm))


def files_without_weights(vlm: VLM) -> dict[str, bytes]:
    """The small files of a model folder."""
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), vlm.model
        if has_adapters(model):
            save_configs(model, folder)
        else:
            model.save_pretrained(folder, state_dict={})  # pyright: ignore[reportCallIssue]
        vlm.family.save_processor(folder)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def weights_of(vlm: VLM) -> dict[str, torch.Tensor]:
    """The weights to save, or the adapters.

    Of a tied weight one name is saved, as transformers does.
    """
    if has_adapters(vlm.model):
        return {name: parameter.detach() for name, parameter in file_names(vlm.model).items()}
    tensors = vlm.model.state_dict(keep_vars=True)
    ignored = set(getattr(vlm.model, "_keys_to_ignore_on_save", None) or ())
    tied = getattr(vlm.model, "all_tied_weights_keys", None) or {}
    names: dict[int, list[str]] = {}
    for name in tensors:
        if name not in ignored:
            names.setdefault(id(tensors[name]), []).append(name)
    chosen = [min(aliases, key=lambda name: name in tied) for aliases in names.values()]
    return {name: tensors[name].detach() for name in chosen}


@torch.no_grad()
def load_weights_into(folder: Path, model: nn.Module) -> None:
    """Copy the weights of a model folder into a model, or adapters into those of a model.

    Every file that the index names must exist. Every weight of the model must be in exactly one of
    them, with the model's shape and precision. Tied weights count as one weight. Nothing is written
    until all names, shapes and precisions match.

    Raises:
        ModelError: M107 if anything is missing, unknown or different.
    """
    try:
        with ExitStack() as stack:
            paths = [folder / WEIGHTS] if has_adapters(model) else weight_files(folder)
            files = {path.name: stack.enter_context(safe_open(path, "pt")) for path in paths}
            file_of = locate_weights(folder, files)
            targets = dict(match_tensors(folder, model, file_of))
            for name, target in targets.items():
                check_tensor(folder, name, files[file_of[name]].get_slice(name), target)
            for name, target in targets.items():
                target.copy_(files[file_of[name]].get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise incomplete_weights_error(
            folder, f"{type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The single file, or the shards that the index names."""
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return [folder / SAFE_WEIGHTS_NAME]
    names = sorted(set(read_index(folder).values()))
    outside = [
        name for name in names if Path(name).name != name or not name.endswith(".safetensors")
    ]
    if outside:
        raise incomplete_weights_error(
            folder, f"its index names {outside[0]!r}, which is not a safetensors file in the folder"
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise incomplete_weights_error(
            folder, f"{missing[0]} is missing ({len(missing)} of {len(names)} files)"
        )
    return [folder / name for name in names]


def read_index(folder: Path) -> dict[str, str]:
    """The file of each weight, from the index."""
    path = folder / SAFE_WEIGHTS_INDEX_NAME
    if not path.is_file():
        raise incomplete_weights_error(
            folder, f"it has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in index.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise incomplete_weights_error(
            folder, f"its index of weights cannot be read: {error}"
        ) from error


def locate_weights(folder: Path, files: dict[str, Any]) -> dict[str, str]:
    """The file of each weight, from the files themselves, checked against the index."""
    file_of: dict[str, str] = {}
    for file, opened in files.items():
        for name in opened.keys():  # noqa: SIM118  it is not a mapping
            if name in file_of:
                raise incomplete_weights_error(
                    folder, f"{name} is in {file_of[name]} and in {file}"
                )
            file_of[name] = file
    if not (folder / SAFE_WEIGHTS_NAME).is_file() and WEIGHTS not in files:
        index = read_index(folder)
        differing = sorted(
            name for name in index.keys() | file_of.keys() if index.get(name) != file_of.get(name)
        )
        if differing:
            name = differing[0]
            raise incomplete_weights_error(
                folder, f"{name} is in {file_of.get(name)}, but the index says {index.get(name)}"
            )
    return file_of


def match_tensors(
    folder: Path, model: nn.Module, file_of: dict[str, str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's tensor for each saved weight. A tensor with several names appears once."""
    is_adapted = has_adapters(model)
    tensors = file_names(model) if is_adapted else model.state_dict(keep_vars=True)
    unknown = sorted(file_of.keys() - tensors.keys())
    if unknown:
        raise incomplete_weights_error(
            folder, f"it contains {unknown[0]}, which the model does not have"
        )
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    for aliases in names.values():
        saved = [name for name in aliases if name in file_of]
        if len(saved) != 1:
            raise incomplete_weights_error(folder, f"it contains {aliases[0]} {len(saved)} times")
        yield saved[0], tensors[saved[0]]


def check_tensor(folder: Path, name: str, saved: Any, target: torch.Tensor) -> None:
    """Raise M107 if the shape or the precision differs."""
    shape, dtype = list(saved.get_shape()), DTYPES.get(saved.get_dtype())
    if shape != list(target.shape):
        raise incomplete_weights_error(
            folder, f"{name} has the shape {shape}, the model's has {list(target.shape)}"
        )
    if dtype != target.dtype:
        raise incomplete_weights_error(
            folder, f"{name} is {saved.get_dtype()}, the model's is {target.dtype}"
        )


def incomplete_weights_error(folder: Path, why: str) -> ModelError:
    """M107."""
    return ModelError(
        "M107",
        "saved weights cannot be loaded",
        where=str(folder),
        why=why[:300],
        fix="copy the folder again with all its files, or remove it to use the checkpoint before",
    )

"""Write a model folder that other programs load: transformers, vLLM, `AutoProcessor`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer

from vistill.errors import ModelError
from vistill.models.adapters import adapter_base, is_adapter_folder, merge_adapters
from vistill.models.chat import chat_messages
from vistill.models.loading import PromptEncoder, load_encoder, load_weights
from vistill.models.processor_files import (
    IMAGE,
    PROCESSOR,
    copy_processor_files,
    find_model_file,
    missing_processor_error,
)
from vistill.runs.model_not_found import check_model_exists, looks_like_hub_id
from vistill.types import LoadedImage, Prompt

#: The precisions that an export can have, by their names on the command line.
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
#: Weights above this size are written as several files and an index, as on the hub.
SHARD_SIZE = "5GB"
#: The question with a picture that the exported folder must read as the model does.
PROBE_SIDES = (96, 72)
PROBE = "What is the value of x?"


@dataclass(frozen=True)
class WrittenModel:
    """What was written."""

    family: str
    """The model type."""
    parameters: int
    dtype: str
    notes: tuple[str, ...]
    """What a user should know: a line each."""


def write_model(
    source: str,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    bases: Sequence[str] = (),
    revision: str | None = None,
    shard_size: str = SHARD_SIZE,
) -> WrittenModel:
    """Write weights, configuration, generation configuration, tokenizer, template and processor.

    Weights get the names of the published checkpoints, which older transformers and vLLM expect.

    Args:
        source: folder or hub id of the model.
        folder: an empty folder.
        dtype: precision of the weights; None keeps that of the source.
        bases: the models that it was trained from, the nearest first. Processor files that the
            source lacks come from them.
        revision: of a hub id.
        shard_size: largest file of weights.

    Raises:
        ModelError: M103 to M107 if the model cannot be loaded, M120 without a processor.
    """
    for name in (source, *(base for base in bases if looks_like_hub_id(base))):
        check_model_exists(name)
    is_model = find_model_file(source, "config.json", revision) is not None
    if is_model and not any(find_model_file(source, n, revision) for n in (IMAGE, PROCESSOR)):
        raise missing_processor_error(source, IMAGE, bases)
    encoder = load_encoder(source, revision=revision)
    family = str(encoder.family.config.model_type)
    notes = copy_processor_files(source, folder, bases, family, revision)
    stored = getattr(encoder.family.config, "dtype", None) or torch.float32
    if is_adapter_folder(source):
        vlm = load_weights(encoder, dtype=torch.float32)  # the sum is rounded once
        merge_adapters(vlm.model)
        merged: Any = vlm.model
        merged.to(dtype or stored)
        notes += [f"the adapters are merged into the weights of {adapter_base(source)}"]
    else:
        vlm = load_weights(encoder, dtype=dtype or stored)
    vlm.model.save_pretrained(folder, max_shard_size=shard_size)
    notes += check_exported(folder, encoder)
    return WrittenModel(
        family,
        sum(p.numel() for p in vlm.model.parameters()),
        str(vlm.model.dtype).removeprefix("torch."),
        tuple(notes),
    )


def check_exported(folder: Path, encoder: PromptEncoder) -> list[str]:
    """Read a question with a picture by the exported folder alone, and compare the tokens.

    Returns:
        What was compared, and the packages that the processor needs.

    Raises:
        ModelError: M120, the folder reads it in another way.
    """
    picture = Image.linear_gradient("L").resize(PROBE_SIDES).convert("RGB")
    prompt = Prompt("probe", (LoadedImage(picture), PROBE))
    messages = chat_messages(prompt)
    text = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    expected = encoder.encode(prompt)
    try:
        processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except ImportError as error:
        package = "torchvision" if "orchvision" in str(error) else "a package that it needs"
        return [f"AutoProcessor was not tried: {package} is not installed here"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise other_reading_error(folder, f"{type(error).__name__}: {error}") from error
    read = processor(text=[str(text)], images=[picture], return_tensors="pt")
    if tuple(read["input_ids"][0].tolist()) != expected.ids:
        raise other_reading_error(folder, "its prompt has other tokens")
    for name, values in expected.pixels.items():
        if read[name].shape != values.shape:
            raise other_reading_error(folder, f"its {name} has the shape {list(read[name].shape)}")
    notes = [f"AutoProcessor reads a prompt with a picture as training: {len(expected.ids)} tokens"]
    packages = packages_of(processor)
    return notes + install_notes(packages)


def install_notes(packages: Sequence[str]) -> list[str]:
    """How to install the packages of a processor where the folder is loaded or served.

    torchvision of the package index is a CUDA build: it breaks `import transformers` next to a CPU
    build of torch.
    """
    if not packages:
        return []
    names = " ".join(packages)
    notes = [f"its processor needs {' and '.join(packages)}: pip install {names}"]
    if "torchvision" in packages:
        notes.append(
            "next to a CPU build of torch, install the build of torchvision that belongs to it, in"
            " the way torch was installed: another build breaks `import transformers`"
        )
    return notes


def packages_of(processor: Any) -> list[str]:
    """The packages that a processor needs besides transformers and Pillow."""
    kind = type(processor)
    required = getattr(kind, "__backends", ())
    has_video = getattr(processor, "video_processor", None) is not None
    packages = ["torchvision"] if has_video or "torchvision" in required else []
    # transformers imports num2words in the module of the processor that calls it
    return packages + (["num2words"] if hasattr(sys.modules[kind.__module__], "num2words") else [])


def other_reading_error(folder: Path, why: str) -> ModelError:
    """M120 for a processor that cannot be built, or reads a prompt in another way."""
    return ModelError(
        "M120",
        "the processor of the exported folder does not read a prompt as training did",
        where=str(folder),
        why=" ".join(why.split())[:300],
        fix="copy the processor files of the base model into the student's folder, "
        "then run the same command again",
    )


def weights_bytes(folder: Path) -> int:
    """Bytes of the weights in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))

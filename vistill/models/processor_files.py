"""The files with which transformers builds a model's processor, and how missing ones are replaced.

A training run saves the image processor and the tokenizer. `AutoProcessor` needs more for some
families: the class of the processor, and the video processor. The base model has these files.
"""

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from vistill.errors import ModelError

IMAGE, VIDEO, PROCESSOR = (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
TEMPLATE, OLD_TEMPLATE = "chat_template.jinja", "chat_template.json"
#: Files of a tokenizer, of any kind.
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
#: Processors that need no setting besides their parts, with their video processors. For them
#: missing files can be written: model type -> (processor, video processor).
PLAIN_PROCESSORS = {
    "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen3_vl": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "qwen3_vl_moe": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
}
#: What a video processor shares with the image processor of its model.
SHARED_SETTINGS = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")


def find_model_file(source: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a model folder or a hub id, from the cache or the hub; None if there is none."""
    try:
        found_at = cached_file(
            source,
            name,
            revision=revision or "main",
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:  # no such model
        return None
    return None if found_at is None else Path(found_at)


def copy_processor_files(
    source: str, folder: Path, bases: Sequence[str], model_type: str, revision: str | None = None
) -> list[str]:
    """Copy tokenizer, chat template and processor of a model; take what it lacks from its bases.

    Args:
        source: folder or hub id of the model.
        folder: gets the files.
        bases: the models that it was trained from, the nearest first.
        model_type: of its configuration.
        revision: of the source.

    Returns:
        A note for each file that is not the model's own.

    Raises:
        ModelError: M120, a file is missing and neither a base nor the package has it.
    """
    for name in (*TOKENIZER, TEMPLATE, IMAGE, VIDEO, PROCESSOR):
        file = find_model_file(source, name, revision)
        if file is not None:
            shutil.copyfile(file, folder / name)
    notes = [] if (folder / TEMPLATE).is_file() else copy_template([source, *bases], folder)
    image = image_settings(folder)
    if image is None:
        raise missing_processor_error(source, IMAGE, bases)
    nested = read_object(folder / PROCESSOR)
    if "image_processor" in nested:  # it holds the settings of every part
        return notes
    plain = PLAIN_PROCESSORS.get(model_type)
    for name in (PROCESSOR, VIDEO):
        has_video = "video_processor" in read_object(folder / PROCESSOR)
        if (folder / name).is_file() or (name == VIDEO and has_video):
            continue
        base = next((b for b in bases if find_model_file(b, name) is not None), None)
        if base is not None:
            copy_settings(base, name, folder, image)
            notes.append(f"{name} is that of {base}")
        elif plain is not None:
            content = {"processor_class": plain[0]} if name == PROCESSOR else video(plain[1], image)
            write_object(folder / name, content)
            notes.append(f"{name} was written for {plain[0]}")
    return notes


def copy_template(sources: Sequence[str], folder: Path) -> list[str]:
    """Copy the chat template in its older format; a note, if it is not the model's own."""
    for number, source in enumerate(sources):
        for name in (OLD_TEMPLATE, TEMPLATE):
            file = find_model_file(source, name)
            if file is not None:
                shutil.copyfile(file, folder / name)
                return [f"{name} is that of {source}"] if number else []
    return []


def copy_settings(base: str, name: str, folder: Path, image: dict[str, Any]) -> None:
    """Copy a processor file of a base, with the model's own image settings.

    The base may allow larger images than the model was trained with.
    """
    file = find_model_file(base, name)
    assert file is not None
    content = read_object(file)
    if "image_processor" in content:
        content["image_processor"] = image
    write_object(folder / name, content)


def video(kind: str, image: dict[str, Any]) -> dict[str, Any]:
    """The settings of a video processor. Sizes are the defaults of its class."""
    shared = {name: image[name] for name in SHARED_SETTINGS if name in image}
    return {"video_processor_type": kind, **shared}


def image_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of the image processor, from either place; None if there are none."""
    nested = read_object(folder / PROCESSOR).get("image_processor")
    return nested or read_object(folder / IMAGE) or None


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object; empty if the file is missing.

    Raises:
        ModelError: M120, the file is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise damaged_processor_error(file, str(error)) from error
    if not isinstance(content, dict):
        raise damaged_processor_error(file, "it holds no object")
    return content


def write_object(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON object as transformers does."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def damaged_processor_error(file: Path, why: str) -> ModelError:
    """M120 for a file that is no JSON object."""
    return ModelError(
        "M120",
        f"{file.name} of the model cannot be read",
        where=str(file.parent),
        why=why[:200],
        fix=f"copy {file.name} of its base model into the folder",
    )


def missing_processor_error(source: str, name: str, bases: Sequence[str]) -> ModelError:
    """M120 for a model without the settings of its image processor."""
    base = next((find_model_file(b, name) for b in bases if find_model_file(b, name)), None)
    copy = f"cp {shlex.quote(str(base)) if base else f'FOLDER/{name}'} {shlex.quote(source)}/"
    return ModelError(
        "M120",
        f"the model has no {name}, so AutoProcessor cannot be built",
        where=source,
        why="the image processor decides how a picture becomes tokens; a guess would change them",
        fix=copy if Path(source).is_dir() else "FOLDER_OR_HUB_ID   of a complete model",
    )

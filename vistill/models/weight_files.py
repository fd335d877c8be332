"""Errors of a model's files, and the check of the index of its weights."""

import json
import re
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME
from transformers.utils.hub import cached_file

from vistill.errors import ModelError


def check_index(name: str, revision: str | None) -> None:
    """Raise M107 if the index of sharded weights names anything but safetensors files next to it.

    transformers opens every path in an index, outside the folder too, and unpickles files without
    the suffix `.safetensors`.
    """
    index = cached_file(
        name,
        SAFE_WEIGHTS_INDEX_NAME,
        revision=revision or "main",
        _raise_exceptions_for_missing_entries=False,
    )
    if index is None:
        return
    try:
        files = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise unreadable_model_error(
            name, f"its index of weights cannot be read: {error}"
        ) from error
    invalid = sorted(str(f) for f in files if not re.fullmatch(r"[\w.-]+\.safetensors", str(f)))
    if invalid:
        raise unreadable_model_error(
            name,
            f"its index of weights names {invalid[0]!r}, which is not a safetensors file in it",
        )


def unreadable_model_error(name: str, why: str) -> ModelError:
    """M107."""
    return ModelError(
        "M107",
        "the model's weights cannot be read",
        where=name,
        why=why[:300],
        fix="download the model again; only safetensors are read, others need save_pretrained",
    )


def invalid_config_error(name: str, error: StrictDataclassError) -> ModelError:
    """M104 for a configuration that transformers refuses."""
    return ModelError(
        "M104",
        "the model's configuration is not valid",
        where=f"{name}/config.json",
        why=" ".join(str(error).split())[:300],
        fix="correct config.json, or download the model again",
    )

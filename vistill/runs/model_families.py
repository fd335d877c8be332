"""Which family reads a model, from `config.json` alone. Needs no torch.

A model type with an adapter of its own in the registry uses that. Every other model type of
`AutoModelForImageTextToText` uses `generic`, except those for which it cannot work.
"""

import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vistill.errors import ModelError
from vistill.registry import families

#: Model types whose processor has a setting that keeps images small, by the kind of setting.
PIXEL_AREA = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
FRAME_AREA = ("glm4v", "glm4v_moe", "glm46v")
LONGEST_EDGE = ("pixtral", "mistral3")
CROPS = ("internvl",)
SPLITS = ("smolvlm", "idefics3")
WITH_LIMIT = (*PIXEL_AREA, *FRAME_AREA, *LONGEST_EDGE, *CROPS, *SPLITS)
#: The table of transformers that names the class of each image-text model type.
NAMES_TABLE = re.compile(
    r"^MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES = OrderedDict\($(.*?)^\)$", re.M | re.S
)
#: The adapter of model types without one of their own.
GENERIC = "generic"
NO_ENCODER_OUTPUTS = "its model does not take encoded images (`mm_encoder_outputs`)"
OTHER_LAYOUT = "it is not a base model with a head on its hidden states"
TWO_STACKS = "it is an encoder with a decoder, and responses are no continuation of the prompt"
#: Model types that `generic` cannot read, with the reason.
UNSUPPORTED = {
    **dict.fromkeys(
        (
            "evolla", "git", "idefics", "kosmos-2", "kosmos-2.5", "mistral4", "mllama",
            "pp_formulanet",
        ),
        NO_ENCODER_OUTPUTS,
    ),
    **dict.fromkeys(
        ("blip", "florence2", "pix2struct", "t5gemma2", "udop", "vision-encoder-decoder"),
        TWO_STACKS,
    ),
    **dict.fromkeys(
        ("blip-2", "instructblip", "instructblipvideo", "llama4", "nemotron_h_omni", "pi0"),
        OTHER_LAYOUT,
    ),
}  # fmt: skip


def family_name(model_type: str) -> str:
    """The name in the registry of the adapter of a model type."""
    return model_type if model_type in families else GENERIC


def describe_family(model_type: str) -> str:
    """The adapter of a model type in words: `qwen3_vl`, `generic (llava)`."""
    name = family_name(model_type)
    return name if name == model_type else f"{name} ({model_type})"


def check_family(config: Mapping[str, Any], where: str, role: str = "model") -> str:
    """The adapter of a model in words, from its configuration (M105 if there is none)."""
    model_type = str(config.get("model_type"))
    if model_type not in families:
        if model_type in UNSUPPORTED:
            raise unsupported_family_error(where, model_type, UNSUPPORTED[model_type], role)
        if not has_images(config):
            why = "its configuration has no vision tower: it reads text only"
            raise unsupported_family_error(where, model_type, why, role)
    return describe_family(model_type)


@cache
def transformers_types() -> frozenset[str]:
    """The image-text model types of the installed transformers, read without importing it.

    Empty where its table has another form.
    """
    spec = importlib.util.find_spec("transformers")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else Path()
    file = folder / "models" / "auto" / "modeling_auto.py"
    table = NAMES_TABLE.search(file.read_text(encoding="utf-8")) if file.is_file() else None
    return frozenset(re.findall(r"\(\"([\w.-]+)\", ", table[1])) if table else frozenset()


def check_known_type(config: Mapping[str, Any], where: str, role: str = "model") -> None:
    """M105 for a model type that the installed transformers has no image-text class for."""
    model_type = str(config.get("model_type"))
    known = transformers_types()
    if known and model_type not in known and model_type not in families:
        why = f"transformers {version('transformers')} has no image-text model of this type"
        raise unsupported_family_error(where, model_type, why, role)


def has_token_limit(config: Mapping[str, Any]) -> bool:
    """Whether `data.max_image_tokens` can make the images of a model smaller."""
    model_type, vision = str(config.get("model_type")), config.get("vision_config")
    tower = vision.get("model_type") if isinstance(vision, Mapping) else None
    return model_type in WITH_LIMIT or (model_type == "llava" and tower == "pixtral")


def has_images(config: Mapping[str, Any]) -> bool:
    """Whether a configuration describes a model with a vision tower."""
    return any("vision" in key or "image" in key for key in config)


def unsupported_family_error(where: str, model_type: str, why: str, role: str) -> ModelError:
    """M105."""
    key = "" if role == "model" else f"{role}.model="
    return ModelError(
        "M105",
        f"the family {model_type!r} cannot be read",
        where=where,
        why=why,
        fix=f"{key}FOLDER_OR_HUB_ID   of another family, such as Qwen/Qwen3-VL-2B-Instruct",
        note="an adapter of your own: docs/extending.md, A model family",
    )

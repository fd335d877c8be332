"""Load the student as `student.train` says: all weights, or adapters on frozen ones."""

from typing import TYPE_CHECKING, Any

import torch

from vistill.errors import ConfigError, quote_setting
from vistill.lora_settings import LoraSettings
from vistill.models.adapters import (
    adapter_parameters,
    add_adapters,
    differing_settings,
    has_adapters,
    is_adapted_layer,
    merge_adapters,
)
from vistill.models.loading import VLM, PromptEncoder, load_weights
from vistill.models.quantization import num_parameters
from vistill.runs.model_not_found import model_name
from vistill.training.checks.check import TRAINING_PURPOSES
from vistill.training.optimizer_bytes import HALF_PRECISIONS
from vistill.training.precision import training_dtype
from vistill.training.recipe import QUANTIZED, Recipe

if TYPE_CHECKING:
    from vistill.training.setup import RunSetup


def load_student(setup: "RunSetup", encoder: PromptEncoder, device: str) -> VLM:
    """The student with adapters where the recipe trains adapters.

    Under LoRA the frozen weights have the precision of a step: bf16 where it runs in bf16. Adapters
    are float32. A folder of adapters as the student continues with them; training in full merges
    them first.

    Raises:
        MissingExtraError: E301, peft is not installed.
        ConfigError: C101, the folder's adapters have other settings; C111, a target without layers.
    """
    settings, is_trained = setup.recipe.student, setup.purpose in TRAINING_PURPOSES
    if settings.train == "full":
        vlm = load_weights(encoder, device=device, **loading_options(setup.recipe, device))
        if has_adapters(vlm.model) and is_trained:
            merge_adapters(vlm.model)
            vlm.model.requires_grad_(True)
        return vlm
    vlm = load_weights(encoder, device=device, **loading_options(setup.recipe, device))
    if not has_adapters(vlm.model):
        return add_adapters(vlm, settings.lora, setup.seed, model_name(vlm.source))
    if is_trained:
        check_same_settings(vlm, settings.lora)
    return vlm


def loading_options(recipe: Recipe, device: str) -> dict[str, Any]:
    """What `load_weights` needs for the student of a recipe: `dtype` and `quantization`."""
    precision = recipe.student.precision
    if recipe.student.train == "full":
        return {"dtype": torch.bfloat16 if precision in HALF_PRECISIONS else torch.float32}
    return {
        "dtype": training_dtype(recipe.train, torch.device(device)),
        "quantization": precision if precision in QUANTIZED else "",
    }


def check_same_settings(vlm: VLM, settings: LoraSettings) -> None:
    """C101 if the adapters of the student's folder have other settings than the recipe."""
    differing = differing_settings(vlm, settings)
    if not differing:
        return
    same = " ".join(quote_setting(f"student.lora.{k}", value) for k, value in differing.items())
    raise ConfigError(
        "C101",
        "student.lora differs from the adapters of the student",
        where=vlm.source,
        why="; ".join(
            f"{key} is {getattr(settings, key)}, of the adapters {value or 'no list of parts'}"
            for key, value in differing.items()
        ),
        fix=same if all(differing.values()) else "student.train=full",
        note="student.train=full merges the adapters and trains all weights",
    )


def describe_adapters(vlm: VLM) -> str:
    """The adapters of a student in words; empty if it has none."""
    if not has_adapters(vlm.model):
        return ""
    layers = sum(map(is_adapted_layer, vlm.model.modules()))
    trained = sum(p.numel() for p in adapter_parameters(vlm.model).values())
    total = num_parameters(vlm.model)
    return f"; LoRA on {layers} layers: {trained:,} of {total:,} parameters are trained"

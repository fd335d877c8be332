"""`vistill.load`: a model for Python, tested as a run tests it."""

from pathlib import Path
from typing import Any

import torch

from vistill.lora_settings import LoraSettings
from vistill.models.adapters import add_adapters, is_adapter_folder
from vistill.models.backends import with_kernels
from vistill.models.loading import VLM, load_vlm, teacher_dtype
from vistill.models.selftest import run_selftest
from vistill.python_fixes import in_python
from vistill.runs.chosen_student import resolve_model
from vistill.runs.model_not_found import model_name
from vistill.runtime import fix_cublas_workspace, quiet_libraries
from vistill.training.checks.arguments import check_source
from vistill.training.checks.devices import choose_device
from vistill.training.precision import training_dtype
from vistill.training.recipe import Recipe
from vistill.training.settings import TrainSettings


@in_python("load")
def load(
    source: str | Path,
    *,
    frozen: bool = False,
    device: str = "auto",
    lora: LoraSettings | None = None,
    **options: Any,
) -> VLM:
    """Load a model: a folder, a hub id, or a run folder (its best student).

    Args:
        source: of the model.
        frozen: for a teacher.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        lora: adds adapters, so that `distill` trains only these. The weights that it keeps have
            the precision of a step, as in a recipe: bf16 on a CUDA device.
        **options: `dtype`, `revision`, `max_image_tokens`.
    """
    source = check_source(source)
    quiet_libraries()
    fix_cublas_workspace()
    where = choose_device(device)
    folder = resolve_model(source)
    has_lora = lora is not None or is_adapter_folder(folder)
    options.setdefault("dtype", default_dtype(where, frozen, has_lora))
    loaded = load_vlm(folder, device=where, **options)
    if lora is not None:
        loaded = add_adapters(loaded, lora, Recipe.seed, model_name(loaded.source))
    vlm = with_kernels(run_selftest(loaded, "teacher" if frozen else "student"), "auto")
    return vlm.freeze() if frozen else vlm


def default_dtype(device: str, frozen: bool, lora: bool) -> torch.dtype:
    """The precision of weights that a recipe would give them: trained weights are float32.

    Args:
        device: of the model.
        frozen: whether it is a teacher.
        lora: whether it is a student with adapters, which has the precision of a step.
    """
    if frozen:
        return teacher_dtype(device)
    return training_dtype(TrainSettings(), torch.device(device)) if lora else torch.float32

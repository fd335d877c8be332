"""vistill: on-policy distillation that makes a vision-language student use the image.

    run = vistill.train("recipe.yaml", overrides={"train.lr": 2e-6})
    run = vistill.distill(student, teacher, prompts, vistill.VAOPD(), out="runs/mine")
    va = vistill.visual_advantage(teacher, prompts[:8], responses)

Names are imported on first use, so that `import vistill` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "train": "vistill.api",
    "distill": "vistill.api",
    "visual_advantage": "vistill.api",
    "load": "vistill.training.load_model",
    "load_prompts": "vistill.api",
    "evaluate": "vistill.api",
    "generate": "vistill.studies.generate",
    "judge": "vistill.data.judging",
    "replay": "vistill.studies.replay",
    "Run": "vistill.api",
    "DistillOptions": "vistill.api",
    "TokenAdvantage": "vistill.display.heatmaps",
    "load_recipe": "vistill.config",
    "Recipe": "vistill.config",
    "TrainSettings": "vistill.training.settings",
    "ScheduleSettings": "vistill.training.settings",
    "SaveSettings": "vistill.training.settings",
    "RewardSettings": "vistill.training.settings",
    "RolloutSettings": "vistill.rollouts.settings",
    "EvalSettings": "vistill.evaluation.settings",
    "VLLMSettings": "vistill.rollouts.settings",
    "ServerSettings": "vistill.rollouts.settings",
    "ViewSettings": "vistill.views.settings",
    "DataSettings": "vistill.data.settings",
    "METHODS": "vistill.objectives",
    "SFT": "vistill.objectives",
    "KD": "vistill.objectives",
    "OPD": "vistill.objectives",
    "VAOPD": "vistill.objectives",
    "VGS": "vistill.objectives",
    "VisualOPSD": "vistill.objectives",
    "GRPO": "vistill.objectives",
    "PAPO": "vistill.objectives",
    "Objective": "vistill.batch",
    "Requirements": "vistill.batch",
    "load_plugins": "vistill.registry",
    "Prompt": "vistill.types",
    "Verdict": "vistill.answers.verdict",
    "LoraSettings": "vistill.lora_settings",
    "View": "vistill.types",
    "VistillError": "vistill.errors",
}

__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vistill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

"""The same run on the tiny models of the package: what changes, and nothing else.

Method, knobs, optimizer, schedule, sampling temperature, number of rollouts and the rule for the
checkpoint stay. Models, data, lengths, batch, steps and the learning rate change. Needs no torch.
"""

from collections.abc import Collection, Mapping
from typing import Any

from vistill.config import build_recipe, override
from vistill.runs.model_not_found import looks_like_hub_id
from vistill.training.recipe import Recipe

#: Models of the papers that the tiny teacher stands for, also where they are trained.
LARGE = ("-8B-", "-32B-")
#: Settings of every tiny run.
SETTINGS: dict[str, Any] = {
    "data.train": "diagrams",
    "data.eval": "",
    "data.holdout": 0,
    "data.limit": None,
    "data.diagrams.train": 32,
    "data.diagrams.eval": 32,
    "data.min_pixels": None,
    "data.max_pixels": None,
    "data.max_image_tokens": None,
    "rollout.max_new_tokens": 96,
    "rollout.all_truncated": "go_on",
    "train.prompts_per_step": 4,
    "train.steps": 2,
    "train.lr": 3e-4,
    "save.every": 1,
    "save.keep": 1,
    "eval.every": 1,
    "eval.limit": 8,
    "eval.final_limit": 8,
    "eval.extra_limit": 4,
    "eval.samples": 1,
    "eval.reading": False,
    "eval.max_new_tokens": 96,
    "eval.heatmaps": 2,
}
#: The same of each data set of a mixture.
OF_SET: dict[str, Any] = {
    "train": "diagrams",
    "eval": "",
    "holdout": 0,
    "limit": None,
    "min_pixels": None,
    "max_pixels": None,
}


def make_tiny(recipe: Recipe, kept: Collection[str] = ()) -> Recipe:
    """The run on tiny models and diagrams.

    Args:
        recipe: at the paper's settings.
        kept: keys that stay as they are.
    """
    settings = tiny_settings(recipe)
    return with_settings(recipe, {k: value for k, value in settings.items() if k not in kept})


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with other settings, checked like a file."""
    tree = recipe.to_dict()
    override(tree, settings)
    return build_recipe(tree)


def tiny_settings(recipe: Recipe) -> dict[str, Any]:
    """What a tiny run sets."""
    settings = dict(SETTINGS)
    thoughts = bool(recipe.data.columns.thoughts)
    settings["data.diagrams.options.thoughts"] = thoughts
    for name in recipe.data.sets:
        settings |= {f"data.sets.{name}.{key}": value for key, value in OF_SET.items()}
    if recipe.data.sets:
        settings["data.train"] = recipe.data.train
    models = {"student": recipe.student, "teacher": recipe.teacher}
    models |= {f"teachers.{name}": one for name, one in recipe.teachers.items()}
    for role, one in models.items():
        if one.model and looks_like_hub_id(one.model):
            settings[f"{role}.model"] = tiny_model(one.model, role, thoughts)
            settings[f"{role}.revision"] = None
    if recipe.method == "visual_opsd":
        # too few rows for a sure answer; the gate has its own tests
        settings["visual_opsd.gate"] = False
    return settings


def tiny_model(name: str, role: str, thoughts: bool) -> str:
    """The tiny model for one of a hub: the base reads thoughts, the teacher is the large one."""
    if thoughts:
        return "vistill:base"
    large = role != "student" or any(size in name for size in LARGE)
    return "vistill:teacher" if large else "vistill:student"

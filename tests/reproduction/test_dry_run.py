"""Every recipe at a paper's settings: parsed, planned, built without data, and one tiny step."""

import json
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from conftest import REPO
from tiers import few
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from vistill.api import train
from vistill.config import load_stages
from vistill.planning.meta import count_parts
from vistill.planning.shapes import MODELS, shipped_shapes
from vistill.reproduction.tiny import make_tiny
from vistill.runs.model_not_found import looks_like_hub_id
from vistill.studies.plan import PlanOptions, plan_stages

pytestmark = pytest.mark.usefixtures("without_canary")
STAGES = [
    (file.name, stage)
    for file in sorted(REPO.glob("recipes/*.yaml"))
    for stage, recipe in load_stages(file).items()
    if recipe.student.model.startswith("Qwen/")
]
#: One of each paper in the first tier.
FIRST = [
    STAGES.index(pair)
    for pair in (
        ("paper_va_opd.yaml", "va_opd"),
        ("paper_vgs.yaml", "vgs_2b"),
        ("paper_visual_opsd.yaml", "visual_opsd"),
    )
]
#: Settings of one step without evaluation.
STEP = {"train.steps": 1, "train.prompts_per_step": 4, "eval.every": 0, "save.every": 0}


@cache
def plans_of(file):
    """The plans of a recipe."""
    return plan_stages(file, (), PlanOptions())


@cache
def parameters_on_meta(name):
    """Parameters of a published model, its tensors built without data."""
    for file in MODELS.glob("*.json"):
        entry = json.loads(file.read_text())
        if name in entry["names"]:
            config = {k: v for k, v in entry["config"].items() if k != "model_type"}
            with torch.device("meta"):
                model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config))
            model.tie_weights()
            return count_parts(model).total
    raise KeyError(name)


@pytest.mark.parametrize(("file", "stage"), few(STAGES, *FIRST))
def test_a_recipe_at_a_papers_settings_makes_a_step_on_tiny_models(file, stage, tmp_path):
    recipe = load_stages(file)[stage]
    plan = plans_of(file)["run" if "run" in plans_of(file) else stage]
    assert plan.cost.steps
    for shape in (plan.student, plan.teacher):
        if shape is not None:
            assert shape.parameters.total == shipped_shapes()[shape.name].parameters.total
            assert shape.parameters.total == parameters_on_meta(shape.name)
    tiny = make_tiny(replace(recipe, run=str(tmp_path / "run")))
    changes = dict(STEP)
    if recipe.teacher.model and not looks_like_hub_id(recipe.teacher.model):
        changes["teacher.model"] = "vistill:teacher"  # of another stage
    run = train(tiny, changes, progress=lambda record: None)
    (step,) = run.metrics
    assert math.isfinite(step["loss"])
    assert step["finite"] == 1.0 or step["finite"] is True
    assert (run.student / "config.json").is_file()

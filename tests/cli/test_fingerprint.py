"""Every key of the recipe, changed alone on resume: the class of the key decides."""

import dataclasses
import typing

import pytest

from vistill.config import Recipe, compare_recipes, flatten, key_class, load_recipe
from vistill.errors import ConfigError

CLASSES = {
    "free": {
        "run", "profile", "save.every", "save.keep", "save.keep_best", "save.journal",
        "save.background", "save.shard_gb",
        "eval.every", "eval.limit", "train.micro_batch", "train.memory", "train.kernels",
        "train.attention", "train.offload_teacher", "train.gradient_checkpointing",
        "train.workers", "train.overlap",
        "rollout.rows_per_call", "rollout.vllm.cache_gb",
        "rollout.vllm.max_length", "rollout.vllm.images", "rollout.vllm.timeout",
        "rollout.server.url", "rollout.server.model", "rollout.server.precision",
        "rollout.server.timeout",
        "rollout.all_truncated", "data.max_bad_share", "data.images", "data.on_bad_row",
        "data.overlap", "data.benchmarks", "data.evaluation_only", "student.device",
        "teacher.device",
    },
    "schedule": {
        "train.lr", "train.epochs", "train.steps", "train.schedule.kind", "train.schedule.warmup",
        "train.schedule.min_lr", "rollout.engine", "train.teacher_scorer",
    },
    "identity": {
        "seed", "method", "student.model", "student.revision", "teacher.model", "teacher.revision",
        "data.train", "data.template", "data.columns.prompt", "rollout.per_prompt",
        "rollout.temperature", "rollout.top_p", "rollout.max_new_tokens", "train.prompts_per_step",
        "train.weight_decay", "train.clip_norm", "train.freeze", "train.precision",
        "views.pixelate", "reward.accuracy",
    },
}  # fmt: skip


def recipe_tree(**changes):
    """A recipe as plain values, some of them changed."""
    tree = load_recipe("opd_qwen3vl_8b_to_2b.yaml", {"run": "R"}).to_dict()
    for key, value in changes.items():
        *path, last = key.split("__")
        node = tree
        for part in path:
            node = node[part]
        node[last] = value
    return tree


@pytest.mark.parametrize(
    ("kind", "key"), [(kind, key) for kind, keys in CLASSES.items() for key in sorted(keys)]
)
def test_a_changed_key_is_silent_asked_for_or_refused_as_its_class_says(kind, key):
    old = recipe_tree()
    assert key in flatten(old), f"{key} is no key of a recipe"
    new = recipe_tree(**{key.replace(".", "__"): "another"})
    if kind == "free":
        assert compare_recipes(old, new) == []
        return
    with pytest.raises(ConfigError) as caught:
        compare_recipes(old, new)
    assert caught.value.code == "C201"
    assert key in caught.value.why
    if kind == "schedule":
        assert compare_recipes(old, new, [key]) == [key]
    else:
        with pytest.raises(ConfigError):
            compare_recipes(old, new, [key])


def keys_of(kind, prefix=""):
    """Every key of the settings below a dataclass."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            yield from keys_of(hints[field.name], f"{name}.")
        else:
            yield name


def test_only_keys_that_were_thought_of_are_free_or_schedule():
    lenient = {
        key
        for key in keys_of(Recipe)
        if key_class(key) != "identity" and not key.startswith("eval.")
    }
    assert lenient == {
        key for key in CLASSES["free"] | CLASSES["schedule"] if not key.startswith("eval.")
    }


def test_keys_of_later_versions_leave_the_fingerprint_of_a_run_that_does_not_use_them():
    # The recipe did not name pixel limits when this fingerprint was taken.
    before = {"run": "R", "data.min_pixels": None, "data.max_pixels": None}
    for change, is_same in (
        ({}, True),
        ({"reward.extra.format": 0.5}, False),
        ({"data.min_pixels": 4096}, False),
        ({"data.max_pixels": 4096}, False),
        ({"data.index_base": 1}, False),
        ({"rollout.noise": "counter"}, False),
    ):
        recipe = load_recipe("opd_qwen3vl_8b_to_2b.yaml", before | change)
        assert (recipe.fingerprint() == "463cdeb93f893547") == is_same

"""Mistakes in a recipe file: the fix changes the file, or what is pasted wins over it."""

import os

from fix_cases import RECIPE, RECIPE_FILE, situation, start
from fix_cases_recipe import STAGES

import vistill

BLOCK = RECIPE.replace(
    "rollout: {per_prompt: 2, max_new_tokens: 8}",
    "rollout:\n  per_promt: 2\n  # a comment\n  max_new_tokens: 8",
)


@situation("C001", first=True)
def a_key_of_a_block_is_misspelt(place):
    start(place, recipe=BLOCK)


@situation("C001", first=True)
def a_key_stands_in_another_group(place):
    start(place, recipe=RECIPE + "per_prompt: 3\n")


@situation("C001")
def a_key_in_braces_stands_in_another_group(place):
    start(place, recipe=RECIPE.replace("{every: 0}", "{every: 0, weight_decay: 0.1}"))


@situation("C001")
def a_misspelt_key_stands_next_to_the_right_one(place):
    start(place, recipe=RECIPE.replace("per_prompt: 2,", "per_prompt: 2, per_promt: 4,"))


@situation("C001")
def a_misspelt_group_stands_next_to_the_right_one(place):
    start(place, recipe=RECIPE + "trian:\n  weight_decay: 0.1\n  steps: 1\n")


@situation("C001")
def a_key_of_the_file_is_like_no_other(place):
    start(place, recipe=RECIPE + "zebra:\n  stripes: 7\n  colours: [black, white]\n")


@situation("C001")
def a_key_of_the_file_has_dots(place):
    start(place, recipe=RECIPE + "train.weight_decay: 0.1\n")


@situation("C001", first=True)
def a_key_of_a_stage_is_misspelt(place):
    start(place, recipe=STAGES.replace("{method: opd}", "{method: opd, train: {lrr: 2e-4}}"))


@situation("C001")
def a_key_of_a_stage_stands_in_another_group(place):
    start(place, recipe=STAGES.replace("{method: opd}", "{method: opd, weight_decay: 0.1}"))


def start_toml(place, text):
    start(place)
    place.write("rezept ö.toml", text)
    place.line = "vistill check 'rezept ö.toml' --fast"


@situation("C001")
def a_key_in_braces_of_toml_is_misspelt(place):
    """No command repairs it."""
    start_toml(place, "rollout = {per_promt = 2}\n" + TOML.partition("[rollout]")[0])


@situation("C001")
def a_key_in_braces_of_toml_stands_in_another_group(place):
    start_toml(place, "eval = {weight_decay = 0.1}\n" + TOML.partition("[rollout]")[0])


@situation("C001")
def a_group_of_toml_is_misspelt(place):
    start_toml(place, TOML.replace("[rollout]\nper_promt", "[rolout]\nper_prompt"))


@situation("C001")
def a_recipe_in_toml_has_a_misspelt_key(place):
    start_toml(place, TOML)


@situation("C001")
def a_recipe_cannot_be_written(place):
    start(place, recipe=BLOCK)
    can_access = os.access

    def read_only(patch):
        patch.setattr(os, "access", lambda path, mode: mode != os.W_OK and can_access(path, mode))

    place.patches = [read_only]


@situation("C001", first=True)
def a_mapping_of_overrides_has_a_misspelt_key(place):
    start(place)
    place.raises = lambda place: vistill.load_recipe(RECIPE_FILE, {"train.lrr": 1e-5})


@situation("C105", first=True)
def a_reward_of_the_file_is_misspelt(place):
    plugin = "from vistill.registry import rewards\n@rewards.register('short')\n"
    place.write(
        "mein plugin ß.py",
        plugin + "def short(response, prompt, settings, math):\n    return 0.0\n",
    )
    recipe = RECIPE.replace("va_opd", "grpo") + "reward: {extra: {shart: 0.5}}\n"
    start(place, "--plugin 'mein plugin ß.py'", recipe=recipe)


@situation("C002")
def a_value_of_the_file_is_a_text(place):
    start(place, recipe=RECIPE.replace("lr: 1e-4", "lr: 1e-4x"))


@situation("C002")
def a_value_of_a_stage_is_a_text(place):
    start(place, recipe=STAGES.replace("{method: opd}", "{method: opd, train: {lr: fast}}"))


@situation("C002")
def a_group_of_the_file_is_a_number(place):
    start(place, recipe=RECIPE.replace("{every: 0}", "5"))


@situation("C103")
def the_file_asks_for_one_rollout(place):
    start(place, recipe=RECIPE.replace("per_prompt: 2", "per_prompt: 1"))


TOML = """\
run = "läufe/erster lauf"
method = "va_opd"
[student]
model = "vistill:student"
[teacher]
model = "vistill:teacher"
[data]
train = "daten 1/zeilen ü.jsonl"
images = "bilder é"
[rollout]
per_promt = 2
[train]
prompts_per_step = 2
"""

"""A run that an earlier version started keeps what `auto` meant to that version."""

import json

from vistill.config import load_recipe
from vistill.runs.folder import RunFolder
from vistill.training.build import make_setup
from vistill.training.checks.models import configured
from vistill.training.kept_settings import EARLIER_MEANING
from vistill.training.run_lock import lock_recipe, read_lock


def settings_of(setup):
    return {
        "train.optimizer": setup.train.optimizer,
        "train.head_precision": setup.train.head_precision,
        "rollout.weights": setup.rollout.weights,
    }


def start(path):
    recipe = load_recipe("opd_qwen3vl_8b_to_2b.yaml", [f"run={path}"])
    folder = RunFolder(path)
    lock_recipe(folder, recipe, ())
    return make_setup(recipe, folder), folder


def begin(folder):
    """One line of metrics: the run has started."""
    folder.metrics.write_text('{"step": 1}\n')


def forget_new_keys(folder):
    """The lock as a version without the keys wrote it."""
    lock = read_lock(folder)
    for key in EARLIER_MEANING:
        group, _, name = key.rpartition(".")
        del lock["recipe"][group][name]
    lock.pop("kept")
    folder.lock_file.write_text(json.dumps(lock))


def test_a_run_of_an_earlier_version_keeps_its_numbers_at_every_later_start(tmp_path):
    _, folder = start(tmp_path)
    begin(folder)
    forget_new_keys(folder)
    for _ in range(3):
        setup, _ = start(tmp_path)
        assert settings_of(setup) == EARLIER_MEANING
        assert setup.recipe.train.optimizer == "auto"  # the fingerprint is that of the recipe


def test_a_run_of_this_version_takes_what_auto_means_today(tmp_path):
    for _ in range(2):
        setup, folder = start(tmp_path)
        assert set(settings_of(setup).values()) == {"auto"}
        begin(folder)


def test_a_key_that_the_run_knew_is_not_kept(tmp_path):
    _, folder = start(tmp_path)
    begin(folder)
    lock = read_lock(folder)
    del lock["recipe"]["train"]["optimizer"]
    folder.lock_file.write_text(json.dumps(lock))
    setup, _ = start(tmp_path)
    expected = {"train.optimizer": "adamw", "train.head_precision": "auto"}
    assert settings_of(setup) == {**expected, "rollout.weights": "auto"}


def test_models_are_configured_with_what_the_run_keeps(tmp_path, student):
    setup, _ = start(tmp_path)
    assert configured(setup, student, "student").head_precision == "fp32"
    setup.kept = {"train.head_precision": "bf16"}  # a value that a CPU does not choose by itself
    assert configured(setup, student, "student").head_precision == "bf16"

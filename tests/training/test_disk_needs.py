"""What a run needs of its disk, before step 1: plan, check and train count the same."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from plans import make_setup_from
from training.test_loop import make_plan, run_plan

from vistill.errors import StorageError
from vistill.lora_settings import LoraSettings
from vistill.models.adapters import add_adapters
from vistill.models.loading import load_vlm
from vistill.planning.shapes import shape_of_config
from vistill.runs.chosen_student import resolve_model
from vistill.runs.folder import RunFolder, checkpoints_in
from vistill.studies.check import disk_finding
from vistill.training.checkpoint import newest_checkpoint
from vistill.training.checkpoint_content import bytes_to_save
from vistill.training.checks.disk import bytes_in, needs_of_run
from vistill.training.disk_needs import DiskNeeds, size_text
from vistill.training.models_of_run import Models
from vistill.training.recipe import Recipe, StudentSettings
from vistill.training.settings import SaveSettings, TrainSettings


def needs(steps=None, evaluate_every=0, **save):
    """The needs of a run whose checkpoint has 100 bytes."""
    settings = SaveSettings(**{"every": 10, "keep": 2, **save})
    return DiskNeeds(100.0, settings, evaluate_every, steps, tokens_of_step=3)


def test_the_newest_the_best_and_the_next_checkpoint_exist_at_a_time():
    assert needs().checkpoints == 300
    assert needs(evaluate_every=5).checkpoints == 400
    assert needs(evaluate_every=5, keep_best="none").checkpoints == 300
    assert needs(evaluate_every=5, keep=9).checkpoints == 1100
    assert needs(steps=10, keep=9).checkpoints == 200  # a run of ten steps saves once
    assert needs(steps=40, every=0, keep=9).checkpoints == 200
    assert needs().total == 320 + needs().journal


def test_the_journal_is_bounded_by_the_checkpoints_that_stay():
    bytes_of_step = 8 * 3
    assert needs().journal == 30 * bytes_of_step
    assert needs(background=False).journal == 20 * bytes_of_step
    assert needs(steps=7).journal == 7 * bytes_of_step
    assert needs(steps=1000).journal == 30 * bytes_of_step
    assert needs(steps=1000, every=0).journal == 1000 * bytes_of_step
    assert needs(journal=False).journal == 0


def test_the_line_names_a_checkpoint_how_many_stay_and_all_bytes():
    assert needs(evaluate_every=5).describe() == (
        "0.0 MB per checkpoint; the newest 2, the best and the next one need 0.0 MB, "
        "the journal 0.0 MB"
    )
    assert size_text(25.53e9) == "25.5 GB"


@pytest.fixture
def free(monkeypatch):
    """Set the free bytes of the disk."""

    def set_free(size):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size))

    return set_free


def test_a_disk_too_small_is_refused_before_step_1_with_settings_that_fit(
    tokenizer, teacher, tmp_path, free
):
    plan, folder, records = make_plan(tokenizer, teacher, stop_after=1), RunFolder(tmp_path), []
    plan = replace(plan, progress=records.append, save=SaveSettings(every=2, keep=3))
    setup = make_setup_from(plan, folder)
    setup.loaded_models, setup.train_prompts = plan.models, plan.train_prompts
    needed = needs_of_run(setup)
    free(needed.total - 1)
    with pytest.raises(StorageError) as caught:
        run_plan(plan, folder)
    assert caught.value.code == "C131"
    assert caught.value.fix == "save.keep=1 save.keep_best=none   or   run=OTHER_FOLDER"
    assert not folder.has_started()
    free(needed.with_fewest_checkpoints().total)
    fewest = SaveSettings(every=2, keep=1, keep_best="none")
    run_plan(replace(plan, save=fewest), folder)
    lines = [r["event"] for r in records if r.get("event", "").startswith("disk: ")]
    assert len(lines) == 1
    assert "the newest 1 and the next one need" in lines[0]
    assert lines[0] in folder.events.read_text()


def test_checkpoints_that_a_run_has_count_as_free_space_when_it_continues(
    tokenizer, teacher, tmp_path, free
):
    folder = RunFolder(tmp_path)
    run_plan(make_plan(tokenizer, teacher, stop_after=5), folder)
    plan = make_plan(tokenizer, teacher, stop_after=5)
    setup = make_setup_from(plan, folder)
    setup.loaded_models, setup.train_prompts = plan.models, plan.train_prompts
    there = bytes_in(folder)
    assert there > sum(f.stat().st_size for f in newest_checkpoint(folder).rglob("*.safetensors"))
    free(needs_of_run(setup).total - there)
    run_plan(plan, folder)
    free(needs_of_run(setup).total - there - 1000)
    with pytest.raises(StorageError) as caught:
        run_plan(make_plan(tokenizer, teacher), folder)
    assert caught.value.code == "C131"
    assert checkpoints_in(tmp_path)


def test_the_shape_of_a_model_gives_the_bytes_that_a_run_counts(tokenizer, teacher, tmp_path):
    plan = make_plan(tokenizer, teacher)
    student = plan.models.student
    plan = replace(plan, models=Models(student, teacher, student.vocabulary_size))
    setup = make_setup_from(plan, RunFolder(tmp_path))
    setup.loaded_models, setup.train_prompts = plan.models, plan.train_prompts
    shape = shape_of_config(student.model.config.to_dict(), "tiny")
    assert needs_of_run(setup).checkpoint == pytest.approx(12 * shape.parameters.total, rel=0.05)


@pytest.mark.parametrize("method", ["opd", "visual_opsd"])
def test_the_fast_check_counts_the_checkpoints_of_a_lora_run(tmp_path, free, method):
    student = StudentSettings(
        "vistill:student", train="lora", lora=LoraSettings(targets=("language", "vision"))
    )
    train = TrainSettings(steps=4, freeze=("vision",))
    recipe = Recipe(str(tmp_path / "x"), student, method, train=train)
    folder = RunFolder(tmp_path / "x")
    vlm = load_vlm(resolve_model("vistill:student"))
    vlm = add_adapters(vlm, recipe.student.lora, 0, "tiny")
    real = bytes_to_save(vlm, recipe.train.freeze, 1 + (method == "visual_opsd"))
    free(10 * real)  # a checkpoint of all weights would need more
    line = disk_finding(recipe).summary
    assert line.startswith(f"{size_text(real)} per checkpoint")
    assert not folder.path.exists()

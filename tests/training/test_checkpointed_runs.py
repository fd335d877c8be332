"""Runs with gradient checkpointing: the same logs and weights to the bit, also after a resume."""

from dataclasses import replace

import pytest
import torch
from conftest import build_model
from tiers import few
from training.test_loop import logged_text, make_plan, run_plan

from vistill.flops_counter import counting
from vistill.lora_settings import LoraSettings
from vistill.models.adapters import add_adapters
from vistill.models.checkpointing import is_checkpointing, set_checkpointing
from vistill.models.scoring import EncodedGroup, open_reading
from vistill.objectives import METHODS, OPD, VGS
from vistill.runs.folder import RunFolder
from vistill.training.checkpoint import weights_hash
from vistill.training.micro_batches import BatchSplit
from vistill.training.models_of_run import Models

pytestmark = pytest.mark.usefixtures("without_canary")
METHODS_TESTED = {
    "va_opd": None,
    "vgs": VGS(),
    "visual_opsd": METHODS["visual_opsd"](gate=False, ema_decay=0.7),
    "grpo": METHODS["grpo"](updates=2, reference_weight=0.1),
}


def make(tokenizer, teacher, objective, is_enabled, lora=False, **changes):
    student = build_model(tokenizer, 0, layers=2)
    if lora:
        student = add_adapters(student, LoraSettings(rank=2, targets=("language",)), 0, "tiny")
    models = Models(student, teacher, student.vocabulary_size)
    plan = make_plan(tokenizer, teacher, objective, models=models, **changes)
    train = replace(plan.train, steps=4, gradient_checkpointing=is_enabled)
    return replace(plan, num_steps=4, train=train)


@pytest.mark.parametrize("lora", few([False, True], 0))
@pytest.mark.parametrize("name", few(list(METHODS_TESTED), 1))
def test_a_run_has_the_same_bits_with_parts_views_updates_and_a_resume(
    name, lora, tokenizer, teacher, tmp_path
):
    split = BatchSplit(1, part_tokens=5)
    plain, folder = RunFolder(tmp_path / "plain"), RunFolder(tmp_path / "again")
    reference = make(tokenizer, teacher, METHODS_TESTED[name], False, lora, split=split)
    run_plan(reference, plain)
    run_plan(
        make(tokenizer, teacher, METHODS_TESTED[name], True, lora, split=split, stop_after=2),
        folder,
    )
    resumed = make(tokenizer, teacher, METHODS_TESTED[name], True, lora, split=split)
    run_plan(resumed, folder)
    assert is_checkpointing(resumed.models.student.model)
    assert logged_text(folder) == logged_text(plain)
    hashes = {weights_hash(p.models.student) for p in (reference, resumed)}
    assert len(hashes) == 1


def test_operations_count_each_layer_once_more(student):
    from vistill.data.diagrams import diagram_prompts

    prompt = student.encode(diagram_prompts("train", 1, 0)[0])

    def flops(is_enabled, with_gradient=True):
        set_checkpointing(student, is_enabled)
        student.model.train()
        with counting() as totals, torch.set_grad_enabled(with_gradient):
            open_reading(student, [EncodedGroup(prompt, ((40,) * 5,))]).read([(0, 0)])
        return totals["flops"]

    forward = flops(False, with_gradient=False)
    assert flops(True) - flops(False) == pytest.approx(forward)
    assert flops(True, with_gradient=False) == forward


def test_the_setting_reaches_the_student(tokenizer, teacher, tmp_path):
    from plans import make_setup_from

    from vistill.training.build import START_CHECKS

    plan = make_plan(tokenizer, teacher, OPD())
    for is_enabled in (True, False):
        train = replace(plan.train, gradient_checkpointing=is_enabled)
        setup = make_setup_from(replace(plan, train=train), RunFolder(tmp_path / str(is_enabled)))
        for one in START_CHECKS[: [x.name for x in START_CHECKS].index("models") + 1]:
            one.run(setup)
        assert is_checkpointing(setup.models.student.model) is is_enabled
        assert not is_checkpointing(setup.models.teacher.model)

"""Training adapters: exact resume, checkpoints without the base, EMA and reference on one base."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import build_model
from safetensors import safe_open
from tiers import few
from training.test_loop import logged_text, make_plan, run_plan

from vistill.errors import ConfigError
from vistill.lora_settings import LoraSettings
from vistill.models.adapters import adapter_parameters, add_adapters
from vistill.objectives import METHODS, OPD, VAOPD
from vistill.runs.folder import RunFolder
from vistill.training.checkpoint import newest_checkpoint, weights_hash
from vistill.training.checkpoint_content import bytes_to_save
from vistill.training.models_of_run import Models
from vistill.training.optim import freeze_parts
from vistill.training.student_copies import update_ema, with_student_copies
from vistill.types import Reader

pytestmark = pytest.mark.usefixtures("without_canary")
METHODS_TESTED = {
    "va_opd": VAOPD(),
    "visual_opsd": METHODS["visual_opsd"](gate=False, ema_decay=0.7),
    "grpo": METHODS["grpo"](updates=2, reference_weight=0.1),
}


def adapted(tokenizer, layers=1, **options):
    vlm = build_model(tokenizer, 0, layers=layers)
    settings = LoraSettings(**{"rank": 4, "targets": ("language", "projector"), **options})
    return add_adapters(vlm, settings, 5, "tiny")


def make_lora_plan(tokenizer, teacher, objective=None, lora=None, **changes):
    student = adapted(tokenizer, **(lora or {}))
    models = Models(student, teacher, student.vocabulary_size)
    return make_plan(tokenizer, teacher, objective, models=models, **changes)


@pytest.mark.parametrize("step", few([5, 2, 8], 0))
@pytest.mark.parametrize("name", few(list(METHODS_TESTED), 0, 1))
def test_a_stopped_run_continues_to_the_same_bits(name, step, tokenizer, teacher, tmp_path):
    def make(**changes):
        return make_lora_plan(tokenizer, teacher, METHODS_TESTED[name], **changes)

    whole, folder = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    reference = make()
    start = {n: p.detach().clone() for n, p in reference.models.student.model.named_parameters()}
    run_plan(reference, whole)
    run_plan(make(stop_after=step), folder)
    resumed = make()
    run_plan(resumed, folder)
    assert logged_text(folder) == logged_text(whole)
    students, moved = [plan.models.student.model for plan in (reference, resumed)], set()
    for (n, a), (_, b) in zip(*(s.named_parameters() for s in students), strict=True):
        assert torch.equal(a, b)
        moved |= set() if torch.equal(a, start[n]) else {n}
    adapters = adapter_parameters(students[0])
    assert moved < adapters.keys()  # with one layer the second level of DeepStack is not used
    assert {n for n in adapters if "language_model" in n} <= moved


def test_a_checkpoint_holds_adapters_and_the_name_of_the_base(tokenizer, teacher, tmp_path):
    folder = RunFolder(tmp_path)
    plan = make_lora_plan(tokenizer, teacher, METHODS_TESTED["visual_opsd"])
    run_plan(plan, folder)
    checkpoint = newest_checkpoint(folder)
    number = sum(p.numel() for p in adapter_parameters(plan.models.student.model).values())
    for part in ("student", "ema"):
        assert not (checkpoint / part / "model.safetensors").exists()
        with safe_open(checkpoint / part / "adapter_model.safetensors", "pt") as file:
            names = list(file.keys())
            saved = sum(file.get_tensor(name).numel() for name in names)
        assert saved == number
        assert all(n.startswith("base_model.model.") and ".lora_" in n for n in names)
        config = json.loads((checkpoint / part / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "tiny"
    assert (checkpoint / "student" / "tokenizer.json").is_file()
    moments = (checkpoint / "optimizer.safetensors").stat().st_size
    assert moments < 2 * 4 * number + 40_000
    weights = sum(p.numel() * 4 for p in plan.models.student.model.parameters())
    assert moments + 2 * 4 * number < weights


def test_the_size_of_a_checkpoint_is_that_of_its_adapters(tokenizer):
    student = adapted(tokenizer)
    number = sum(p.numel() for p in adapter_parameters(student.model).values())
    assert bytes_to_save(student, (), 1) == 3 * 4 * number


@pytest.mark.parametrize("method", ["visual_opsd", "grpo"])
def test_copies_hold_adapters_of_their_own_on_the_same_base(method, tokenizer, teacher):
    student = adapted(tokenizer)
    models = Models(student, teacher, student.vocabulary_size)
    models = with_student_copies(models, METHODS_TESTED[method])
    (copy,) = models.copies.values()
    own = adapter_parameters(student.model)
    pairs = zip(student.model.named_parameters(), copy.model.parameters(), strict=True)
    assert all((a is b) == (name not in own) for (name, a), b in pairs)
    assert all(p.requires_grad == (n in own) for n, p in student.model.named_parameters())
    before = weights_hash(copy)
    with torch.no_grad():
        for p in own.values():
            p.add_(1.0)
    assert weights_hash(copy) == before
    assert models.reader(Reader.OLD) is student
    if Reader.EMA in models.copies:
        update_ema(models, 0.25)
        assert weights_hash(copy) != before


def test_frozen_parts_keep_their_adapters_and_nothing_left_is_refused(tokenizer):
    vlm = adapted(tokenizer, targets=("language", "vision"))
    freeze_parts(vlm, ("tower",))
    trained = {n for n, p in vlm.model.named_parameters() if p.requires_grad}
    assert trained
    assert all(n in adapter_parameters(vlm.model) for n in trained)
    assert not any(".blocks." in n for n in trained)
    with pytest.raises(ConfigError, match="nothing is left to train") as caught:
        freeze_parts(adapted(tokenizer, targets=("language",)), ("language",))
    assert caught.value.code == "C110"
    assert caught.value.why == "the weights that are trained (adapters) are in 'language'"


def test_the_student_learns_with_a_base_in_half_precision(tokenizer, teacher, tmp_path):
    """The gradient of the adapters passes through a frozen bf16 model; they are float32."""
    plan = make_lora_plan(tokenizer, teacher, OPD())
    plan.models.student.model.to(torch.bfloat16)
    for p in adapter_parameters(plan.models.student.model).values():
        p.data = p.data.float()
    plan = replace(plan, train=replace(plan.train, precision="bf16"))
    run_plan(plan, RunFolder(tmp_path))
    folder = RunFolder(tmp_path)
    assert all(record["finite"] == 1.0 for record in folder.read(folder.metrics))
    dtypes = {p.dtype for p in adapter_parameters(plan.models.student.model).values()}
    assert dtypes == {torch.float32}

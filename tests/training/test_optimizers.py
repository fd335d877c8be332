"""Optimizers and precisions of the student: exact resume, bytes, and what rounding does."""

import sys
from dataclasses import replace

import pytest
import torch
from conftest import build_model
from tiers import few
from training.test_loop import logged_text, make_plan, run_plan
from transformers import AutoModelForImageTextToText

from vistill.errors import ConfigError, MissingExtraError
from vistill.objectives import METHODS
from vistill.runs.folder import RunFolder
from vistill.training.checkpoint import newest_checkpoint, weights_hash
from vistill.training.checkpoint_content import TrainedObjects, bytes_to_save, content_to_save
from vistill.training.half_precision import HalfPrecisionOptimizer, move_towards, round_into
from vistill.training.models_of_run import Models
from vistill.training.optim import make_optimizer, optimizer_kind
from vistill.training.optimizer_bytes import HALF_PRECISIONS, state_bytes
from vistill.training.recipe import Recipe, StudentSettings
from vistill.training.run_state import RunState
from vistill.training.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("without_canary")
KINDS = ["adamw", "adamw_fused", "adamw_8bit"]
CHOICES = [
    *((kind, "auto") for kind in KINDS),
    ("auto", "bf16"),
    ("auto", "bf16_stochastic"),
    *((kind, precision) for kind in KINDS[1:] for precision in HALF_PRECISIONS),
]


def skip_without(kind):
    if kind == "adamw_8bit":
        pytest.importorskip("bitsandbytes", reason="make real installs it")


def make(tokenizer, teacher, kind, precision, objective=None, **changes):
    student = build_model(tokenizer, 0, layers=1, hidden=64)
    if precision in HALF_PRECISIONS:
        student.model.to(torch.bfloat16)
    models = Models(student, teacher, student.vocabulary_size)
    plan = make_plan(tokenizer, teacher, objective, models=models, precision=precision, **changes)
    train = replace(plan.train, steps=4, optimizer=kind)
    return replace(plan, num_steps=4, train=train)


@pytest.mark.parametrize(("kind", "precision"), few(CHOICES, 1, 3, 4))
def test_a_stopped_run_continues_to_the_same_bits(kind, precision, tokenizer, teacher, tmp_path):
    skip_without(kind)
    objective = METHODS["visual_opsd"](gate=False, ema_decay=0.7)
    whole, folder = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    reference = make(tokenizer, teacher, kind, precision, objective)
    start = weights_hash(reference.models.student)
    run_plan(reference, whole)
    run_plan(make(tokenizer, teacher, kind, precision, objective, stop_after=2), folder)
    resumed = make(tokenizer, teacher, kind, precision, objective)
    run_plan(resumed, folder)
    assert logged_text(folder) == logged_text(whole)
    assert weights_hash(resumed.models.student) == weights_hash(reference.models.student) != start
    for name in ("ema/model.safetensors", "student/model.safetensors", "optimizer.safetensors"):
        ours, theirs = (newest_checkpoint(f) / name for f in (whole, folder))
        assert ours.read_bytes() == theirs.read_bytes()
    place = newest_checkpoint(folder) / "student"
    loaded = AutoModelForImageTextToText.from_pretrained(place, dtype="auto")
    half = precision in HALF_PRECISIONS
    assert loaded.dtype == (torch.bfloat16 if half else torch.float32)


def updated(tokenizer, kind, precision, steps=2):
    """A student and its optimizer after some updates."""
    student = build_model(tokenizer, 0, hidden=64)
    if precision in HALF_PRECISIONS:
        student.model.to(torch.bfloat16)
    optimizer = make_optimizer(student.model, TrainSettings(optimizer=kind), precision)
    g = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for p in student.model.parameters():
            p.grad = torch.randn(p.shape, generator=g).to(p.dtype)
        optimizer.step()
    return student, optimizer


@pytest.mark.parametrize(("kind", "precision"), few(CHOICES, 0, 3))
def test_the_state_is_counted(kind, precision, tokenizer):
    skip_without(kind)
    student, optimizer = updated(tokenizer, kind, precision)
    content = content_to_save(TrainedObjects(student, optimizer, RunState()))
    steps = sum(t.nbytes for n, t in content.moments.items() if n.endswith(".step"))
    stored = sum(t.nbytes for t in content.tensors().values()) - steps
    assert bytes_to_save(student, (), 1, kind, precision) == stored
    moments = sum(t.nbytes for t in content.moments.values())
    large = sum(p.numel() for p in student.model.parameters())
    # tensors of fewer than 4,096 weights have moments in float32
    rel = 0.05 if kind != "adamw_8bit" else 1.0
    assert moments == pytest.approx(state_bytes(large, kind, precision), rel=rel)


def test_auto_is_fused_on_cuda_and_plain_elsewhere():
    assert optimizer_kind("auto", torch.device("cuda")) == "adamw_fused"
    assert optimizer_kind("auto", torch.device("cpu")) == "adamw"
    assert optimizer_kind("adamw", torch.device("cuda")) == "adamw"
    plain, fused = (
        make_optimizer(torch.nn.Linear(2, 2), TrainSettings(optimizer=kind))
        for kind in ("auto", "adamw_fused")
    )
    assert not plain.param_groups[0]["fused"]
    assert fused.param_groups[0]["fused"]


def test_without_bitsandbytes_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError) as caught:
        make_optimizer(torch.nn.Linear(2, 2), TrainSettings(optimizer="adamw_8bit"))
    assert (caught.value.code, caught.value.fix) == ("E301", "pip install 'vistill[quantized]'")
    assert "adamw_8bit" in caught.value.what


def test_moments_of_8_bits_follow_those_of_32(tokenizer):
    skip_without("adamw_8bit")
    (exact, _), (small, _) = (updated(tokenizer, k, "auto", 6) for k in ("adamw", "adamw_8bit"))
    start = build_model(tokenizer, 0, hidden=64)
    triples = zip(*(list(m.model.parameters()) for m in (start, exact, small)), strict=True)
    moved, apart = 0.0, 0.0
    for a, b, c in triples:
        moved += float((b - a).square().sum())
        apart += float((c - b).square().sum())
    assert 0 < apart < 0.05 * moved


def test_a_master_copy_keeps_updates_that_rounding_would_swallow():
    for precision, keeps in (("bf16", True), ("auto", False)):
        layer = torch.nn.Linear(8, 8, bias=False).to(torch.bfloat16)
        torch.nn.init.ones_(layer.weight)
        settings = TrainSettings(lr=1e-4, weight_decay=0.0)
        optimizer = make_optimizer(layer, settings, precision)
        assert isinstance(optimizer, HalfPrecisionOptimizer) is keeps
        for _ in range(40):
            layer.weight.grad = torch.ones_like(layer.weight)
            optimizer.step()
        # 40 updates of 1e-4; the next bf16 number below 1 is 1 - 1/256
        expected = 1 - 1 / 256 if keeps else 1.0
        assert torch.equal(layer.weight, torch.full_like(layer.weight, expected))


def test_stochastic_rounding_is_unbiased_and_keyed():
    exact = torch.full((1 << 16,), 1.0 + 0.3 / 128)
    weight, other, third = (torch.empty(1 << 16, dtype=torch.bfloat16) for _ in range(3))
    round_into(weight, exact, 1, "name", 5)
    assert set(weight.tolist()) == {1.0, 1.0 + 1 / 128}
    assert float((weight > 1).float().mean()) == pytest.approx(0.3, abs=0.01)
    round_into(other, exact, 1, "name", 5)
    round_into(third, exact, 1, "name", 6)
    assert torch.equal(weight, other)
    assert not torch.equal(weight, third)
    round_into(other, -exact, 1, "name", 5)
    assert torch.equal(other, -weight)
    kept = torch.tensor([1.5, -2.0, 0.0, 3.0e-39])
    rounded = torch.empty(4, dtype=torch.bfloat16)
    round_into(rounded, kept, 0)
    assert torch.equal(rounded[:3].float(), kept[:3])


def test_random_bits_do_not_depend_on_the_chunks():
    exact = torch.randn(1003, generator=torch.Generator().manual_seed(0))
    results = []
    for chunk in (1 << 22, 64):
        results.append(torch.empty(1003, dtype=torch.bfloat16))
        round_into(results[-1], exact, 7, chunk=chunk)
    assert torch.equal(*results)


def test_an_average_in_bf16_follows_slowly_moving_weights():
    average, value = torch.ones(4096, dtype=torch.bfloat16), torch.full((4096,), 2.0)
    for step in range(100):
        move_towards(average, value.bfloat16(), (step,), 0.001)
    assert float(average.float().mean()) == pytest.approx(2 - 0.999**100, abs=0.005)


@pytest.mark.parametrize(("student", "train", "fix"), [
    ({"precision": "bf16", "train": "lora"}, {}, "student.precision=auto"),
    ({"precision": "bf16_stochastic"}, {"precision": "fp32"}, "train.precision=auto"),
])  # fmt: skip
def test_settings_that_contradict_bf16_weights_are_refused(student, train, fix):
    with pytest.raises(ConfigError) as caught:
        Recipe("run", StudentSettings("m", **student), "opd", train=TrainSettings(**train))
    assert caught.value.code == "C101"
    assert caught.value.fix.split("   or   ")[0] == fix

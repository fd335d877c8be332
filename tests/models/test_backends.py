"""Kernels of the head: chosen, proven, refused with the reason; whatever was chosen, the numbers are the same."""

import os
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch

from vistill.batch import reduce_terms
from vistill.models.backends import backend_failure, difference_of, with_kernels
from vistill.objectives import METHODS, VAOPD
from vistill.rollouts.engine import Sampling
from vistill.rollouts.shared import SharedEngine
from vistill.training.response_source import ResponseSource, write_groups
from vistill.training.step_inputs import (
    Models,
    encode_step,
    flatten_responses,
    parts_with_gradient,
    score_without_gradient,
)


@pytest.fixture(autouse=True)
def _ask_again():
    backend_failure.cache_clear()
    yield
    backend_failure.cache_clear()


def test_on_a_cpu_auto_takes_torch_without_a_word(student):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert with_kernels(student, "auto").kernels == "torch"
        assert with_kernels(student, "torch").kernels == "torch"


def test_a_missing_kernel_names_its_extra_and_takes_torch(student, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.warns(
        UserWarning, match=r"pip install 'vistill\[triton\]'.*The numbers are the same"
    ):
        assert with_kernels(student, "triton").kernels == "torch"


@pytest.mark.triton
def test_a_kernel_that_proves_itself_is_used_and_the_update_is_the_same(student, teacher, prompts):
    pytest.importorskip("triton", reason="the extra `triton` is not installed")
    groups = write_groups(
        Models(student, teacher, student.vocabulary_size),
        ResponseSource(SharedEngine(student), VAOPD(), 2),
        prompts[:2],
        Sampling(0, 0, 1.0, 1.0, 4),
    )
    chosen = [with_kernels(vlm, "triton") for vlm in (student, teacher)]
    assert [vlm.kernels for vlm in chosen] == ["triton", "triton"]
    found = {}
    for name, (own, other) in {"torch": (student, teacher), "triton": chosen}.items():
        for method in ("va_opd", "gkd", "kd", "grpo_opd"):
            objective = METHODS[method]()
            models = Models(own, other, student.vocabulary_size)
            rewards = [float(i % 2) for i in range(4)]
            responses = flatten_responses(groups, 0, 0, own.device, rewards)
            reading = encode_step(models, groups, objective.passes(), responses)
            batch = score_without_gradient(models, reading, objective.passes())
            own.model.zero_grad()
            for micro, cut in parts_with_gradient(
                models, reading, batch, objective.passes(), objective.signals(batch)
            ):
                loss, _ = reduce_terms(objective.terms(micro, cut), responses.counts())
                loss.backward()
            gradient = torch.cat(
                [p.grad.flatten() for p in own.model.parameters() if p.grad is not None]
            )
            found.setdefault(method, []).append((name, gradient.clone()))
    for method, ((_, a), (_, b)) in found.items():
        assert float((a - b).norm()) <= 1e-5 * float(a.norm()) or not float(a.norm()), method


@pytest.mark.triton
def test_a_kernel_that_lies_is_refused(student, monkeypatch):
    fused = pytest.importorskip(
        "vistill.triton_kernels", reason="the extra `triton` is not installed"
    )
    honest = fused.divergence_rows
    monkeypatch.setattr(fused, "divergence_rows", lambda *args: honest(*args) * 1.001)
    with pytest.warns(UserWarning, match="its kernels differ from torch's"):
        assert with_kernels(student, "triton").kernels == "torch"


@pytest.mark.triton
def test_a_kernel_that_breaks_is_refused(student, monkeypatch):
    fused = pytest.importorskip(
        "vistill.triton_kernels", reason="the extra `triton` is not installed"
    )

    def broken(*args):
        raise RuntimeError("out of shared memory")

    monkeypatch.setattr(fused, "log_prob_rows", broken)
    with pytest.warns(UserWarning, match="out of shared memory"):
        assert with_kernels(student, "triton").kernels == "torch"


def test_the_proof_sees_a_difference_between_rules():
    """The measuring stick itself: torch against torch is 0, and a wrong rule is far away."""
    from vistill.functional.divergences import forward_kl

    cpu = torch.device("cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vistill.functional.rows.Work.fused", lambda self: None)
        assert difference_of(forward_kl, 1, cpu) == 0.0


COMPILE = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vistill import fused

ints, block = {"stride": "i64", "width": "i32"}, {"block": "constexpr", "wide": "constexpr", "learns": "constexpr"}
common = {"weights": "*fp32", "values": "*fp32", "scale": "fp32", **ints, **block}
for target in (GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32)):
    for learns in (True, False):
        constants = {"block": fused.BLOCK, "wide": tl.float32, "learns": learns}
        for kind in fused.KINDS.values():
            names = {"logits": "*fp32", "others": "*fp32", "other_stride": "i64", "other_scale": "fp32", "beta": "fp32"}
            signature = {**common, **names, "kind": "constexpr"}
            ordered = {n: signature[n] for n in fused.divergence_row.arg_names}
            triton.compile(ASTSource(fused.divergence_row, ordered, {**constants, "kind": kind}), target=target)
        signature = {**common, "logits": "*fp32", "ids": "*i64"}
        ordered = {n: signature[n] for n in fused.log_prob_row.arg_names}
        triton.compile(ASTSource(fused.log_prob_row, ordered, constants), target=target)
print("compiled")
"""


@pytest.mark.triton
def test_every_kernel_compiles_for_a_gpu_without_one(tmp_path):
    """The interpreter forgives what the compiler refuses; the compiler needs no device."""
    pytest.importorskip("triton", reason="the extra `triton` is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.stdout.strip() == "compiled", done.stderr[-2000:]


def test_the_head_carries_the_choice(student):
    assert replace(student, kernels="triton").head(10).kernels == "triton"

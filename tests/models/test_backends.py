"""Kernels of the head: a backend is used after its test passes, and the numbers are the same."""

import os
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch

from vistill.batch import reduce_terms
from vistill.functional.divergences import forward_kl
from vistill.functional.row_chunks import LogitsLoss
from vistill.models.backends import backend_failure, kernel_difference, with_kernels
from vistill.objectives import METHODS, VAOPD
from vistill.rollouts.engine import Sampling
from vistill.rollouts.shared import SharedEngine
from vistill.training.models_of_run import Models
from vistill.training.response_source import ResponseSource, write_groups
from vistill.training.step_inputs import (
    encode_step,
    flatten_responses,
    parts_with_gradient,
    score_without_gradient,
)


@pytest.fixture(autouse=True)
def _clear_cached_results():
    backend_failure.cache_clear()
    yield
    backend_failure.cache_clear()


def test_on_a_cpu_auto_uses_torch_without_a_warning(student):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert with_kernels(student, "auto").kernels == "torch"
        assert with_kernels(student, "torch").kernels == "torch"


def test_without_triton_the_warning_names_the_extra_and_torch_is_used(student, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.warns(
        UserWarning, match=r"pip install 'vistill\[triton\]'.*The numbers are the same"
    ):
        assert with_kernels(student, "triton").kernels == "torch"


@pytest.mark.triton
def test_kernels_that_pass_their_test_are_used_and_the_update_is_the_same(
    student, teacher, prompts
):
    pytest.importorskip("triton", reason="the extra `triton` is not installed")
    groups = write_groups(
        Models(student, teacher, student.vocabulary_size),
        ResponseSource(SharedEngine(student), VAOPD(), 2),
        prompts[:2],
        Sampling(0, 0, 1.0, 1.0, 4),
    )
    with_triton = [with_kernels(vlm, "triton") for vlm in (student, teacher)]
    assert [vlm.kernels for vlm in with_triton] == ["triton", "triton"]
    gradients = {}
    for reader, other in ((student, teacher), with_triton):
        for method in ("va_opd", "gkd", "kd", "grpo_opd"):
            objective = METHODS[method]()
            models = Models(reader, other, student.vocabulary_size)
            rewards = [float(i % 2) for i in range(4)]
            responses = flatten_responses(groups, 0, 0, reader.device, rewards)
            reading = encode_step(models, groups, objective.passes(), responses)
            batch = score_without_gradient(models, reading, objective.passes())
            reader.model.zero_grad()
            for micro, cut in parts_with_gradient(
                models, reading, batch, objective.passes(), objective.signals(batch)
            ):
                loss, _ = reduce_terms(objective.terms(micro, cut), responses.counts())
                loss.backward()
            gradient = torch.cat(
                [p.grad.flatten() for p in reader.model.parameters() if p.grad is not None]
            )
            gradients.setdefault(method, []).append(gradient.clone())
    assert float(gradients["va_opd"][0].norm()) > 0
    for method, (a, b) in gradients.items():
        assert float((a - b).norm()) <= 1e-5 * float(a.norm()), method


@pytest.mark.triton
def test_a_kernel_with_wrong_numbers_is_not_used(student, monkeypatch):
    triton_kernels = pytest.importorskip(
        "vistill.triton_kernels", reason="the extra `triton` is not installed"
    )
    correct = triton_kernels.divergence_rows
    # a planted defect of a kernel
    monkeypatch.setattr(triton_kernels, "divergence_rows", lambda *args: correct(*args) * 1.001)
    with pytest.warns(UserWarning, match="its kernels differ from torch's"):
        assert with_kernels(student, "triton").kernels == "torch"


@pytest.mark.triton
def test_a_kernel_that_fails_is_not_used(student, monkeypatch):
    triton_kernels = pytest.importorskip(
        "vistill.triton_kernels", reason="the extra `triton` is not installed"
    )

    def broken(*args):
        raise RuntimeError("out of shared memory")

    # a planted defect of a kernel
    monkeypatch.setattr(triton_kernels, "log_prob_rows", broken)
    with pytest.warns(UserWarning, match="out of shared memory"):
        assert with_kernels(student, "triton").kernels == "torch"


def test_the_difference_between_torch_and_torch_is_0():
    """The test of the backends measures nothing but the backend."""
    cpu = torch.device("cpu")
    with pytest.MonkeyPatch.context() as patch:
        # without a kernel both sides are the same code
        patch.setattr(LogitsLoss, "triton_kernel", lambda self: None)
        assert kernel_difference(forward_kl, 1, cpu) == 0.0


COMPILE = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vistill.triton_kernels import BLOCK, KINDS, divergence_row, log_prob_row

TYPES = {
    "logits": "*fp32", "others": "*fp32", "ids": "*i64", "weights": "*fp32", "values": "*fp32",
    "stride": "i64", "other_stride": "i64", "width": "i32", "scale": "fp32", "other_scale": "fp32",
    "beta": "fp32", "kind": "constexpr", "needs_grad": "constexpr", "block": "constexpr",
    "dtype": "constexpr",
}


def compile_kernel(kernel, target, **constants):
    signature = {name: TYPES[name] for name in kernel.arg_names}
    triton.compile(ASTSource(kernel, signature, constants), target=target)


for target in (GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32)):
    for needs_grad in (True, False):
        constants = {"block": BLOCK, "dtype": tl.float32, "needs_grad": needs_grad}
        for kind in KINDS.values():
            compile_kernel(divergence_row, target, kind=kind, **constants)
        compile_kernel(log_prob_row, target, **constants)
print("compiled")
"""


@pytest.mark.triton
def test_every_kernel_compiles_for_a_gpu_without_one(tmp_path):
    """The interpreter accepts code that the compiler rejects. The compiler needs no device."""
    pytest.importorskip("triton", reason="the extra `triton` is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.stdout.strip() == "compiled", result.stderr[-2000:]


def test_the_head_uses_the_kernels_of_its_model(student):
    assert replace(student, kernels="triton").head(10).kernels == "triton"

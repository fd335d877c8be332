"""`train.deterministic` on a GPU is strict: fixed workspace, no operator without such a kernel."""

import os
from collections import Counter

import pytest
import torch
from conftest import build_model
from torch.utils._python_dispatch import TorchDispatchMode

import vistill
from vistill import runtime
from vistill.errors import ConfigError
from vistill.functional import running_sums
from vistill.functional.running_sums import running_sum, sum_by_doubling
from vistill.rollouts.settings import RolloutSettings
from vistill.runtime import CUBLAS, fix_cublas_workspace
from vistill.training.determinism import deterministic_kernels
from vistill.training.settings import TrainSettings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def nothing_seen(monkeypatch):
    """What CUDA was seen to run with is state of the process."""
    monkeypatch.setattr(runtime, "_seen_without", [])


def mode():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


@pytest.mark.parametrize(
    ("enabled", "device", "inside"),
    [(True, CUDA, (True, False)), (True, CPU, (True, True)), (False, CUDA, (False, False))],
)
def test_a_gpu_is_strict_a_cpu_warns_and_the_mode_is_restored(monkeypatch, enabled, device, inside):
    monkeypatch.setenv(CUBLAS, ":4096:8")
    before = mode()
    with deterministic_kernels(enabled, device):
        assert mode() == inside
    assert mode() == before


@pytest.mark.parametrize("value", [None, ":0:0"])
def test_without_a_fixed_workspace_a_gpu_run_is_refused_with_the_command(monkeypatch, value):
    if value is None:
        monkeypatch.delenv(CUBLAS, raising=False)
    else:
        monkeypatch.setenv(CUBLAS, value)
    before = mode()
    with (
        pytest.raises(ConfigError, match=r"(?s)E304.*export CUBLAS_WORKSPACE_CONFIG=:4096:8"),
        deterministic_kernels(True, CUDA),
    ):
        pass
    assert mode() == before
    for enabled, device in ((True, CPU), (False, CUDA)):
        with deterministic_kernels(enabled, device):
            pass


def test_the_workspace_is_set_before_cuda_starts_and_never_afterwards(monkeypatch):
    monkeypatch.delenv(CUBLAS, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    fix_cublas_workspace()
    assert CUBLAS not in os.environ
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    runtime.prepare_process()
    assert os.environ[CUBLAS] == ":4096:8"
    monkeypatch.setenv(CUBLAS, ":16:8")
    fix_cublas_workspace()
    assert os.environ[CUBLAS] == ":16:8"


def test_a_workspace_that_is_set_after_cuda_started_is_refused(monkeypatch):
    """It passed: the variable was right, but cuBLAS had read it before."""
    monkeypatch.delenv(CUBLAS, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    fix_cublas_workspace()  # where models are loaded
    monkeypatch.setenv(CUBLAS, ":4096:8")
    with (
        pytest.raises(ConfigError, match=r"(?s)E304.*set after CUDA started.*start Python again"),
        deterministic_kernels(True, CUDA),
    ):
        pass


def test_a_workspace_that_was_set_before_cuda_started_is_accepted(monkeypatch):
    monkeypatch.delenv(CUBLAS, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert runtime.cublas_problem(), "not set yet"
    fix_cublas_workspace()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    fix_cublas_workspace()
    with deterministic_kernels(True, CUDA):
        pass


def test_an_operator_without_a_deterministic_kernel_has_a_code_on_a_gpu_only(monkeypatch):
    monkeypatch.setenv(CUBLAS, ":4096:8")
    text = "cumsum_cuda_kernel does not have a deterministic implementation"
    with pytest.raises(ConfigError, match=r"E304(?s:.*)cumsum"), deterministic_kernels(True, CUDA):
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match=r"^other"), deterministic_kernels(True, CUDA):
        raise RuntimeError("other")
    with pytest.raises(RuntimeError, match=r"^cumsum"), deterministic_kernels(True, CPU):
        raise RuntimeError(text)


@pytest.mark.parametrize("size", [1, 2, 3, 256, 297])
def test_a_sum_by_doubling_is_the_cumulative_sum(size):
    x = torch.rand(4, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    torch.testing.assert_close(sum_by_doubling(x), x.cumsum(-1), rtol=1e-13, atol=0)
    assert torch.equal(sum_by_doubling(x[0]), sum_by_doubling(x)[0])
    assert torch.equal(running_sum(x), x.cumsum(-1)), "a CPU keeps its bits"


#: Operators that torch lists as without a deterministic kernel on CUDA, with its condition.
WITHOUT_KERNEL = ("cumsum", "histc", "median", "nll_loss", "ctc_loss", "kthvalue", "put_",
                  "adaptive_", "avg_pool", "reflection_pad", "upsample",
                  "grid_sampler")  # fmt: skip


class Forbidden(TorchDispatchMode):
    """Counts operators on floating-point tensors that strict mode refuses on CUDA."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        is_float = any(isinstance(x, torch.Tensor) and x.is_floating_point() for x in args)
        is_product = "scatter_reduce" in name and "prod" in map(str, args)
        if is_product or (is_float and "index_put" not in name):
            matches = [part for part in WITHOUT_KERNEL if part in name]
            self.counts.update([name] if is_product or matches else [])
        return function(*args, **(kwargs or {}))


@pytest.mark.more
@pytest.mark.parametrize("top_p", [0.9, 1.0])
@pytest.mark.parametrize(("noise", "objective"), [("counter", "VAOPD"), ("generator", "VGS")])
def test_a_run_calls_no_operator_that_strict_mode_refuses(
    tokenizer, teacher, prompts, tmp_path, noise, objective, top_p
):
    """Counted on a CPU, with the sums that a GPU takes; before, each token took up to two."""

    def run(name):
        with Forbidden() as forbidden:
            vistill.distill(
                build_model(tokenizer, 0),
                teacher,
                prompts[:2],
                getattr(vistill, objective)(),
                tmp_path / name,
                train=TrainSettings(prompts_per_step=2, steps=1),
                rollout=RolloutSettings(
                    per_prompt=2, max_new_tokens=3, noise=noise, top_p=top_p, all_truncated="go_on"
                ),
            )
        return forbidden.counts

    assert bool(run("before")) == (noise == "counter" or top_p < 1)
    running_sums.DOUBLING.add("cpu")
    try:
        assert not run("strict")
    finally:
        running_sums.DOUBLING.discard("cpu")

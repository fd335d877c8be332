"""Every method on a device that is not the CPU: the gradients, logs and bits of a CPU run.

The device (`device.cpp`) has host memory and refuses mixed devices as CUDA does. So a tensor left
on the host, a random number drawn on the wrong device or a tie that `Module.to` breaks fails here,
without a GPU.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPO
from filelock import FileLock
from safetensors.torch import load_file
from torch.utils.cpp_extension import include_paths

from vistill.config import load_stages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
HERE = Path(__file__).parent
SMALL = ["train.prompts_per_step=2", "rollout.per_prompt=2", "data.diagrams.train=4"]
SMALL += ["data.diagrams.eval=2", "train.precision=fp32", "eval.every=0"]
#: Rewards differ and visual thoughts help only with whole responses.
WHOLE = ["grpo", "papo", "vppo", "grpo_opd", "grpo_vgs", "grpo_va_opd"]
WHOLE += ["sft_teacher", "visual_opsd"]
STAGES = {
    "whole responses": (WHOLE, []),
    "short responses": (
        [name for name in load_stages(REPO / "recipes" / "every_method.yaml") if name not in WHOLE],
        ["rollout.max_new_tokens=24"],
    ),
}


def content_hash(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The device, compiled once for all processes of a test run."""
    compiler = shutil.which("g++")
    if compiler is None:
        assert not os.environ.get("VISTILL_NEEDS_COMPILER"), "g++ is missing"
        pytest.skip("g++ is missing; it builds the second device")
    shared = tmp_path_factory.getbasetemp().parent
    with FileLock(shared / "device.lock"):
        path = shared / f"device-{torch.__version__}-{content_hash(HERE / 'device.cpp')}.so"
        if not path.exists():
            build = [compiler, "-O1", "-std=c++20", "-fPIC", "-shared", str(HERE / "device.cpp")]
            build += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
            build += [f"-I{folder}" for folder in include_paths()]
            build += [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", "-lc10"]
            done = subprocess.run([*build, "-o", str(path)], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    return path


def in_processes(library, tasks):
    """Run tasks of `process.py` side by side; each must succeed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "process.py"), str(library), *map(str, task)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for task in tasks
    ]
    for process in processes:
        printed, _ = process.communicate()
        assert process.returncode == 0, printed


def on(device):
    return [f"student.device={device}", f"teacher.device={device}"]


def first_step(stage):
    """Logged values and gradients of the first step: after it, Adam's mean is 0.1 gradients."""
    metrics = json.loads((stage / "metrics.jsonl").read_text().splitlines()[0])
    state = load_file(stage / "checkpoint-000001" / "optimizer.safetensors")
    gradients = {k: v.double() for k, v in state.items() if "exp_avg" in k and "_sq" not in k}
    return {k: v for k, v in metrics.items() if isinstance(v, float)}, gradients


def code_on_device(library, code):
    setup = f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
    setup += f"import torch, process\nprocess.register({str(library)!r})\n"
    return subprocess.run(
        [sys.executable, "-c", setup + code], capture_output=True, text=True, cwd=REPO, check=False
    )


MIXED = """
import pytest
x, y = torch.ones(2, 2).to("second"), torch.ones(2, 2)
assert x[y > 0].sum() == 4, "CUDA takes indices from the host"
for mixed in ("x + y", "x @ y", "torch.cat([x, y])", "torch.where(x > 0, x, y)"):
    eval(mixed.replace("y", "x"))
    with pytest.raises(RuntimeError, match="to be on the same device"):
        eval(mixed)
"""


def test_the_device_refuses_tensors_of_the_host(library):
    done = code_on_device(library, MIXED)
    assert done.returncode == 0, done.stderr


def test_a_tied_head_stays_tied_on_the_device(library):
    code = """
import vistill
model = vistill.load("vistill:student", device="second").model
head, embedding = (f().weight for f in (model.get_output_embeddings, model.get_input_embeddings))
assert head.device.type == "second" and head is embedding
"""
    done = code_on_device(library, code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("which", STAGES)
def test_every_method_has_the_gradients_of_the_cpu(library, tmp_path, which):
    names, overrides = STAGES[which]
    words = [*SMALL, "train.steps=1", *overrides]
    devices = {name: tmp_path / name for name in ("cpu", "second")}
    in_processes(
        library,
        [
            ("stages", folder, ",".join(names), *words, *on(name))
            for name, folder in devices.items()
        ],
    )
    calls = {
        name: json.loads((folder / "calls.json").read_text()) for name, folder in devices.items()
    }
    assert not any(calls["cpu"].values())
    for name in names:
        assert calls["second"][name] > 1000, name
        (metrics, gradients), (expected, reference) = (
            first_step(devices[device] / name) for device in ("second", "cpu")
        )
        assert metrics == pytest.approx(expected, rel=1e-5, abs=1e-7), name
        assert gradients.keys() == reference.keys()
        largest = max(float(g.abs().max()) for g in reference.values())
        assert largest > 0, name
        for key, gradient in gradients.items():
            torch.testing.assert_close(
                gradient, reference[key], rtol=0, atol=1e-5 * largest, msg=f"{name} {key}"
            )


def test_a_run_on_the_device_resumes_and_replays_to_the_same_bits(library, tmp_path):
    stage = "vgs_adaptive"  # its checkpoint holds state of the method
    words = [*SMALL, "train.steps=2", "save.every=1", "rollout.max_new_tokens=24"]
    words += ["eval.every=1", "eval.limit=2", "eval.extra_limit=2", "eval.max_new_tokens=4"]
    in_processes(library, [("resume", tmp_path, stage, *words, *on("second"))])
    whole, again = (tmp_path / part / stage for part in ("whole", "again"))
    for log in ("metrics.jsonl", "evaluations.jsonl", "student/model.safetensors"):
        assert (again / log).read_bytes() == (whole / log).read_bytes(), log

"""Every reading is the forward of one module: hooks, compilation and sharding work on it."""

import dataclasses
import subprocess
import sys
from collections import Counter

import jaxtyping
import pytest
import torch
from conftest import REPO, build_model
from tiny_llava import build_llava

from vistill.models.scoring import EncodedGroup, all_responses, open_reading, response_states
from vistill.rollouts.engine import RolloutRequest, Sampling
from vistill.rollouts.shared import SharedEngine

TINY = {"qwen3_vl": build_model, "llava": build_llava}
RESPONSES = ((40, 41, 42, 43), (50, 51))


@pytest.fixture(params=list(TINY))
def vlm(request, tokenizer):
    return TINY[request.param](tokenizer, 3)


def make_groups(vlm, prompts):
    return [EncodedGroup(vlm.encode(p), RESPONSES) for p in prompts[:2]]


def states_and_gradients(vlm, groups):
    """States and gradients, with a backward pass after each part."""
    vlm.model.zero_grad()
    reading, states = open_reading(vlm, groups, cut=True), []
    for place in all_responses(groups):
        states.append(reading.read([place]))
        states[-1].square().sum().backward()
    reading.close()
    return torch.cat(states).detach(), {
        n: p.grad for n, p in vlm.model.named_parameters() if p.grad is not None
    }


def write_rollouts(vlm, prompts):
    requests = [RolloutRequest(p.id, vlm.encode(p), (0, 1)) for p in prompts[:2]]
    return SharedEngine(vlm).generate(requests, Sampling(0, 0, 1.0, 1.0, 4))


def count_hook_calls(vlm):
    """Count the calls of hooks before and after the module and every decoder layer."""
    calls = Counter()
    layers = {f"layer {i}": layer for i, layer in enumerate(vlm.model.get_decoder().layers)}
    for name, module in {"module": vlm.packed, **layers}.items():
        module.register_forward_pre_hook(lambda *_, name=name: calls.update([f"{name} before"]))
        module.register_forward_hook(lambda *_, name=name: calls.update([f"{name} after"]))
    return calls, {f"{name} {when}" for name in ("module", *layers) for when in ("before", "after")}


@pytest.mark.parametrize("path", ["scoring", "rows", "training", "rollouts"])
def test_hooks_of_the_module_and_of_every_layer_run_and_change_nothing(path, vlm, prompts):
    def read(vlm):
        groups = make_groups(vlm, prompts)
        if path == "training":
            return states_and_gradients(vlm, groups)[0]
        if path == "rollouts":
            return torch.tensor(
                [i for group in write_rollouts(vlm, prompts) for r in group for i in r.ids]
            )
        return response_states(
            dataclasses.replace(vlm, share_prompts=path == "scoring"), groups
        ).detach()

    expected = read(vlm)
    calls, names = count_hook_calls(vlm)
    assert torch.equal(read(vlm), expected)
    assert set(calls) == names
    assert len(set(calls.values())) == 1
    # One reading for the prompts, then one for each part or token.
    readings = {"scoring": 2, "rows": 1, "training": 5, "rollouts": 5}
    assert calls["module before"] == readings[path]


def test_the_module_and_its_last_layer_return_the_keys_and_values_of_a_prompt(vlm, prompts):
    """Hooks on outputs gather a layer for its backward pass. They must see where gradient comes."""
    outputs = []
    for module in (vlm.packed, vlm.model.get_decoder().layers[-1]):
        module.register_forward_hook(lambda module, args, out: outputs.append(out))
    reading = open_reading(vlm, make_groups(vlm, prompts), cut=True)
    last_layer, module = outputs
    assert all(a is b for a, b in zip(module, reading.prompt_cache.tensors(), strict=True))
    assert all(a is b for a, b in zip(last_layer, module[-2:], strict=True))
    assert all(x.requires_grad for x in module)


def test_a_copy_with_another_model_gets_its_own_module(vlm):
    assert dataclasses.replace(vlm, kernels="torch").packed is vlm.packed
    other = TINY[vlm.family.name](vlm.tokenizer, 4).model
    copy = dataclasses.replace(vlm, model=other)
    assert copy.packed is not vlm.packed
    assert copy.packed.model is other
    assert not any(name.startswith("packed") for name in vlm.model.state_dict())
    assert {f"model.{name}" for name in vlm.model.state_dict()} == set(vlm.packed.state_dict())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_module_reads_the_same(vlm, prompts, monkeypatch):
    # The compiler cannot trace the shape checks.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    groups = make_groups(vlm, prompts)
    states, gradients = states_and_gradients(vlm, groups)
    gradients = {name: g.clone() for name, g in gradients.items()}
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = dataclasses.replace(vlm, packed=torch.compile(vlm.packed, backend=backend))
    assert compiled.packed is not vlm.packed
    compiled_states, compiled_gradients = states_and_gradients(compiled, groups)
    assert graphs
    assert torch.equal(compiled_states, states)
    assert gradients.keys() == compiled_gradients.keys()
    assert all(torch.equal(compiled_gradients[name], g) for name, g in gradients.items())
    expected = write_rollouts(vlm, prompts)
    graphs.clear()
    torch.compiler.reset()  # shapes of the reading above fill the compiler's limit
    assert write_rollouts(compiled, prompts) == expected
    assert graphs  # rollouts use the compiled module too


SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, init_device_mesh

sys.path[:0] = [sys.argv[1], sys.argv[1] + "/models"]
from test_packed import TINY, make_groups, states_and_gradients, write_rollouts
from vistill.data.diagrams import diagram_prompts
from vistill.models.scoring import response_states
from vistill.studies.make_tiny_models import tiny_tokenizer

rank, world, store = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
mesh = init_device_mesh("cpu", (world,))
tokenizer, prompts = tiny_tokenizer(), diagram_prompts("train", 2, 0)


def full(x):
    return x.full_tensor() if isinstance(x, DTensor) else x


for build_tiny in TINY.values():
    dense, sharded = build_tiny(tokenizer, 3), build_tiny(tokenizer, 3)
    for layer in sharded.model.get_decoder().layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(sharded.packed, mesh=mesh, reshard_after_forward=True)
    assert isinstance(sharded.packed, FSDPModule)
    groups = make_groups(dense, prompts)
    with torch.no_grad():
        a, b = response_states(dense, groups), response_states(sharded, groups)
    assert float((a - b).abs().max()) <= 1e-6, "states"
    a, expected = states_and_gradients(dense, groups)
    b, gradients = states_and_gradients(sharded, groups)
    assert float((a - b).abs().max()) <= 1e-6, "states with gradient"
    assert expected.keys() == gradients.keys(), expected.keys() ^ gradients.keys()
    for name, g in expected.items():
        assert isinstance(gradients[name], DTensor), name
        difference = float((g - full(gradients[name])).abs().max())
        assert difference <= 1e-6 * max(1.0, float(g.abs().max())), name
    embedding = sharded.model.get_input_embeddings().weight
    assert isinstance(embedding, DTensor), "resharded after each reading"
    assert write_rollouts(dense, prompts) == write_rollouts(sharded, prompts), "rollouts"
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_model_sharded_by_fsdp2_gives_the_same_states_gradients_and_rollouts(world, tmp_path):
    """`fully_shard` on each decoder layer and on the module.

    Every rank reads the same rows, so the mean of the gradients is the gradient of one process.
    """
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(REPO / "tests")]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": REPO}
    ranks = [
        subprocess.Popen([*command, str(rank), str(world), str(tmp_path / "store")], **options)
        for rank in range(world)
    ]
    outputs = [process.communicate(timeout=250) for process in ranks]
    errors = outputs[0][1].decode()[-3000:]
    assert [out.decode().strip() for out, _ in outputs] == ["equal"] * world, errors

"""Every reading is the forward of one module: what hangs on modules sees it, and no number depends on it."""

import dataclasses
import subprocess
import sys
from collections import Counter

import jaxtyping
import pytest
import torch
from conftest import REPO, build_model
from tiny_llava import build_llava

from vistill.models.scoring import EncodedGroup, all_responses, read_groups, response_states
from vistill.rollouts.engine import RolloutRequest, Sampling
from vistill.rollouts.shared import SharedEngine

TINY = {"qwen3_vl": build_model, "llava": build_llava}
RESPONSES = ((40, 41, 42, 43), (50, 51))


@pytest.fixture(params=list(TINY))
def vlm(request, tokenizer):
    return TINY[request.param](tokenizer, 3)


def groups_of(vlm, prompts):
    return [EncodedGroup(vlm.encode(p), RESPONSES) for p in prompts[:2]]


def learnt(vlm, groups):
    """States and gradients of learning part by part."""
    vlm.model.zero_grad()
    reading, states = read_groups(vlm, groups, cut=True), []
    for place in all_responses(groups):
        states.append(reading.read([place]))
        states[-1].square().sum().backward()
    reading.close()
    return torch.cat(states).detach(), {
        n: p.grad for n, p in vlm.model.named_parameters() if p.grad is not None
    }


def rollouts(vlm, prompts):
    requests = [RolloutRequest(p.id, vlm.encode(p), (0, 1)) for p in prompts[:2]]
    return SharedEngine(vlm).write(requests, Sampling(0, 0, 1.0, 1.0, 4))


def hooked(vlm):
    """Counts of calls of the module and of every decoder layer, before and after."""
    calls = Counter()
    layers = {f"layer {i}": layer for i, layer in enumerate(vlm.model.get_decoder().layers)}
    for name, module in {"module": vlm.packed, **layers}.items():
        module.register_forward_pre_hook(lambda *_, name=name: calls.update([f"{name} before"]))
        module.register_forward_hook(lambda *_, name=name: calls.update([f"{name} after"]))
    return calls, {f"{name} {when}" for name in ("module", *layers) for when in ("before", "after")}


@pytest.mark.parametrize("way", ["scoring", "rows", "learning", "rollouts"])
def test_hooks_of_the_module_and_of_every_layer_fire_and_change_nothing(way, vlm, prompts):
    def read(vlm):
        groups = groups_of(vlm, prompts)
        if way == "learning":
            return learnt(vlm, groups)[0]
        if way == "rollouts":
            return torch.tensor(
                [i for group in rollouts(vlm, prompts) for r in group for i in r.ids]
            )
        return response_states(
            dataclasses.replace(vlm, share_prompts=way == "scoring"), groups
        ).detach()

    expected = read(vlm)
    calls, names = hooked(vlm)
    assert torch.equal(read(vlm), expected)
    assert set(calls) == names
    assert len(set(calls.values())) == 1
    readings = {
        "scoring": 2,
        "rows": 1,
        "learning": 5,
        "rollouts": 5,
    }  # prompts, then each part or token
    assert calls["module before"] == readings[way]


def test_the_keys_of_a_prompt_are_what_the_module_and_its_last_layer_return(vlm, prompts):
    """So that hooks on outputs, which gather a layer for its backward pass, see where gradient comes back."""
    seen = []
    for module in (vlm.packed, vlm.model.get_decoder().layers[-1]):
        module.register_forward_hook(lambda module, args, out: seen.append(out))
    reading = read_groups(vlm, groups_of(vlm, prompts), cut=True)
    last, every = seen
    assert all(a is b for a, b in zip(every, reading.made.tensors(), strict=True))
    assert all(a is b for a, b in zip(last, every[-2:], strict=True))
    assert all(x.requires_grad for x in every)


def test_the_module_goes_with_its_model(vlm):
    assert dataclasses.replace(vlm, kernels="torch").packed is vlm.packed
    other = TINY[vlm.family.name](vlm.tokenizer, 4).model
    moved = dataclasses.replace(vlm, model=other)
    assert moved.packed is not vlm.packed
    assert moved.packed.model is other
    assert not any(name.startswith("packed") for name in vlm.model.state_dict())
    assert {f"model.{name}" for name in vlm.model.state_dict()} == set(vlm.packed.state_dict())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_module_reads_the_same(vlm, prompts, monkeypatch):
    monkeypatch.setattr(
        jaxtyping.config, "jaxtyping_disable", True
    )  # shapes are not checked while it traces
    groups = groups_of(vlm, prompts)
    states, gradient = learnt(vlm, groups)
    gradient = {name: g.clone() for name, g in gradient.items()}
    frames = []

    def backend(graph, inputs):
        frames.append(graph)
        return graph.forward

    compiled = dataclasses.replace(vlm, packed=torch.compile(vlm.packed, backend=backend))
    assert compiled.packed is not vlm.packed
    again, same = learnt(compiled, groups)
    assert frames
    assert torch.equal(again, states)
    assert gradient.keys() == same.keys()
    assert all(torch.equal(same[name], g) for name, g in gradient.items())
    written = rollouts(vlm, prompts)
    frames.clear()
    assert rollouts(compiled, prompts) == written
    assert frames  # rollouts went through it too


SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, init_device_mesh

sys.path[:0] = [sys.argv[1], sys.argv[1] + "/models"]
from conftest import build
from test_packed import groups_of, learnt, rollouts
from tiny_llava import build_llava
from vistill.data.diagrams import diagram_prompts
from vistill.studies.make_tiny_models import raising_tokenizer
from vistill.models.scoring import response_states

rank, world, store = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
mesh, tokenizer, prompts = init_device_mesh("cpu", (world,)), raising_tokenizer(), diagram_prompts("train", 2, 0)
whole = lambda x: x.full_tensor() if isinstance(x, DTensor) else x
for make in (build, build_llava):
    plain, sharded = make(tokenizer, 3), make(tokenizer, 3)
    for layer in sharded.model.get_decoder().layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(sharded.packed, mesh=mesh, reshard_after_forward=True)
    assert isinstance(sharded.packed, FSDPModule)
    groups = groups_of(plain, prompts)
    with torch.no_grad():
        a, b = response_states(plain, groups), response_states(sharded, groups)
    assert float((a - b).abs().max()) <= 1e-6, "states"
    (a, expected), (b, made) = learnt(plain, groups), learnt(sharded, groups)
    assert float((a - b).abs().max()) <= 1e-6, "states with gradient"
    made = {name: g for name, g in made.items()}
    assert expected.keys() == made.keys(), expected.keys() ^ made.keys()
    for name, g in expected.items():
        assert isinstance(made[name], DTensor), name
        assert float((g - whole(made[name])).abs().max()) <= 1e-6 * max(1.0, float(g.abs().max())), name
    embedding = sharded.model.get_input_embeddings().weight
    assert isinstance(embedding, DTensor), "resharded after each reading"
    assert rollouts(plain, prompts) == rollouts(sharded, prompts), "rollouts"
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_model_sharded_by_fsdp2_reads_and_learns_the_same(world, tmp_path):
    """`fully_shard` on each decoder layer and on the module; every rank reads the same here, so gradients are the mean."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(REPO / "tests")]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": REPO}
    ranks = [subprocess.Popen([*command, str(rank), str(world), str(tmp_path / "store")], **options)
             for rank in range(world)]  # fmt: skip
    done = [process.communicate(timeout=250) for process in ranks]
    assert [out.decode().strip() for out, _ in done] == ["equal"] * world, done[0][1].decode()[
        -3000:
    ]

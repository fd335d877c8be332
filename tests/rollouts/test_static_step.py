"""A decoding step with static shapes: the same responses, and nothing that a graph cannot hold."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import build_model
from tiers import few
from torch.utils._python_dispatch import TorchDispatchMode

from vistill.errors import ConfigError, RolloutError
from vistill.flops_counter import counting
from vistill.models.decoding import Decoder
from vistill.models.static_step import StaticAttention, StaticStep
from vistill.models.tiny import TinySize, build_tiny
from vistill.rollouts.build import make_engine
from vistill.rollouts.engine import RolloutRequest, Sampling
from vistill.rollouts.settings import RolloutSettings
from vistill.rollouts.shared import SharedEngine

SAMPLING = Sampling(3, 7, 1.3, 0.95, 40, noise="counter")


def requests(vlm, prompts, siblings=(0, 1, 2, 3)):
    return [RolloutRequest(p.id, vlm.encode(p), tuple(siblings)) for p in prompts]


def with_likely_end(vlm, factor=3.0):
    with torch.no_grad():
        vlm.model.get_output_embeddings().weight[vlm.stop_ids[0]] *= factor
    return vlm


def states_along(vlm, prompts, is_static, lengths=(30, 40, 5, 33, 33)):
    """Hidden states along random tokens, and the decoder; finished rows are dropped."""
    g = torch.Generator().manual_seed(0)
    decoder = Decoder(vlm, [vlm.encode(p) for p in prompts], [0, 0, 1, 1, 1], is_static=is_static)
    decoder.attention.block = 16  # the capacity grows during the test
    states, left = [], list(lengths)
    for t in range(max(lengths)):
        states.append(decoder.states())
        decoder.append(torch.randint(20, 300, (len(lengths),), generator=g)[: len(left)])
        keep = [i for i, n in enumerate(left) if n > t + 1]
        if 0 < len(keep) < len(left):
            decoder.keep(keep)
            left = [left[i] for i in keep]
    return torch.cat(states), decoder


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_a_static_step_gives_the_states_of_a_growing_cache(tokenizer, prompts, dtype, bound):
    """float32 takes the fused step, bf16 the model's own layers. Captured once per change."""
    vlm = build_tiny(TinySize(layers=2, heads=4), tokenizer, 0)
    vlm.model.to(dtype)
    expected, _ = states_along(vlm, prompts[:2], False)
    states, decoder = states_along(vlm, prompts[:2], True)
    assert float((states - expected).abs().max() / expected.abs().max()) <= bound
    drops, growths = 3, 2  # after 5, 30 and 33 tokens; at 16 and 32
    assert decoder.static_step.num_captures <= 1 + drops + growths
    assert decoder.attention.capacity == 48


@pytest.mark.parametrize("noise", ["counter", "generator"])
@pytest.mark.parametrize("block", few([1, 7], 1))
def test_the_responses_are_the_same(tokenizer, prompts, noise, block):
    vlm = with_likely_end(build_model(tokenizer, 5))
    sampling = replace(SAMPLING, noise=noise, temperature=1.5, top_p=1.0, max_new_tokens=60)
    expected = SharedEngine(vlm, block_tokens=block).generate(requests(vlm, prompts[:4]), sampling)
    engine = SharedEngine(vlm, block_tokens=block, uses_graph=True)
    assert engine.generate(requests(vlm, prompts[:4]), sampling) == expected
    assert len({len(r.ids) for group in expected for r in group}) > 1, "rows leave at their end"


def test_a_block_that_is_written_again_is_the_same(teacher, prompts):
    """At a high temperature the first nucleus is too small, and the block is forgotten."""
    sampling = replace(SAMPLING, temperature=20.0)
    expected = SharedEngine(teacher, block_tokens=7).generate(
        requests(teacher, prompts[:2]), sampling
    )
    engine = SharedEngine(teacher, block_tokens=7, uses_graph=True)
    assert engine.generate(requests(teacher, prompts[:2]), sampling) == expected


class Shapes(TorchDispatchMode):
    """Records operators with the shapes of their tensors."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [x for x in (*args, out) if isinstance(x, torch.Tensor)]
        self.calls.append((function.name(), [tuple(x.shape) for x in tensors]))
        return out


def test_every_replay_runs_the_same_operators_on_the_same_shapes_and_buffers(tokenizer, prompts):
    vlm = build_tiny(TinySize(layers=2, heads=4), tokenizer, 0)
    vlm.model.to(torch.bfloat16)  # the model's own layers, as a real model has them
    decoder = Decoder(vlm, [vlm.encode(p) for p in prompts[:2]], [0, 0, 1], is_static=True)
    recorded, buffers = [], []
    for _ in range(4):
        decoder.states()
        decoder.append(torch.tensor([40, 41, 42]))
        if decoder.attention.num_added == 1:
            continue
        step = decoder.static_step
        with torch.no_grad(), Shapes() as shapes:
            step.run()
        recorded.append(shapes.calls)
        caches = [x.data_ptr() for pair in decoder.attention.row_cache.values() for x in pair]
        own = decoder.attention
        buffers.append([
            step.ids.data_ptr(), step.positions.data_ptr(), own.length.data_ptr(),
            own.own_mask.data_ptr(), *caches,
        ])  # fmt: skip
    assert recorded[0] == recorded[1] == recorded[2]
    assert buffers[0] == buffers[1] == buffers[2]
    waiting = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "bincount")
    assert not [name for name, _ in recorded[0] if any(part in name for part in waiting)]
    assert decoder.static_step.num_captures == 1


def test_the_newest_token_is_seen_and_later_places_are_not(teacher, prompts):
    """What stands beyond the newest token, such as a block that was forgotten, changes nothing."""
    decoder = Decoder(teacher, [teacher.encode(prompts[0])], [0], is_static=True)
    for _ in range(3):
        decoder.states()
        decoder.append(torch.tensor([40]))
    attention = decoder.attention
    before = [pair[0].clone() for pair in attention.row_cache.values()]
    states = decoder.states()
    attention.num_added -= 1
    for keys, values in attention.row_cache.values():
        keys[:, :, 4:] = 7.0
        values[:, :, 4:] = 1e6
    assert torch.equal(decoder.states(), states)
    newest = next(iter(attention.row_cache.values()))[0][:, :, 3]
    assert not torch.equal(newest, before[0][:, :, 3])


def test_operations_are_counted_although_a_replay_calls_no_python(teacher, prompts):
    totals = []
    for is_static in (False, True):
        decoder = Decoder(teacher, [teacher.encode(prompts[0])], [0], is_static=is_static)
        with counting() as work:
            for _ in range(5):
                decoder.states()
                decoder.append(torch.tensor([40]))
        totals.append(work["flops"])
    assert totals[0] == totals[1] > 0


def test_a_replay_after_counted_steps_returns_what_the_graph_writes(monkeypatch):
    """With a graph in Python: what it captured is the one tensor that a replay writes."""
    written = []

    def step(ids, positions, attention):
        written.append(ids.float()[:, None] * 2)
        return written[-1]

    class Attention(StaticAttention):
        def __init__(self):
            self.num_added, self.length, self.own_mask = 1, torch.zeros(1), torch.empty(8)

    class Graph:
        def replay(self):
            self.output.copy_(step(static.ids, None, None))

    @contextmanager
    def capture(graph, **options):
        yield
        graph.output = written[-1]

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda of: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    static = StaticStep(step, Attention(), 3)
    static.pool = (0, 1)

    def states(token):
        return float(static(torch.tensor([token]), torch.tensor([4]), 4))

    assert [states(1), states(2)] == [2, 4]
    with counting():
        assert states(3) == 6
    assert [states(4), states(5)] == [8, 10]
    assert static.num_captures == 1


def test_a_failed_capture_is_an_error_but_memory_is_for_the_retry(teacher, prompts):
    def decode(error):
        def failing():
            raise error

        decoder = Decoder(teacher, [teacher.encode(prompts[0])], [0], is_static=True)
        decoder.static_step.pool, decoder.static_step.capture_graph = (0, 1), failing
        for _ in range(2):
            decoder.states()
            decoder.append(torch.tensor([40]))

    with pytest.raises(RolloutError, match="R416"):
        decode(RuntimeError("operation not permitted when stream is capturing"))
    with pytest.raises(torch.OutOfMemoryError):
        decode(torch.OutOfMemoryError("CUDA out of memory"))


def test_the_recipe_turns_it_on(teacher):
    assert not make_engine(teacher, RolloutSettings()).inner.uses_graph
    assert make_engine(teacher, RolloutSettings(cuda_graph=True)).inner.uses_graph


@pytest.mark.parametrize("engine", ["hf", "vllm"])
@pytest.mark.parametrize("setting", [{"cuda_graph": True}, {"weights": "bf16"}])
def test_a_setting_of_our_decoder_is_refused_where_something_else_decodes(engine, setting):
    RolloutSettings(engine=engine, weights="own")
    with pytest.raises(ConfigError, match=f"C101(?s:.*){next(iter(setting))}"):
        RolloutSettings(engine=engine, **setting)


def test_it_is_refused_for_a_family_that_cannot_share_prompts_too(teacher):
    other = replace(teacher, share_prompts=False)
    assert not other.shares_prompts
    make_engine(other, RolloutSettings())
    with pytest.raises(ConfigError, match=r"C101(?s:.*)cannot share prompts"):
        make_engine(other, RolloutSettings(cuda_graph=True))

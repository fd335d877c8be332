"""Our engine gives the same responses as transformers' `generate`, at lower cost."""

import dataclasses
import warnings

import pytest
import torch
from conftest import build_model
from torch.utils._python_dispatch import TorchDispatchMode

from vistill.models.decode_attention import CACHE_TOKENS
from vistill.models.decoding import Decoder
from vistill.models.families.qwen3_vl_step import can_fuse
from vistill.models.flex import plan_flex
from vistill.models.scoring import ATTENTION_PLANS
from vistill.models.selftest import run_selftest
from vistill.models.tiny import TinySize, build_tiny
from vistill.rollouts.build import make_engine
from vistill.rollouts.engine import RolloutRequest, Sampling
from vistill.rollouts.hf import HFEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.rollouts.shared import SharedEngine, TokenBlocks
from vistill.types import View
from vistill.views import apply_view


def requests(vlm, prompts, siblings=(0, 1, 2, 3)):
    return [RolloutRequest(p.id, vlm.encode(p), tuple(siblings)) for p in prompts]


@pytest.mark.more
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.95), (0.0, 1.0)])
def test_the_same_responses_token_for_token(teacher, prompts, temperature, top_p):
    mixed = [
        *requests(teacher, prompts[:3]),
        *requests(teacher, [apply_view(prompts[3], View.TEXT_ONLY)], (5, 2)),
    ]
    for rows in (256, 5, 1):
        sampling = Sampling(3, 1, temperature, top_p, 90, rows)
        assert SharedEngine(teacher).generate(mixed, sampling) == HFEngine(teacher).generate(
            mixed, sampling
        )


def test_dropping_responses_that_end_early_changes_nothing(tokenizer, prompts):
    """The end-of-turn token is likely: lengths from 1 upwards, many drops, two cache growths."""
    vlm = build_model(tokenizer, 5)
    with torch.no_grad():
        vlm.model.get_output_embeddings().weight[vlm.stop_ids[0]] *= 3
    sampling = Sampling(0, 0, 1.5, 1.0, 150)
    ours = SharedEngine(vlm).generate(requests(vlm, prompts[:6]), sampling)
    lengths = {len(r.ids) for group in ours for r in group}
    assert len(lengths) > 5
    assert ours == HFEngine(vlm).generate(requests(vlm, prompts[:6]), sampling)


def test_grouped_query_attention_gives_the_same_responses(tokenizer, prompts):
    vlm = build_tiny(TinySize(heads=4), tokenizer, 0)
    config = vlm.model.config
    config.text_config.num_key_value_heads = 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = type(vlm.model)(config).eval()
    model.generation_config = vlm.model.generation_config
    vlm = dataclasses.replace(vlm, model=model)
    sampling = Sampling(0, 0, 1.0, 1.0, 20)
    assert SharedEngine(vlm).generate(requests(vlm, prompts[:2]), sampling) == HFEngine(
        vlm
    ).generate(requests(vlm, prompts[:2]), sampling)


def test_finished_rows_are_no_longer_decoded(tokenizer, prompts):
    vlm = build_model(tokenizer, 5)
    with torch.no_grad():
        vlm.model.get_output_embeddings().weight[vlm.stop_ids[0]] *= 3
    read = []
    hook = vlm.model.model.language_model.layers[0].register_forward_pre_hook(
        lambda _, args: read.append(args[0].shape[1])
    )
    out = SharedEngine(vlm).generate(requests(vlm, prompts[:6]), Sampling(0, 0, 1.5, 1.0, 60))
    hook.remove()
    tokens = sum(len(r.ids) for group in out for r in group)
    prompt_tokens = sum(len(vlm.encode(p).ids) - 1 for p in prompts[:6])
    assert read[0] == prompt_tokens
    assert tokens <= sum(read[1:]) <= 1.15 * tokens + 24
    assert read[1:] == sorted(read[1:], reverse=True)


def test_the_engine_polls_after_every_token(teacher, prompts):
    calls = []
    SharedEngine(teacher, lambda: calls.append(1)).generate(
        requests(teacher, prompts[:1]), Sampling(0, 0, 1.0, 1.0, 7)
    )
    assert len(calls) == 7


def test_the_recipe_chooses_the_engine_and_a_family_without_prefix_sharing_falls_back(teacher):
    def kind(vlm, settings):
        return type(make_engine(vlm, settings).inner)

    assert kind(teacher, RolloutSettings()) is SharedEngine
    assert kind(teacher, RolloutSettings(engine="hf")) is HFEngine
    assert kind(dataclasses.replace(teacher, share_prompts=False), RolloutSettings()) is HFEngine


def test_a_family_whose_shared_hidden_states_differ_falls_back_with_a_warning(teacher):
    class Wrong(type(teacher.family)):
        def packed_states(self, model, row):
            return super().packed_states(
                model, dataclasses.replace(row, positions=2 * row.positions)
            )

    class Broken(type(teacher.family)):
        def packed_states(self, model, row):
            raise TypeError("forward() got an unexpected keyword argument 'attend'")

    class Own(type(teacher.family)):
        def shares_prompts(self, model):
            return False

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_selftest(teacher).shares_prompts
    for kind, reason in (
        (Wrong, "hidden states differ"),
        (Broken, "unexpected keyword"),
        (Own, "adapter"),
    ):
        family = object.__new__(kind)
        family.__dict__ = teacher.family.__dict__
        with pytest.warns(UserWarning, match=reason):
            result = run_selftest(dataclasses.replace(teacher, family=family))
        assert not result.shares_prompts


@pytest.mark.more
@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile.*:UserWarning")
def test_flex_attention_that_fails_its_self_test_is_replaced_by_blocks(teacher, monkeypatch):
    flexible = dataclasses.replace(teacher, attention="flex")
    assert run_selftest(flexible).attention == "flex"

    def without_prompts(segments, num, device):
        """A mask without the lengths of the prompts."""
        return plan_flex([dataclasses.replace(s, prompt_length=0) for s in segments], num, device)

    monkeypatch.setitem(ATTENTION_PLANS, "flex", without_prompts)
    with pytest.warns(
        UserWarning, match="padded blocks instead of by flex attention, because its hidden states"
    ):
        result = run_selftest(flexible)
    assert result.attention == "blocks"
    assert result.shares_prompts


def grouped_query_model(tokenizer, seed=0):
    """A model with two queries per key and with norm weights other than 1."""
    vlm = build_tiny(TinySize(heads=4), tokenizer, seed)
    vlm.model.config.text_config.num_key_value_heads = 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = type(vlm.model)(vlm.model.config).eval()
        for name, parameter in model.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.generation_config = vlm.model.generation_config
    return dataclasses.replace(vlm, model=model)


def states_along(vlm, prompts, lengths):
    """Hidden states of the decoder along random tokens; finished rows are dropped."""
    g = torch.Generator().manual_seed(0)
    decoder = Decoder(vlm, [vlm.encode(p) for p in prompts], [0, 0, 1, 1, 1])
    states, left = [], list(lengths)
    for t in range(max(lengths)):
        states.append(decoder.states())
        decoder.append(torch.randint(20, 300, (len(lengths),), generator=g)[: len(left)])
        keep = [i for i, n in enumerate(left) if n > t + 1]
        if 0 < len(keep) < len(left):
            decoder.keep(keep)
            left = [left[i] for i in keep]
    return torch.cat(states)


def test_the_fused_step_gives_the_hidden_states_of_the_models_layers(
    tokenizer, prompts, monkeypatch
):
    vlm = grouped_query_model(tokenizer)
    assert can_fuse(vlm.model.model.language_model)
    # The table of rotary angles grows during the test.
    monkeypatch.setattr("vistill.models.families.qwen3_vl_step.TABLE_POSITIONS", 16)
    fused = states_along(vlm, prompts[:2], (30, 90, 5, 70, 70))
    # the layers of the model itself, which the fused step replaces wherever it can
    monkeypatch.setattr("vistill.models.families.qwen3_vl.can_fuse", lambda decoder: False)
    reference = states_along(vlm, prompts[:2], (30, 90, 5, 70, 70))
    assert float((fused - reference).abs().max() / reference.abs().max()) < 1e-5


def test_modified_layers_are_not_replaced_by_the_fused_step(tokenizer):
    def changed(change):
        decoder = grouped_query_model(tokenizer).model.model.language_model
        change(decoder.layers[0])
        return can_fuse(decoder)

    class Adapter(torch.nn.Linear):
        pass

    assert changed(lambda layer: None)
    assert not changed(lambda layer: layer.mlp.register_forward_hook(lambda *_: None))
    assert not changed(lambda layer: setattr(layer.mlp, "up_proj", Adapter(64, 8, bias=False)))
    assert not changed(lambda layer: layer.to(torch.bfloat16))
    assert not changed(lambda layer: setattr(layer.self_attn, "o_proj", torch.nn.Linear(8, 8)))


class Operators(TorchDispatchMode):
    """Records the names of operators."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dropped", [0, 1])
def test_a_token_takes_few_operators_and_copies_no_cache(tokenizer, prompts, dropped):
    """Measured: 60 operators in a layer, before 88, and 92 once a sibling had left."""
    vlm = build_tiny(TinySize(layers=2, heads=4), tokenizer, 0)
    larger = build_tiny(TinySize(layers=3, heads=4), tokenizer, 0)
    counts = []
    for one in (vlm, larger):
        blocks = TokenBlocks(
            one, requests(one, prompts[:2]), [0] * 4 + [1] * 4, Sampling(0, 0, 1.0, 1.0, 99), 1
        )
        blocks.write(1)
        blocks.keep(list(range(8 - dropped)))
        blocks.write(1)  # makes the table of rotary angles
        with Operators() as token:
            blocks.write(1)
        counts.append(len(token.names))
        storages = [k.data_ptr() for k, _ in blocks.decoder.attention.row_cache.values()]
        while blocks.decoder.attention.num_added < CACHE_TOKENS:
            blocks.write(1)
        caches = blocks.decoder.attention.row_cache.values()
        assert storages == [k.data_ptr() for k, _ in caches], "the cache stays where it is"
        blocks.write(1)
        assert {k.shape[2] for k, _ in caches} == {2 * CACHE_TOKENS}
    assert counts[1] - counts[0] <= 60
    assert counts[0] - 2 * (counts[1] - counts[0]) <= 40


def test_the_self_test_detects_a_wrong_fused_step(tokenizer, monkeypatch):
    # a planted defect of the fused step
    monkeypatch.setattr(
        "vistill.models.families.qwen3_vl_step.inverse_norm", lambda x, eps: torch.ones(())
    )
    with pytest.warns(UserWarning, match="its hidden states differ"):
        assert not run_selftest(grouped_query_model(tokenizer)).shares_prompts

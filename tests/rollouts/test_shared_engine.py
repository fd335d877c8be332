"""Our engine writes what transformers' `generate` writes, for less."""

import dataclasses
import warnings

import pytest
import torch
from conftest import build_model

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
from vistill.rollouts.shared import SharedEngine
from vistill.types import View
from vistill.views import apply_view


def requests(vlm, prompts, siblings=(0, 1, 2, 3)):
    return [RolloutRequest(p.id, vlm.encode(p), tuple(siblings)) for p in prompts]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.95), (0.0, 1.0)])
def test_the_same_responses_token_for_token(teacher, prompts, temperature, top_p):
    mixed = [
        *requests(teacher, prompts[:3]),
        *requests(teacher, [apply_view(prompts[3], View.TEXT_ONLY)], (5, 2)),
    ]
    for rows in (256, 5, 1):
        sampling = Sampling(3, 1, temperature, top_p, 90, rows)
        assert SharedEngine(teacher).write(mixed, sampling) == HFEngine(teacher).write(
            mixed, sampling
        )


def test_responses_that_end_early_are_dropped_and_change_nothing(tokenizer, prompts):
    """A model whose end-of-turn token is likely: lengths from 1 upwards, many drops, caches grown twice."""
    vlm = build_model(tokenizer, 5)
    with torch.no_grad():
        vlm.model.get_output_embeddings().weight[vlm.stop_ids[0]] *= 3
    sampling = Sampling(0, 0, 1.5, 1.0, 150)
    ours = SharedEngine(vlm).write(requests(vlm, prompts[:6]), sampling)
    lengths = {len(r.ids) for group in ours for r in group}
    assert len(lengths) > 5
    assert ours == HFEngine(vlm).write(requests(vlm, prompts[:6]), sampling)


def test_grouped_query_attention_writes_the_same(tokenizer, prompts):
    vlm = build_tiny(TinySize(heads=4), tokenizer, 0)
    config = vlm.model.config
    config.text_config.num_key_value_heads = 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = type(vlm.model)(config).eval()
    model.generation_config = vlm.model.generation_config
    vlm = dataclasses.replace(vlm, model=model)
    sampling = Sampling(0, 0, 1.0, 1.0, 20)
    assert SharedEngine(vlm).write(requests(vlm, prompts[:2]), sampling) == HFEngine(vlm).write(
        requests(vlm, prompts[:2]), sampling
    )


def test_finished_rows_are_no_longer_read(tokenizer, prompts):
    vlm = build_model(tokenizer, 5)
    with torch.no_grad():
        vlm.model.get_output_embeddings().weight[vlm.stop_ids[0]] *= 3
    read = []
    hook = vlm.model.model.language_model.layers[0].register_forward_pre_hook(
        lambda _, args: read.append(args[0].shape[1])
    )
    out = SharedEngine(vlm).write(requests(vlm, prompts[:6]), Sampling(0, 0, 1.5, 1.0, 60))
    hook.remove()
    tokens = sum(len(r.ids) for group in out for r in group)
    prompt_tokens = sum(len(vlm.encode(p).ids) - 1 for p in prompts[:6])
    assert read[0] == prompt_tokens
    assert tokens <= sum(read[1:]) <= 1.15 * tokens + 24
    assert read[1:] == sorted(read[1:], reverse=True)


def test_the_engine_polls_after_every_token(teacher, prompts):
    calls = []
    SharedEngine(teacher, lambda: calls.append(1)).write(
        requests(teacher, prompts[:1]), Sampling(0, 0, 1.0, 1.0, 7)
    )
    assert len(calls) == 7


def test_the_recipe_chooses_the_engine_and_a_family_that_cannot_share_falls_back(teacher):
    kind = lambda vlm, settings: type(make_engine(vlm, settings).inner)
    assert kind(teacher, RolloutSettings()) is SharedEngine
    assert kind(teacher, RolloutSettings(engine="hf")) is HFEngine
    assert kind(dataclasses.replace(teacher, share_prompts=False), RolloutSettings()) is HFEngine


def test_a_family_whose_shared_numbers_differ_falls_back_and_says_so(teacher):
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
            found = run_selftest(dataclasses.replace(teacher, family=family))
        assert not found.shares_prompts


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile.*:UserWarning")
def test_flex_attention_that_fails_its_self_test_gives_way_to_blocks(teacher, monkeypatch):
    flexible = dataclasses.replace(teacher, attention="flex")
    assert run_selftest(flexible).attention == "flex"

    def without_prompts(segments, num, device):
        """A mask that forgets whose prompt is whose."""
        return plan_flex([dataclasses.replace(s, prompt_length=0) for s in segments], num, device)

    monkeypatch.setitem(ATTENTION_PLANS, "flex", without_prompts)
    with pytest.warns(
        UserWarning, match="padded blocks instead of by flex attention, because its hidden states"
    ):
        found = run_selftest(flexible)
    assert found.attention == "blocks"
    assert found.shares_prompts


def grouped(tokenizer, seed=0):
    """A model whose queries share keys two by two, and whose norms are not all ones."""
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
    """States of the engine's own decoder along random tokens; rows that are done are dropped."""
    g = torch.Generator().manual_seed(0)
    decoder = Decoder(vlm, [vlm.encode(p) for p in prompts], [0, 0, 1, 1, 1])
    made, left = [], list(lengths)
    for t in range(max(lengths)):
        made.append(decoder.states())
        decoder.append(torch.randint(20, 300, (len(lengths),), generator=g)[: len(left)])
        keep = [i for i, n in enumerate(left) if n > t + 1]
        if 0 < len(keep) < len(left):
            decoder.keep(torch.tensor(keep))
            left = [left[i] for i in keep]
    return torch.cat(made)


def test_the_fused_step_makes_the_states_of_the_models_own_layers(tokenizer, prompts, monkeypatch):
    vlm = grouped(tokenizer)
    assert can_fuse(vlm.model.model.language_model)
    monkeypatch.setattr(
        "vistill.models.families.qwen3_vl_step.TABLE_POSITIONS", 16
    )  # the table of angles grows on the way
    fused = states_along(vlm, prompts[:2], (30, 90, 5, 70, 70))
    monkeypatch.setattr("vistill.models.families.qwen3_vl.can_fuse", lambda decoder: False)
    own = states_along(vlm, prompts[:2], (30, 90, 5, 70, 70))
    assert float((fused - own).abs().max() / own.abs().max()) < 1e-5


def test_layers_that_somebody_changed_are_used_as_they_are(tokenizer):
    def changed(change):
        decoder = grouped(tokenizer).model.model.language_model
        change(decoder.layers[0])
        return can_fuse(decoder)

    class Adapter(torch.nn.Linear):
        pass

    assert changed(lambda layer: None)
    assert not changed(lambda layer: layer.mlp.register_forward_hook(lambda *_: None))
    assert not changed(lambda layer: setattr(layer.mlp, "up_proj", Adapter(64, 8, bias=False)))
    assert not changed(lambda layer: layer.to(torch.bfloat16))
    assert not changed(lambda layer: setattr(layer.self_attn, "o_proj", torch.nn.Linear(8, 8)))


def test_a_fused_step_that_is_wrong_is_found_at_load(tokenizer, monkeypatch):
    monkeypatch.setattr(
        "vistill.models.families.qwen3_vl_step.inverse_norm", lambda x, eps: torch.ones(())
    )
    with pytest.warns(UserWarning, match="its hidden states differ"):
        assert not run_selftest(grouped(tokenizer)).shares_prompts

"""Writing with a bf16 copy: it follows the student, and its distance to scoring is bounded."""

from dataclasses import replace

import pytest
import torch
from conftest import build_model
from torch import nn

from vistill.errors import ConfigError, ModelError
from vistill.lora_settings import LoraSettings
from vistill.models.adapters import adapter_parameters, add_adapters, merge_adapters
from vistill.models.loading import VLM
from vistill.models.quantization import quantize
from vistill.models.scoring import EncodedGroup, response_states
from vistill.objectives import OPD
from vistill.rollouts.build import make_engine
from vistill.rollouts.engine import RolloutRequest, Sampling, WrappedEngine, weight_bytes
from vistill.rollouts.settings import RolloutSettings
from vistill.rollouts.shared import SharedEngine
from vistill.rollouts.weight_copy import WeightCopy, writes_with_copy
from vistill.training.canary.run import DISTANCE, describe_canary, run_canary
from vistill.training.context import StepContext
from vistill.training.models_of_run import Models
from vistill.training.optim import make_optimizer
from vistill.training.response_source import ResponseSource
from vistill.training.settings import TrainSettings

SAMPLING = Sampling(0, 0, 1.0, 1.0, 24, log_probs=True, noise="counter")


def requests(vlm, prompts):
    return [RolloutRequest(p.id, vlm.encode(p), (0, 1)) for p in prompts]


def read_log_probs(vlm, prompt, ids):
    """Log-probabilities of a response by the student itself, in float32."""
    with torch.no_grad():
        states = response_states(vlm, [EncodedGroup(vlm.encode(prompt), (ids,))])
        logits = vlm.head(vlm.vocabulary_size).logits(states)
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(ids)[:, None])[:, 0]


def in_half(vlm):
    """The model with weights in bf16; its rotary frequencies stay float32, as they are loaded."""
    for parameter in vlm.model.parameters():
        parameter.data = parameter.data.bfloat16()
    return vlm


def distance(vlm, engine, prompts):
    """Mean distance in nats per token between what an engine reports and the student's reading."""
    groups = engine.generate(requests(vlm, prompts), SAMPLING)
    pairs = [
        (torch.tensor(r.log_probs), read_log_probs(vlm, p, r.ids))
        for p, group in zip(prompts, groups, strict=True)
        for r in group
    ]
    return float(torch.cat([(a - b).abs() for a, b in pairs]).mean())


def test_writing_and_scoring_differ_by_the_rounding_of_bf16(tokenizer, prompts):
    """Measured 2e-3 nats per token at this size; the canary allows 0.15."""
    vlm = build_model(tokenizer, 0)
    assert distance(vlm, SharedEngine(vlm), prompts[:3]) < 1e-4
    copied = distance(vlm, SharedEngine(vlm, uses_copy=True), prompts[:3])
    assert 1e-5 < copied < 0.05


def test_the_copy_writes_what_a_model_with_bf16_weights_writes(tokenizer, prompts):
    vlm = build_model(tokenizer, 0)
    half = in_half(build_model(tokenizer, 0))
    engine = SharedEngine(vlm, uses_copy=True)
    expected = SharedEngine(half).generate(requests(vlm, prompts[:2]), SAMPLING)
    assert engine.generate(requests(vlm, prompts[:2]), SAMPLING) == expected
    assert all(p.dtype == torch.float32 for p in vlm.model.parameters())


@torch.no_grad()
def test_the_copy_follows_every_update_and_copies_only_what_changed(tokenizer, prompts):
    vlm = build_model(tokenizer, 0)
    vlm.model.requires_grad_(False)
    trained = vlm.model.model.language_model.layers[0].mlp.up_proj.weight
    frozen = vlm.model.model.language_model.layers[1].mlp.up_proj.weight
    trained.requires_grad_(True)
    copied = WeightCopy(vlm)
    mine = copied.vlm.model.model.language_model.layers
    assert copied.refresh() == len(copied.weights) > 10
    assert copied.refresh() == 1
    trained.data.add_(1.0)  # as an optimizer might, without a new version
    assert copied.refresh() == 1
    assert torch.equal(mine[0].mlp.up_proj.weight, trained.bfloat16())
    frozen.add_(1.0)  # as a restored checkpoint does
    assert copied.refresh() == 2
    assert torch.equal(mine[1].mlp.up_proj.weight, frozen.bfloat16())
    assert not any(p.requires_grad for p in copied.vlm.model.parameters())


def test_a_sleeping_engine_holds_no_copy(tokenizer, prompts):
    vlm = build_model(tokenizer, 0)
    engine = make_engine(vlm, RolloutSettings(weights="bf16"))
    copied = engine.inner.copy
    assert weight_bytes(engine) == 2
    assert copied.num_bytes == 0
    first = engine.generate(requests(vlm, prompts[:1]), SAMPLING)
    unique = sum(p.numel() for p in vlm.model.parameters())
    assert copied.num_bytes == 2 * unique, "a tied weight is copied once"
    engine.sleep()
    assert copied.num_bytes == 0
    engine.wake()
    assert engine.generate(requests(vlm, prompts[:1]), SAMPLING) == first
    engine.close()
    assert copied.num_bytes == 0


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_adapters_are_merged_and_frozen_bf16_weights_are_shared(tokenizer, prompts, base):
    pytest.importorskip("peft", reason="the extra `lora` is not installed")

    def adapted():
        vlm = build_model(tokenizer, 0)
        vlm.model.to(base)
        vlm = add_adapters(vlm, LoraSettings(rank=4), 0, "base")
        for n, p in enumerate(adapter_parameters(vlm.model).values()):
            nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(n))
        return vlm

    vlm, merged = adapted(), adapted()
    engine = SharedEngine(vlm, uses_copy=True)
    engine.copy.refresh()
    weights = engine.copy.vlm.model.state_dict()
    merge_adapters(merged.model)
    for name, expected in merged.model.state_dict().items():
        if expected.is_floating_point() and name in dict(merged.model.named_parameters()):
            torch.testing.assert_close(
                weights[name].float(), expected.float(), atol=2e-3, rtol=2e-2
            )
    base_weights = sum(p.numel() for p in merged.model.parameters())
    assert (engine.copy.num_bytes < 2 * base_weights) == (base is torch.bfloat16)
    assert not hasattr(engine.copy.vlm.model, "peft_config")
    responses = engine.generate(requests(vlm, prompts[:1]), SAMPLING)
    assert len(adapter_parameters(vlm.model)) > 0, "the student keeps its adapters"
    half = in_half(merged)
    for r in responses[0]:
        near = read_log_probs(half, prompts[0], r.ids)
        assert float((near - torch.tensor(r.log_probs)).abs().mean()) < 0.05


@pytest.mark.parametrize(
    ("device", "step", "setting", "expected"),
    [
        ("cpu", torch.bfloat16, "auto", False),
        ("cpu", torch.float32, "bf16", True),
        ("cuda", torch.bfloat16, "auto", True),
        ("cuda", torch.float32, "auto", False),
        ("cuda", torch.bfloat16, "own", False),
    ],
)
def test_the_setting_chooses_the_weights(tokenizer, device, step, setting, expected):
    place = torch.device(device)

    class OnDevice(VLM):
        device = place

    vlm = OnDevice(**vars(replace(build_model(tokenizer, 0), step_dtype=step)))
    assert writes_with_copy(vlm, setting) is expected
    vlm.model.bfloat16()
    assert not writes_with_copy(vlm, setting), "the weights are bf16 already"


def test_quantised_weights_are_not_copied(tokenizer):
    vlm = build_model(tokenizer, 0)
    quantize(vlm, "int8", "cpu")
    assert isinstance(make_engine(vlm, RolloutSettings()).inner, SharedEngine)
    with pytest.raises(ConfigError, match="C101"):
        make_engine(vlm, RolloutSettings(weights="bf16"))


def canary_of(vlm, teacher, prompts, engine):
    """What the canary says about an engine of a student that trains in float32."""
    train = TrainSettings()
    context = StepContext(
        models=Models(vlm, teacher, vlm.vocabulary_size),
        response_source=ResponseSource(engine, OPD(), 2),
        optimizer=make_optimizer(vlm.model, train),
        train=train,
        rollout=RolloutSettings(weights="bf16"),
        seed=0,
        num_steps=4,
    )
    return run_canary(context, prompts)


def test_the_canary_measures_and_bounds_the_distance_to_scoring(tokenizer, teacher, prompts):
    """Within the bounds of bf16, although the step runs in float32; a stale copy is caught."""
    vlm = build_model(tokenizer, 0)
    engine = make_engine(vlm, RolloutSettings(weights="bf16"))
    facts = canary_of(vlm, teacher, prompts, engine)
    assert 1e-5 < facts[DISTANCE] < 0.05
    assert f"writing and scoring differ by {facts[DISTANCE]:.1e}" in describe_canary(facts)
    own = canary_of(vlm, teacher, prompts, make_engine(vlm, RolloutSettings()))
    assert DISTANCE not in own
    stale = SharedEngine(build_model(tokenizer, 7), uses_copy=True)
    with pytest.raises(ModelError, match="V810"):
        canary_of(vlm, teacher, prompts, stale)


def test_a_copy_that_rounds_too_much_is_caught_by_its_log_probabilities(
    tokenizer, teacher, prompts
):
    """The tokens agree; the planted defect shifts every log-probability by 0.2 nats."""
    vlm = build_model(tokenizer, 0)
    engine = SharedEngine(vlm, uses_copy=True)

    class Shifted(WrappedEngine):
        def generate(self, asked, sampling):
            groups = self.inner.generate(asked, sampling)
            return [
                tuple(replace(r, log_probs=tuple(x - 0.2 for x in r.log_probs)) for r in group)
                for group in groups
            ]

    with pytest.raises(ModelError, match="V810"):
        canary_of(vlm, teacher, prompts, Shifted(engine))

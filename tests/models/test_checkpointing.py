"""Gradient checkpointing: the same gradient to the bit, for far fewer bytes, in every family."""

import dataclasses

import pytest
import torch
from conftest import build_model
from models.test_generic import families
from tiny_families import build_family

from vistill.errors import ConfigError
from vistill.lora_settings import LoraSettings
from vistill.models.adapters import add_adapters
from vistill.models.checkpointing import (
    can_checkpoint,
    checkpoints,
    is_checkpointing,
    observing_layers,
    set_checkpointing,
)
from vistill.models.scoring import EncodedGroup, all_responses, open_reading
from vistill.training.memory_budget import saved_storages, total_bytes

RESPONSES = ((40, 41, 42, 43), (50, 51), (60,))


def read(vlm, groups, cut=True):
    """Gradients of a few parts of the responses, and the bytes held after reading them."""
    vlm.model.zero_grad()
    vlm.model.train()
    saved, reading = saved_storages(vlm.model, lambda: open_reading(vlm, groups, cut=cut))
    places = all_responses(groups)
    held = total_bytes(saved)
    for part in (places[:2], places[2:]) if cut else (places,):
        states = reading.read(part)
        (states.square().sum() / 7).backward()
    reading.close()
    vlm.model.eval()
    return {n: p.grad.clone() for n, p in vlm.model.named_parameters() if p.grad is not None}, held


def assert_same_gradient(vlm, groups, cut=True):
    set_checkpointing(vlm, False)
    expected, held = read(vlm, groups, cut)
    set_checkpointing(vlm, True)
    calls = []
    with observing_layers(lambda *_: calls.append(1)):
        gradients, less = read(vlm, groups, cut)
    assert calls, "no layer was computed again"
    assert gradients.keys() == expected.keys()
    different = [n for n in expected if not torch.equal(gradients[n], expected[n])]
    assert not different
    return less / max(1.0, held)


def groups_of(vlm, prompts):
    return [EncodedGroup(vlm.encode(p), RESPONSES) for p in prompts]


@pytest.mark.parametrize("cut", [True, False], ids=["parts", "whole"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared prompts", "a row per rollout"])
@pytest.mark.parametrize("attention", ["blocks", "flex"])
def test_the_gradient_is_the_same_to_the_bit(tokenizer, prompts, shared, cut, attention):
    vlm = build_model(tokenizer, 3, layers=4)
    vlm = dataclasses.replace(vlm, share_prompts=shared, attention=attention)
    ratio = assert_same_gradient(vlm, groups_of(vlm, prompts[:2]), cut)
    assert not shared or ratio < 0.35


@pytest.mark.parametrize("name", families())
def test_the_gradient_of_every_family_is_the_same_to_the_bit(name, prompts):
    vlm = build_family(name, 1)
    assert can_checkpoint(vlm)
    assert_same_gradient(vlm, groups_of(vlm, prompts[:2]))


@pytest.mark.parametrize("part", ["vision", "tower", "language"])
def test_a_layer_without_gradient_is_not_computed_again(tokenizer, prompts, part):
    vlm = build_model(tokenizer, 3)
    for weights in vlm.family.parts(vlm.model)[part]:
        weights.requires_grad_(False)
    groups = groups_of(vlm, prompts[:2])
    assert_same_gradient(vlm, groups)
    seen = []
    with observing_layers(lambda *_: seen.append(1)):
        read(vlm, groups)
    # the prompts and two parts read each decoder layer, the prompts each block of a trained tower
    layers, blocks = vlm.model.get_decoder().layers, vlm.model.model.visual.blocks
    assert len(seen) == 3 * len(layers) + (len(blocks) if part == "language" else 0)


@pytest.mark.parametrize("targets", [("language",), ("vision",), ("language", "vision")])
def test_the_gradient_of_adapters_is_the_same_to_the_bit(tokenizer, prompts, targets):
    vlm = build_model(tokenizer, 3)
    add_adapters(vlm, LoraSettings(rank=2, targets=targets), 0, "tiny")
    for n, p in vlm.model.named_parameters():
        if "lora_B" in n:
            p.data.normal_(generator=torch.Generator().manual_seed(1), std=0.02)
    assert_same_gradient(vlm, groups_of(vlm, prompts[:2]))


def test_the_gradient_under_autocast_is_the_same_to_the_bit(tokenizer, prompts):
    vlm = build_model(tokenizer, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_gradient(vlm, groups_of(vlm, prompts[:2]))


def test_without_gradient_and_in_evaluation_nothing_is_computed_again(tokenizer, prompts):
    vlm = build_model(tokenizer, 3)
    set_checkpointing(vlm, True)
    groups, calls = groups_of(vlm, prompts[:1]), []
    with observing_layers(lambda *_: calls.append(1)):
        vlm.model.train()
        with torch.no_grad():
            open_reading(vlm, groups).read([(0, 0)])
        vlm.model.eval()
        open_reading(vlm, groups).read([(0, 0)])
    assert not calls


def test_a_model_that_cannot_is_refused_with_a_fix(tokenizer):
    vlm = build_model(tokenizer, 3)
    set_checkpointing(vlm, True)
    assert is_checkpointing(vlm.model)
    set_checkpointing(vlm, False)
    assert not any(map(checkpoints, vlm.model.modules()))
    layers = vlm.model.get_decoder().layers
    layers[0] = torch.nn.Identity()
    assert not can_checkpoint(vlm)
    with pytest.raises(ConfigError) as caught:
        set_checkpointing(vlm, True)
    assert (caught.value.code, caught.value.fix) == ("C112", "train.gradient_checkpointing=false")

"""Weights of 8 and 4 bits: which layers, how far they are from the weights before, gradients."""

import sys

import pytest
import torch
from conftest import build_model
from models.test_adapters import PROMPT, RESPONSES, adapted, backward, with_noise
from tiers import few
from tiny_families import BUILDERS, build_family
from torch import nn

from vistill.errors import MissingExtraError
from vistill.models.adapters import adapter_parameters, target_layers
from vistill.models.decoding import Decoder
from vistill.models.hf_reference import reference_log_probs
from vistill.models.quantization import (
    LAYERS,
    Int8Linear,
    QuantizedLinear,
    num_parameters,
    quantize,
)
from vistill.models.selftest import run_selftest
from vistill.planning.lora import weight_bytes
from vistill.planning.shapes import shape_of_config
from vistill.training.adapted_student import describe_adapters
from vistill.training.student_copies import copy_frozen

#: nf4 needs the extra `quantized`, which only the second tier installs.
KINDS = ["int8", pytest.param("nf4", marks=pytest.mark.slow)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_close_to_its_weights_and_its_gradient_is_that_of_what_it_multiplies(kind):
    torch.manual_seed(0)
    exact = nn.Linear(96, 40)
    layer = LAYERS[kind](exact)
    bound = {"int8": 0.01, "nf4": 0.12}[kind]
    weight = layer.dequantized(torch.float32)
    assert float((weight - exact.weight).norm() / exact.weight.norm()) < bound
    x = torch.randn(5, 96, requires_grad=True)
    y = layer(x)
    assert torch.allclose(y, x @ weight.T + exact.bias, atol=1e-5)
    y.square().sum().backward()
    assert torch.allclose(x.grad, 2 * y @ weight, rtol=1e-4, atol=1e-4)
    assert torch.equal(layer(x[:1]), layer(x)[:1]) or torch.allclose(layer(x[:1]), y[:1], atol=1e-6)
    assert not any(p.requires_grad for n, p in layer.named_parameters() if n != "bias")


def test_weights_of_eight_bits_are_within_half_a_step():
    torch.manual_seed(1)
    exact = nn.Linear(64, 32, bias=False)
    layer = Int8Linear(exact)
    step = exact.weight.abs().amax(1, keepdim=True) / 127
    assert ((layer.dequantized(torch.float32) - exact.weight).abs() <= 0.5001 * step).all()
    exact.weight.data.zero_()
    assert not Int8Linear(exact).dequantized(torch.float32).any()


def test_a_scale_of_eight_bits_is_not_rounded_before_it_multiplies():
    torch.manual_seed(2)
    layer = Int8Linear(nn.Linear(64, 32, bias=False))
    exact = layer.dequantized(torch.float32)
    assert torch.equal(layer.dequantized(torch.bfloat16), exact.to(torch.bfloat16))


def test_parameters_of_packed_weights_are_counted_as_before(tokenizer):
    class PackedLinear(QuantizedLinear):
        """Two weights in a byte, as nf4 has them."""

        def quantized(self, weight):
            packed = torch.zeros((weight.numel() + 1) // 2, 1, dtype=torch.uint8)
            return packed, torch.ones(-(-weight.numel() // 64))

    vlm = build_model(tokenizer, 0)
    before = num_parameters(vlm.model)
    assert before == sum(p.numel() for p in vlm.model.parameters())
    for name in target_layers(vlm, ("language",)):
        parent, _, child = name.rpartition(".")
        layer = PackedLinear(vlm.model.get_submodule(name))
        setattr(vlm.model.get_submodule(parent), child, layer)
    assert num_parameters(vlm.model) == before
    assert vlm.facts()["parameters"].startswith(f"{before:,} ")
    adapters = sum(p.numel() for p in adapter_parameters(adapted(vlm).model).values())
    assert f" of {before + adapters:,} parameters" in describe_adapters(vlm)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", few(list(BUILDERS), 0))
@pytest.mark.filterwarnings("ignore:.*prompts are not shared between siblings")
def test_the_decoder_is_quantised_and_nothing_else_and_all_ways_to_read_agree(name, kind):
    vlm = build_family(name).freeze()
    layers = target_layers(vlm, ("language",))
    exact = reference_log_probs(vlm, PROMPT, RESPONSES[0], vlm.vocabulary_size)
    assert quantize(vlm, kind, "cpu") == len(layers)
    quantized = {n for n, m in vlm.model.named_modules() if isinstance(m, QuantizedLinear)}
    assert quantized == set(layers)
    run_selftest(vlm, "teacher")
    values = reference_log_probs(vlm, PROMPT, RESPONSES[0], vlm.vocabulary_size)
    assert 0 < (values - exact).abs().max() < {"int8": 0.2, "nf4": 4.0}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_on_quantised_weights_learn_and_copies_share_the_weights(kind, tokenizer):
    vlm = build_model(tokenizer, 0)
    quantize(vlm, kind, "cpu")
    with_noise(adapted(vlm))
    run_selftest(vlm)
    backward(vlm)
    own = adapter_parameters(vlm.model)
    assert all(p.grad is not None and p.grad.any() for p in own.values())
    twin = copy_frozen(vlm).model
    for (name, a), (_, b) in zip(
        vlm.model.named_parameters(), twin.named_parameters(), strict=True
    ):
        assert (a is b) == (name not in own)
    with torch.autocast("cpu", torch.bfloat16):
        backward(vlm)


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_weights_are_counted(kind, tokenizer):
    vlm = build_model(tokenizer, 0, hidden=64)
    shape = shape_of_config(vlm.model.config.to_dict(), "tiny")
    quantize(vlm, kind, "cpu")
    stored = sum(
        p.nbytes
        for n, p in vlm.model.named_parameters()
        if not n.endswith("scale") or kind == "nf4"
    )
    assert stored == pytest.approx(weight_bytes(shape, 4, kind), rel=0.01)


def test_a_quantised_teacher_can_be_offloaded(tokenizer):
    vlm = build_model(tokenizer, 0).freeze()
    quantize(vlm, "int8", "cpu")
    exact = reference_log_probs(vlm, PROMPT, RESPONSES[0], vlm.vocabulary_size)
    offloaded = vlm.offloaded()
    with offloaded.on_device():
        values = reference_log_probs(offloaded, PROMPT, RESPONSES[0], vlm.vocabulary_size)
    assert torch.equal(values, exact)


def test_the_fused_decoder_step_is_not_used_with_quantised_weights(tokenizer):
    vlm = build_model(tokenizer, 0).freeze()
    quantize(vlm, "int8", "cpu")
    assert vlm.family.decoder_step(vlm.model) is None
    Decoder(vlm, [vlm.encode(PROMPT)], [0]).states()


def test_without_bitsandbytes_the_extra_is_named(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match="vistill\\[quantized\\]") as caught:
        quantize(build_model(tokenizer, 0), "nf4", "cpu")
    assert caught.value.code == "E301"

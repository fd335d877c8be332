"""What a plan counts from a shape equals what exists: parameters, gradients, moments, activations.

Tensors of tiny models and of Qwen3-VL's published layouts at a sixteenth of their widths.
"""

import functools
import json
import math

import pytest
import torch
from qwen_published import LAYOUTS, layout_config
from tiers import few
from tiny_llava import build_llava
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from vistill.data.diagrams import diagram_prompts
from vistill.functional import row_chunks
from vistill.lora_settings import LoraSettings
from vistill.models import decode_attention
from vistill.models.adapters import add_adapters
from vistill.models.checkpointing import set_checkpointing
from vistill.models.decoding import Decoder
from vistill.models.loading import VLM
from vistill.models.scoring import EncodedGroup, open_reading
from vistill.planning import memory, phase_bytes
from vistill.planning.activations import Activations
from vistill.planning.lora import adapter_parameters, linear_sizes
from vistill.planning.meta import count_linear_sizes, count_parts, shape_on_meta
from vistill.planning.phase_bytes import cache_capacity
from vistill.planning.shapes import (
    MODELS,
    VisionShape,
    count_parameters,
    shape_of_config,
    shipped_shapes,
)
from vistill.training.memory_budget import (
    bytes_of_copies,
    saved_bytes,
    saved_storages,
    total_bytes,
)
from vistill.training.optim import freeze_parts, make_optimizer
from vistill.training.settings import TrainSettings

PROMPT = diagram_prompts("train", 1, 0)[0]
TOLERANCE = 0.05
FROZEN = [[], ["vision"], ["tower"], ["language"]]


def shape_of(vlm):
    return shape_of_config(vlm.model.config.to_dict(), "tiny")


def build_reduced(size, like):
    """A published layout at a sixteenth of its widths, with tokens and patches of a tiny model."""
    config, tiny = layout_config(size), like.model.config
    config.text_config.vocab_size = tiny.text_config.vocab_size
    for name in ("patch_size", "spatial_merge_size", "temporal_patch_size"):
        setattr(config.vision_config, name, getattr(tiny.vision_config, name))
    for name in ("image_token_id", "video_token_id", "vision_start_token_id"):
        setattr(config, name, getattr(tiny, name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3VLForConditionalGeneration(config)
    return VLM(model, like.tokenizer, like.family, "reduced")


@pytest.fixture(params=few(["tiny", *LAYOUTS], 0, 1))
def model(request, student):
    return student if request.param == "tiny" else build_reduced(request.param, student)


@pytest.mark.parametrize("file", sorted(MODELS.glob("qwen*.json")), ids=lambda file: file.stem)
def test_the_parameters_of_a_shipped_shape_are_those_of_a_model_without_data(file):
    entry = json.loads(file.read_text())
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**entry["config"]))
    model.tie_weights()
    for name in entry["names"]:
        shape = shipped_shapes()[name]
        assert shape.parameters == count_parts(model)
        assert shape.parameters.total == sum(p.numel() for p in model.parameters())
        assert shape.is_confirmed == ("32B" not in name)
        assert shape.source
        assert shape.date


def test_the_family_of_a_folder_is_built_without_data(tokenizer, tmp_path):
    llava = build_llava(tokenizer, 0)
    llava.model.config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    shape = shape_on_meta(tmp_path, config, "other")
    assert shape.parameters == count_parts(llava.model)
    assert shape.parameters.total == sum(p.numel() for p in llava.model.parameters())
    assert isinstance(shape.vision, VisionShape)


@pytest.mark.parametrize("frozen", few(FROZEN, 0))
def test_parameters_gradients_and_moments_are_counted(model, frozen):
    shape = shape_of(model)
    assert count_parameters(shape) == count_parts(model.model)
    freeze_parts(model, frozen)
    settings = TrainSettings(freeze=tuple(frozen))
    optimizer = make_optimizer(model.model, settings)
    group = EncodedGroup(model.encode(PROMPT), ((40,) * 5,))
    model.model.train()
    reading = open_reading(model, [group], cut=True)
    head = model.model.get_output_embeddings().weight
    (reading.read([(0, 0)]) @ head.T).sum().backward()
    reading.close()
    trained = 4 * shape.trained_parameters(frozen)
    gradients = [p.grad for p in model.model.parameters() if p.grad is not None]
    assert sum(g.nbytes for g in gradients) == pytest.approx(trained, rel=TOLERANCE)
    optimizer.step()
    moments = [x for slots in optimizer.state.values() for x in slots.values()]
    assert sum(x.nbytes for x in moments) == pytest.approx(2 * trained, rel=TOLERANCE)


RESPONSE_TOKENS = 83


def bytes_for_backward(model, precision):
    """Bytes that a prompt and one response keep for the backward pass."""
    group = EncodedGroup(model.encode(PROMPT), ((40,) * RESPONSE_TOKENS,))
    model.model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        saved, reading = saved_storages(model.model, lambda: open_reading(model, [group], cut=True))
        more, _states = saved_storages(model.model, lambda: reading.read([(0, 0)]))
    return total_bytes(saved | more)


def expected_bytes(model, counted):
    """The same as the plan counts it."""
    prompt = model.encode(PROMPT)
    patches = sum(math.prod(grid) for grid in model.family.patch_grids(prompt))
    length = len(prompt.ids) - 1
    return (
        length * counted.prompt_token()
        + patches * counted.patch()
        + RESPONSE_TOKENS * counted.response_token()
        + length * counted.response()
        + counted.mask(length, RESPONSE_TOKENS)
        + counted.weight_copies()
    )


@pytest.mark.parametrize("precision", few(["fp32", "bf16"], 0, 1))
@pytest.mark.parametrize("frozen", few(FROZEN, 0))
def test_saved_activations_are_counted(model, precision, frozen):
    freeze_parts(model, frozen)
    counted = Activations(shape_of(model), precision == "bf16", False, frozen)
    assert bytes_for_backward(model, precision) == pytest.approx(
        expected_bytes(model, counted), rel=TOLERANCE
    )


LORA = [["language"], ["language", "vision"], ["projector"], ["vision"], ["language", "tower"]]


def add_lora(model, targets, precision="fp32"):
    """Adapters on the model, its frozen weights in the precision of a step."""
    settings = LoraSettings(rank=4, targets=tuple(targets))
    if precision == "bf16":
        model.model.to(torch.bfloat16)
    add_adapters(model, settings, 0, "base")
    return settings


@pytest.mark.parametrize("targets", few(LORA, 1))
def test_adapters_their_gradients_and_moments_are_counted(model, targets):
    shape = shape_of(model)
    assert linear_sizes(shape) == count_linear_sizes(model.model)
    settings = add_lora(model, targets)
    group = EncodedGroup(model.encode(PROMPT), ((40,) * 5,))
    optimizer = make_optimizer(model.model, TrainSettings())
    model.model.train()
    reading = open_reading(model, [group], cut=True)
    head = model.model.get_output_embeddings().weight
    (reading.read([(0, 0)]) @ head.T).sum().backward()
    reading.close()
    trained = 4 * adapter_parameters(shape, settings)
    weights = [p for p in model.model.parameters() if p.requires_grad]
    assert sum(p.nbytes for p in weights) == trained
    assert sum(p.grad.nbytes for p in weights) == trained
    optimizer.step()
    moments = [x for slots in optimizer.state.values() for x in slots.values()]
    assert sum(x.nbytes for x in moments) == pytest.approx(2 * trained, rel=TOLERANCE)


def test_adapters_of_another_family_are_counted(tokenizer, tmp_path):
    llava = build_llava(tokenizer, 0)
    llava.model.config.save_pretrained(tmp_path)
    shape = shape_on_meta(tmp_path, json.loads((tmp_path / "config.json").read_text()), "other")
    settings = LoraSettings(rank=3, targets=("language", "vision"))
    counted = adapter_parameters(shape, settings)
    add_adapters(llava, settings, 0, "base")
    assert counted == sum(p.numel() for p in llava.model.parameters() if p.requires_grad)


@pytest.mark.parametrize("precision", few(["fp32", "bf16"], 0, 1))
@pytest.mark.parametrize("targets", few(LORA, 0))
def test_saved_activations_of_adapters_are_counted(model, precision, targets):
    shape = shape_of(model)
    settings = add_lora(model, targets, precision)
    counted = Activations(shape, precision == "bf16", False, (), settings)
    assert bytes_for_backward(model, precision) == pytest.approx(
        expected_bytes(model, counted), rel=TOLERANCE
    )


def bytes_with_recomputing(model, precision):
    """What a prompt and a response hold, and what the largest layer of each saves again."""
    group = EncodedGroup(model.encode(PROMPT), ((40,) * RESPONSE_TOKENS,))
    set_checkpointing(model, True)
    model.model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        prompt, reading = saved_bytes(model.model, lambda: open_reading(model, [group], cut=True))
        response, _states = saved_bytes(model.model, lambda: reading.read([(0, 0)]))
    return prompt.with_cache(reading), response


def copies_in(model, names):
    """Bytes of bf16 copies that autocast makes of the weights with one of these names."""
    weights = {n: p for n, p in model.model.named_parameters() if p.ndim > 1}
    return sum(
        2 * p.numel()
        for n, p in weights.items()
        if any(f".{x}." in n for x in names) and p.dtype == torch.float32
    )


def assert_counted_with_recomputing(model, precision, frozen=(), lora=None):
    has_copies, half = precision == "bf16", precision == "bf16 weights"
    counted = Activations(shape_of(model), precision != "fp32", False, frozen, lora, True, half)
    prompt, response = bytes_with_recomputing(model, precision)
    encoded = model.encode(PROMPT)
    length = len(encoded.ids) - 1
    patches = sum(math.prod(grid) for grid in model.family.patch_grids(encoded))
    exact = functools.partial(pytest.approx, rel=TOLERANCE)
    # what is not in a layer keeps its copies of weights in the graph
    names = ["merger", "deepstack_merger_list", "patch_embed"]
    trained = [n for n, p in model.model.named_parameters() if p.requires_grad]
    names = [x for x in names if any(f".{x}." in n for n in trained)]
    outside = has_copies * copies_in(model, names)
    expected = length * counted.prompt_token() + patches * counted.patch() + outside
    assert prompt.held == exact(expected)
    assert response.held == exact(RESPONSE_TOKENS * counted.response_token())
    layer = has_copies * copies_in(model, ["language_model.layers.1"])
    again = counted.layer_again()
    expected = RESPONSE_TOKENS * again[1] + length * again[0] + layer
    assert response.layer == exact(expected + counted.mask(length, RESPONSE_TOKENS))
    assert prompt.layer == exact(counted.prompt_again(length, patches) + layer)
    assert bytes_of_copies(model.model) * has_copies == exact(counted.weight_copies())


@pytest.fixture(params=few(list(LAYOUTS), 0))
def published(request, student):
    return build_reduced(request.param, student)


@pytest.mark.parametrize("precision", few(["fp32", "bf16"], 0, 1))
@pytest.mark.parametrize("frozen", few(FROZEN, 0))
def test_saved_activations_of_bf16_weights_are_counted(published, precision, frozen):
    """Under bf16 autocast, as on a GPU, and without, as on a CPU."""
    freeze_parts(published, frozen)
    shape = shape_of(published)
    published.model.to(torch.bfloat16)
    counted = Activations(shape, True, False, frozen, half_weights=True)
    assert bytes_for_backward(published, precision) == pytest.approx(
        expected_bytes(published, counted), rel=TOLERANCE
    )


@pytest.mark.parametrize("precision", few(["fp32", "bf16", "bf16 weights"], 1))
@pytest.mark.parametrize("frozen", few(FROZEN, 0))
def test_what_is_held_of_layers_that_are_computed_again_is_counted(published, precision, frozen):
    freeze_parts(published, frozen)
    if precision == "bf16 weights":
        published.model.to(torch.bfloat16)
    assert_counted_with_recomputing(published, precision, frozen)


@pytest.mark.parametrize("precision", few(["fp32", "bf16"], 1))
@pytest.mark.parametrize("targets", few(LORA, 1))
def test_what_is_held_of_adapted_layers_that_are_computed_again_is_counted(
    published, precision, targets
):
    settings = add_lora(published, targets, precision)
    assert_counted_with_recomputing(published, precision, (), settings)


@pytest.mark.parametrize("tokens", [1, 64, 65, 300])
def test_the_rollout_cache_is_counted(student, tokens):
    prompt, rows = student.encode(PROMPT), 3
    decoder = Decoder(student, [prompt], [0] * rows)
    for _ in range(tokens):
        decoder.states()
        decoder.append(torch.full((rows,), 40))
    attention = decoder.attention
    cached = [x for pair in attention.row_cache.values() for x in pair]
    prompts = [x for pair in attention.prompt_cache.values() for x in pair]
    per_token = 4 * shape_of(student).kv_values
    assert sum(x.nbytes for x in cached) == per_token * rows * cache_capacity(tokens)
    assert sum(x.nbytes for x in prompts) == per_token * (len(prompt.ids) - 1)


def test_the_plan_has_the_constants_of_the_code():
    """They stand in `planning` too, because it needs no torch."""
    assert row_chunks.CHUNK_BYTES["cuda"] == memory.CHUNK_BYTES
    assert decode_attention.CACHE_TOKENS == phase_bytes.CACHE_TOKENS

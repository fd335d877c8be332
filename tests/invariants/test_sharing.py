"""Prefix sharing: the same numbers as one row per rollout, at a lower cost."""

import dataclasses
import itertools

import pytest
import torch
from conftest import build_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3VLForConditionalGeneration

from vistill.data.diagrams import diagram_prompts
from vistill.models.scoring import (
    EncodedGroup,
    PaddedReading,
    SharedReading,
    all_responses,
    open_reading,
    response_states,
)
from vistill.models.tiny import TinySize, tiny_config
from vistill.types import Prompt, View
from vistill.views import apply_view


def without_sharing(vlm):
    return dataclasses.replace(vlm, share_prompts=False)


def random_ids(vlm, seed, length):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        int(i) for i in torch.randint(20, vlm.vocabulary_size, (length,), generator=generator)
    )


def make_groups(vlm, prompts, lengths):
    return [
        EncodedGroup(
            vlm.encode(p), tuple(random_ids(vlm, 100 * g + k, n) for k, n in enumerate(ns))
        )
        for g, (p, ns) in enumerate(zip(prompts, lengths, strict=True))
    ]


@pytest.fixture(scope="module")
def varied_prompts(prompts):
    """Prompts of different lengths, without image, with two images, and under other views."""
    a, b = prompts[:2]
    two = Prompt("two", (a.images[0], "first, second ", b.images[0], "which?"))
    return [
        a,
        apply_view(b, View.TEXT_ONLY),
        two,
        apply_view(a, View.PIXELATED),
        Prompt("short", ("?",)),
    ]


@pytest.mark.parametrize(
    "case", [[[3, 9, 1], [4], [2, 2], [30], [1, 1, 60]], [[5], [5], [5], [5], [5]], [[1]] * 5]
)
def test_hidden_states_equal_those_of_separate_rows(teacher, varied_prompts, case):
    groups = make_groups(teacher, varied_prompts, case)
    with torch.no_grad():
        shared, separate = (
            response_states(teacher, groups),
            response_states(without_sharing(teacher), groups),
        )
    assert isinstance(open_reading(teacher, groups), SharedReading)
    assert isinstance(open_reading(without_sharing(teacher), groups), PaddedReading)
    assert float((shared - separate).abs().max()) < 2e-5 * float(separate.abs().max())


def with_flex(vlm):
    return dataclasses.replace(vlm, attention="flex")


ALLOW_UNCOMPILED_FLEX = pytest.mark.filterwarnings(
    "ignore:.*flex_attention called without torch.compile.*:UserWarning"
)


@pytest.mark.more
@ALLOW_UNCOMPILED_FLEX
@pytest.mark.parametrize(
    "case", [[[3, 9, 1], [4], [2, 2], [30], [1, 1, 60]], [[5], [5], [5], [5], [5]], [[1]] * 5]
)
def test_flex_attention_gives_the_same_states(teacher, varied_prompts, case):
    groups = make_groups(teacher, varied_prompts, case)
    with torch.no_grad():
        flex, separate = (
            response_states(with_flex(teacher), groups),
            response_states(without_sharing(teacher), groups),
        )
    assert float((flex - separate).abs().max()) < 2e-5 * float(separate.abs().max())


@ALLOW_UNCOMPILED_FLEX
def test_flex_attention_gives_the_same_gradients(tokenizer, prompts):
    gradients = []
    for attention in ("blocks", "flex"):
        vlm = dataclasses.replace(build_model(tokenizer, 0), attention=attention)
        groups = make_groups(vlm, prompts[:2], [[3, 40], [7]])
        reading = open_reading(vlm, groups, cut=True)
        for place in all_responses(groups):
            reading.read([place]).square().sum().backward()
        reading.close()
        gradients.append(
            torch.cat([p.grad.flatten() for p in vlm.model.parameters() if p.grad is not None])
        )
    assert float((gradients[0] - gradients[1]).norm()) < 1e-5 * float(gradients[0].norm())


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=5), min_size=1, max_size=3),
    st.integers(0, 9),
)
def test_any_lengths_and_any_number_of_siblings_agree(teacher, lengths, seed):
    groups = make_groups(teacher, diagram_prompts("train", len(lengths), seed), lengths)
    with torch.no_grad():
        shared, separate = (
            response_states(teacher, groups),
            response_states(without_sharing(teacher), groups),
        )
    assert float((shared - separate).abs().max()) < 2e-5 * float(separate.abs().max())


def test_grouped_query_attention_and_several_deepstack_levels_agree(tokenizer, teacher, prompts):
    base = tiny_config(TinySize(heads=4, vision_depth=3), tokenizer)
    base.text_config.num_key_value_heads = 2
    base.vision_config.deepstack_visual_indexes = [0, 1, 2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3VLForConditionalGeneration(base).eval()
    vlm = dataclasses.replace(teacher, model=model)
    groups = make_groups(vlm, prompts[:2], [[7, 12], [9]])
    with torch.no_grad():
        shared, separate = (
            response_states(vlm, groups),
            response_states(without_sharing(vlm), groups),
        )
    assert float((shared - separate).abs().max()) < 2e-5 * float(separate.abs().max())


def gradient(vlm, groups, weights, part=None):
    vlm.model.zero_grad()
    if part is None:
        (response_states(vlm, groups) * weights).sum().backward()
    else:
        reading, places, at = open_reading(vlm, groups, cut=True), all_responses(groups), 0
        for start in range(0, len(places), part):
            hidden = reading.read(places[start : start + part])
            (hidden * weights[at : at + len(hidden)]).sum().backward()
            at += len(hidden)
        reading.close()
    return torch.cat([p.grad.flatten() for p in vlm.model.parameters() if p.grad is not None])


def test_gradients_equal_those_of_separate_rows_with_and_without_a_cut_at_the_prompt(
    tokenizer, varied_prompts
):
    vlm = build_model(tokenizer, 3)
    groups = make_groups(vlm, varied_prompts, [[3, 9, 1], [4, 4], [2, 2], [30], [1, 1, 20]])
    weights = torch.randn(77, 48, generator=torch.Generator().manual_seed(0))[
        :, : vlm.model.config.text_config.hidden_size
    ]
    reference = gradient(without_sharing(vlm), groups, weights)
    for part in (None, 1, 4, 99):
        assert float((gradient(vlm, groups, weights, part) - reference).norm()) < 1e-5 * float(
            reference.norm()
        )


def test_a_reading_is_bitwise_repeatable(teacher, prompts):
    groups = make_groups(teacher, prompts[:2], [[7, 12], [9, 30]])
    with torch.no_grad():
        assert torch.equal(response_states(teacher, groups), response_states(teacher, groups))


def flops(vlm, groups):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        response_states(vlm, groups)
    return counter.get_total_flops()


def test_a_sibling_costs_only_its_own_tokens(teacher, prompts):
    """Four siblings of a long prompt cost far less than four rows. One more costs its response."""
    length = 4
    costs = [
        flops(teacher, make_groups(teacher, prompts[:1], [[length] * k])) for k in (1, 2, 3, 4)
    ]
    separate = flops(without_sharing(teacher), make_groups(teacher, prompts[:1], [[length] * 4]))
    steps = [b - a for a, b in itertools.pairwise(costs)]
    assert steps[0] == steps[1] == steps[2]
    assert separate / costs[3] > 2  # separate rows already share the encoding of the image
    assert steps[0] < 0.2 * costs[0]


def test_images_and_prompt_tokens_go_through_the_model_once_per_prompt(teacher, prompts):
    counts = {"patches": 0, "tokens": 0}
    visual, embed = teacher.model.model.visual, teacher.model.model.language_model.embed_tokens
    hooks = [
        visual.register_forward_pre_hook(
            lambda _, args: counts.__setitem__("patches", counts["patches"] + len(args[0]))
        ),
        embed.register_forward_pre_hook(
            lambda _, args: counts.__setitem__("tokens", counts["tokens"] + args[0].numel())
        ),
    ]
    groups = make_groups(teacher, prompts[:2], [[5] * 4, [7] * 4])
    with torch.no_grad():
        response_states(teacher, groups)
    for hook in hooks:
        hook.remove()
    assert counts["patches"] == sum(len(g.prompt.pixels["pixel_values"]) for g in groups)
    assert counts["tokens"] == sum(len(g.prompt.ids) - 1 for g in groups) + 4 * (5 + 7)


def peak_saved_bytes(vlm, groups, part):
    """Peak bytes of tensors that are saved for the backward pass. Each storage counts once."""
    references, peak = {}, 0

    def pack(x):
        nonlocal peak
        key = (x.untyped_storage().data_ptr(), x.untyped_storage().nbytes())
        references[key] = references.get(key, 0) + 1
        peak = max(peak, sum(size for _, size in references))
        return key, x

    class SavedTensor:
        def __init__(self, packed):
            self.key, self.value = packed

        def __del__(self):
            references[self.key] -= 1
            if references[self.key] == 0:
                del references[self.key]

    responses = all_responses(groups)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: SavedTensor(pack(x)), lambda s: s.value
    ):
        reading = open_reading(vlm, groups, cut=True)
        for start in range(0, len(responses), part):
            reading.read(responses[start : start + part]).sum().backward()
        reading.close()
    return peak


def test_memory_for_the_backward_pass_does_not_grow_with_the_siblings(tokenizer, prompts):
    vlm = build_model(tokenizer, 0)
    one, eight = (
        peak_saved_bytes(vlm, make_groups(vlm, prompts[:1], [[30] * k]), 1) for k in (1, 8)
    )
    together = peak_saved_bytes(vlm, make_groups(vlm, prompts[:1], [[30] * 8]), 8)
    assert eight <= 1.02 * one
    assert together > 2 * one

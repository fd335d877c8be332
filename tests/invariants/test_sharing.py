"""Prompts read once: the same numbers as one row per rollout, for less."""

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
    PlainReading,
    SharedReading,
    all_responses,
    read_groups,
    response_states,
)
from vistill.models.tiny import TinySize, tiny_config
from vistill.types import Prompt, View
from vistill.views import apply_view


def plain(vlm):
    return dataclasses.replace(vlm, share_prompts=False)


def words(vlm, seed, length):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        int(i) for i in torch.randint(20, vlm.vocabulary_size, (length,), generator=generator)
    )


def groups_of(vlm, prompts, lengths):
    return [
        EncodedGroup(vlm.encode(p), tuple(words(vlm, 100 * g + k, n) for k, n in enumerate(ns)))
        for g, (p, ns) in enumerate(zip(prompts, lengths, strict=True))
    ]


@pytest.fixture(scope="module")
def many(prompts):
    """Different lengths, no picture, two pictures, other views."""
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
def test_hidden_states_equal_those_of_separate_rows(teacher, many, case):
    groups = groups_of(teacher, many, case)
    with torch.no_grad():
        shared, separate = response_states(teacher, groups), response_states(plain(teacher), groups)
    assert isinstance(read_groups(teacher, groups), SharedReading)
    assert isinstance(read_groups(plain(teacher), groups), PlainReading)
    assert float((shared - separate).abs().max()) < 2e-5 * float(separate.abs().max())


def flexible(vlm):
    return dataclasses.replace(vlm, attention="flex")


UNFUSED = pytest.mark.filterwarnings(
    "ignore:.*flex_attention called without torch.compile.*:UserWarning"
)


@UNFUSED
@pytest.mark.parametrize(
    "case", [[[3, 9, 1], [4], [2, 2], [30], [1, 1, 60]], [[5], [5], [5], [5], [5]], [[1]] * 5]
)
def test_one_packed_row_under_a_block_mask_gives_the_same_states(teacher, many, case):
    groups = groups_of(teacher, many, case)
    with torch.no_grad():
        flex, separate = (
            response_states(flexible(teacher), groups),
            response_states(plain(teacher), groups),
        )
    assert float((flex - separate).abs().max()) < 2e-5 * float(separate.abs().max())


@UNFUSED
def test_a_block_mask_counts_no_padding_and_learns_the_same(tokenizer, prompts):
    found = []
    for attention in ("blocks", "flex"):
        vlm = dataclasses.replace(build_model(tokenizer, 0), attention=attention)
        groups = groups_of(vlm, prompts[:2], [[3, 40], [7]])
        reading = read_groups(vlm, groups, cut=True)
        for place in all_responses(groups):
            reading.read([place]).square().sum().backward()
        reading.close()
        found.append(
            torch.cat([p.grad.flatten() for p in vlm.model.parameters() if p.grad is not None])
        )
    assert float((found[0] - found[1]).norm()) < 1e-5 * float(found[0].norm())


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=5), min_size=1, max_size=3),
    st.integers(0, 9),
)
def test_any_lengths_and_any_number_of_siblings_agree(teacher, lengths, seed):
    groups = groups_of(teacher, diagram_prompts("train", len(lengths), seed), lengths)
    with torch.no_grad():
        shared, separate = response_states(teacher, groups), response_states(plain(teacher), groups)
    assert float((shared - separate).abs().max()) < 2e-5 * float(separate.abs().max())


def test_grouped_query_attention_and_several_deepstack_levels_agree(tokenizer, teacher, prompts):
    base = tiny_config(TinySize(heads=4, vision_depth=3), tokenizer)
    base.text_config.num_key_value_heads = 2
    base.vision_config.deepstack_visual_indexes = [0, 1, 2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3VLForConditionalGeneration(base).eval()
    vlm = dataclasses.replace(teacher, model=model)
    groups = groups_of(vlm, prompts[:2], [[7, 12], [9]])
    with torch.no_grad():
        shared, separate = response_states(vlm, groups), response_states(plain(vlm), groups)
    assert float((shared - separate).abs().max()) < 2e-5 * float(separate.abs().max())


def gradient(vlm, groups, weights, part=None):
    vlm.model.zero_grad()
    if part is None:
        (response_states(vlm, groups) * weights).sum().backward()
    else:
        reading, places, at = read_groups(vlm, groups, cut=True), all_responses(groups), 0
        for start in range(0, len(places), part):
            hidden = reading.read(places[start : start + part])
            (hidden * weights[at : at + len(hidden)]).sum().backward()
            at += len(hidden)
        reading.close()
    return torch.cat([p.grad.flatten() for p in vlm.model.parameters() if p.grad is not None])


def test_gradients_equal_those_of_separate_rows_whether_or_not_the_prompt_is_cut(tokenizer, many):
    vlm = build_model(tokenizer, 3)
    groups = groups_of(vlm, many, [[3, 9, 1], [4, 4], [2, 2], [30], [1, 1, 20]])
    weights = torch.randn(77, 48, generator=torch.Generator().manual_seed(0))[
        :, : vlm.model.config.text_config.hidden_size
    ]
    reference = gradient(plain(vlm), groups, weights)
    for part in (None, 1, 4, 99):
        assert float((gradient(vlm, groups, weights, part) - reference).norm()) < 1e-5 * float(
            reference.norm()
        )


def test_the_same_reading_is_bitwise_repeatable(teacher, prompts):
    groups = groups_of(teacher, prompts[:2], [[7, 12], [9, 30]])
    with torch.no_grad():
        assert torch.equal(response_states(teacher, groups), response_states(teacher, groups))


def flops(vlm, groups):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        response_states(vlm, groups)
    return counter.get_total_flops()


def test_siblings_cost_only_their_own_tokens(teacher, prompts):
    """Four siblings of a long prompt: far fewer operations than four rows; a further one costs a response alone."""
    length = 4
    costs = [flops(teacher, groups_of(teacher, prompts[:1], [[length] * k])) for k in (1, 2, 3, 4)]
    separate = flops(plain(teacher), groups_of(teacher, prompts[:1], [[length] * 4]))
    steps = [b - a for a, b in itertools.pairwise(costs)]
    assert steps[0] == steps[1] == steps[2]
    assert separate / costs[3] > 2  # separate rows share the encoding of the picture already
    assert steps[0] < 0.2 * costs[0]


def test_pictures_and_prompt_tokens_are_forwarded_once_a_prompt(teacher, prompts, monkeypatch):
    seen = {"patches": 0, "tokens": 0}
    visual, embed = teacher.model.model.visual, teacher.model.model.language_model.embed_tokens
    hooks = [
        visual.register_forward_pre_hook(
            lambda _, args: seen.__setitem__("patches", seen["patches"] + len(args[0]))
        ),
        embed.register_forward_pre_hook(
            lambda _, args: seen.__setitem__("tokens", seen["tokens"] + args[0].numel())
        ),
    ]
    groups = groups_of(teacher, prompts[:2], [[5] * 4, [7] * 4])
    with torch.no_grad():
        response_states(teacher, groups)
    for hook in hooks:
        hook.remove()
    assert seen["patches"] == sum(len(g.prompt.pixels["pixel_values"]) for g in groups)
    assert seen["tokens"] == sum(len(g.prompt.ids) - 1 for g in groups) + 4 * (5 + 7)


def saved_bytes(vlm, groups, part):
    """The most that is held for the backward pass at any time, in tensors that are saved once."""
    held, most = {}, 0

    def pack(x):
        nonlocal most
        key = (x.untyped_storage().data_ptr(), x.untyped_storage().nbytes())
        held[key] = held.get(key, 0) + 1
        most = max(most, sum(size for _, size in held))
        return key, x

    class Saved:
        def __init__(self, packed):
            self.key, self.value = packed

        def __del__(self):
            held[self.key] -= 1
            if held[self.key] == 0:
                del held[self.key]

    reading_places = all_responses(groups)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: Saved(pack(x)), lambda s: s.value):
        reading = read_groups(vlm, groups, cut=True)
        for start in range(0, len(reading_places), part):
            reading.read(reading_places[start : start + part]).sum().backward()
        reading.close()
    return most


def test_what_is_held_for_the_backward_pass_does_not_grow_with_the_siblings(tokenizer, prompts):
    vlm = build_model(tokenizer, 0)
    one, eight = (saved_bytes(vlm, groups_of(vlm, prompts[:1], [[30] * k]), 1) for k in (1, 8))
    together = saved_bytes(vlm, groups_of(vlm, prompts[:1], [[30] * 8]), 8)
    assert eight <= 1.02 * one
    assert together > 2 * one

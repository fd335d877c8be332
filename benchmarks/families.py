"""Rows of `make bench` about `generic`: its overhead, and what an adapter with sharing saves.

One thread, processor seconds, alternating order, best of several, everything in one process.
"""

import dataclasses
from types import SimpleNamespace

import torch
from limits import MIDDLE_SIZE, alternate
from torch.nn import functional as F

from vistill.data.diagrams import diagram_prompts
from vistill.flops_counter import counting
from vistill.models.families.generic import GenericFamily
from vistill.models.scoring import EncodedGroup, all_responses, open_reading, response_states
from vistill.models.tiny import build_tiny
from vistill.studies.make_tiny_models import tiny_tokenizer

#: Siblings of a prompt, and prompts of a batch.
SIBLINGS, PROMPTS = 4, 2

#: A decoder whose linear maps cost more than its attention, as in models that people train.
SIZE = dataclasses.replace(
    MIDDLE_SIZE, hidden=512, heads=8, feed_forward=1536, vision_feed_forward=512
)


def as_generic(vlm):
    """The same Qwen3-VL, read by `generic` with one row per rollout."""
    processor = SimpleNamespace(image_processor=vlm.family.processor)
    family = GenericFamily(vlm.model.config, vlm.tokenizer, processor)
    return dataclasses.replace(vlm, family=family, share_prompts=False)


def with_types(vlm, prompt):
    """An encoding with the token types that the processor of Qwen3-VL makes."""
    types = tuple(int(i == vlm.family.image_id) for i in prompt.ids)
    return dataclasses.replace(prompt, token_types={"mm_token_type_ids": types})


def make_groups(vlm, prompts):
    """Prompts with siblings as long as the prompt: T = P."""
    g = torch.Generator().manual_seed(0)
    groups = []
    for prompt in diagram_prompts("train", prompts, 0):
        encoded = with_types(vlm, vlm.encode(prompt))
        shape = (SIBLINGS, len(encoded.ids))
        responses = torch.randint(20, vlm.vocabulary_size, shape, generator=g)
        groups.append(EncodedGroup(encoded, tuple(map(tuple, responses.tolist()))))
    return groups


def our_loss(vlm, groups):
    """Loss and gradient as vistill reads: states of the response rows, and the head on them."""
    vlm.model.zero_grad()
    ids = torch.tensor([i for group in groups for r in group.responses for i in r])
    hidden = response_states(vlm, groups)
    loss = F.cross_entropy(vlm.head(vlm.vocabulary_size).logits(hidden), ids)
    loss.backward()
    return float(loss.detach())


def script_loss(vlm, groups, image_per_row):
    """The same as a script with transformers has it: right-padded rows, logits of the rows.

    The usual script gives every row its image. A careful one encodes the images once.
    """
    vlm.model.zero_grad()
    pairs = [(group.prompt, r) for group in groups for r in group.responses]
    rows = [[*p.ids, *r] for p, r in pairs]
    width = max(map(len, rows))
    ids = torch.tensor([row + [vlm.pad_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    grids = torch.cat([p.pixels["image_grid_thw"] for p, _ in pairs])
    hidden = vlm.model.model(
        input_ids=ids,
        attention_mask=mask,
        mm_token_type_ids=(ids == vlm.family.image_id).int() * mask.int(),
        image_grid_thw=grids,
        use_cache=False,
        **(pixels_of(pairs) if image_per_row else encoded_images(vlm, groups)),
    ).last_hidden_state
    spans = [slice(len(p.ids) - 1, len(p.ids) - 1 + len(r)) for p, r in pairs]
    states = torch.cat([x[span] for x, span in zip(hidden, spans, strict=True)])
    logits = vlm.model.lm_head(states)[:, : vlm.vocabulary_size]
    loss = F.cross_entropy(logits, torch.tensor([i for _, r in pairs for i in r]))
    loss.backward()
    return float(loss.detach())


def pixels_of(pairs):
    """The pixels of every row."""
    return {"pixel_values": torch.cat([p.pixels["pixel_values"] for p, _ in pairs])}


def encoded_images(vlm, groups):
    """The images of all prompts, encoded in one call and repeated for their rows."""
    names = ("pixel_values", "image_grid_thw")
    pixels = {name: torch.cat([g.prompt.pixels[name] for g in groups]) for name in names}
    output = vlm.model.model.get_image_features(**pixels, return_dict=True)
    order = [g for g, group in enumerate(groups) for _ in group.responses]
    output.pooler_output = tuple(output.pooler_output[g] for g in order)
    levels = output.deepstack_features
    output.deepstack_features = [tuple(level[g] for g in order) for level in levels]
    return {"mm_encoder_outputs": {"image": output}}


def shared_loss(vlm, groups):
    """Loss and gradient with shared prompts, in one part as a step has them."""
    vlm.model.zero_grad()
    ids = torch.tensor([i for group in groups for r in group.responses for i in r])
    reading = open_reading(vlm, groups, cut=True)
    hidden = reading.read(all_responses(groups))
    loss = F.cross_entropy(vlm.head(vlm.vocabulary_size).logits(hidden), ids)
    loss.backward()
    reading.close()
    return float(loss.detach())


def flops_of(function):
    """Counted operations of a call."""
    with counting() as totals:
        function()
    return totals["flops"]


def gradient(vlm):
    """All gradients as one vector."""
    named = vlm.model.named_parameters()
    return torch.cat([p.grad.flatten().clone() for _, p in named if p.grad is not None])


def family_rows(row, repeats):
    """The overhead of `generic`, and the adapter of Qwen3-VL against it."""
    vlm = build_tiny(SIZE, tiny_tokenizer(), 0)
    vlm.model.train()
    generic, groups = as_generic(vlm), make_groups(vlm, PROMPTS)
    functions = {
        "generic": lambda: our_loss(generic, groups),
        "script": lambda: script_loss(vlm, groups, image_per_row=True),
        "careful": lambda: script_loss(vlm, groups, image_per_row=False),
        "shared": lambda: shared_loss(vlm, groups),
    }
    losses, gradients = {}, {}
    for name, function in functions.items():
        losses[name], gradients[name] = function(), gradient(vlm)
    norm = gradients["generic"].norm()
    assert max(losses.values()) - min(losses.values()) < 1e-5, losses
    assert all(float((g - gradients["generic"]).norm() / norm) < 1e-5 for g in gradients.values())
    seconds = alternate(functions, repeats)
    ideal = flops_of(functions["generic"]) / flops_of(functions["shared"])
    speedup = seconds["generic"] / seconds["shared"]
    length = len(groups[0].prompt.ids)
    at = f"Qwen3-VL classes, K={SIBLINGS}, T=P={length}, forward and backward"
    return [
        row(
            "generic_over_script",
            seconds["generic"] / seconds["careful"],
            "ratio",
            f"a script with transformers that encodes each image once; {at}",
        ),
        row(
            "adapter_speedup_over_script",
            seconds["script"] / seconds["shared"],
            "ratio",
            f"a script with transformers, one row and one image per rollout; {at}",
        ),
        row("adapter_speedup_over_generic", speedup, "ratio", f"one row per rollout; {at}"),
        row(
            "adapter_speedup_over_flops",
            speedup / ideal,
            "ratio",
            f"the ratio of counted operations, {ideal:.2f}; same loss and gradient to 1e-5",
        ),
    ]

"""Rows of `make bench` on gradient checkpointing: bytes that are held, and the time that it takes.

A student of 16 decoder layers and 8 blocks in its tower, one prompt with four responses of its
length in two parts: forward, OPD's loss and backward, with and without, in alternating order.
"""

import dataclasses

import torch
from limits import MIDDLE_SIZE, alternate

from vistill.data.diagrams import diagram_prompts
from vistill.models.checkpointing import set_checkpointing
from vistill.models.scoring import EncodedGroup, all_responses, open_reading
from vistill.models.tiny import build_tiny
from vistill.studies.make_tiny_models import tiny_tokenizer
from vistill.training.memory_budget import saved_bytes

SIZE = dataclasses.replace(MIDDLE_SIZE, layers=16, vision_depth=8)
SIBLINGS = 4


def checkpointing_rows(row, repeats):
    """Measure held bytes and processor time with gradient checkpointing over those without."""
    vlm = build_tiny(SIZE, tiny_tokenizer(), 0)
    vlm.model.train()
    prompt = vlm.encode(diagram_prompts("train", 1, 0)[0])
    length, g = len(prompt.ids), torch.Generator().manual_seed(0)
    responses = tuple(
        tuple(torch.randint(20, vlm.vocabulary_size, (length,), generator=g).tolist())
        for _ in range(SIBLINGS)
    )
    groups = [EncodedGroup(prompt, responses)]
    places = all_responses(groups)

    def learn(is_enabled):
        set_checkpointing(vlm, is_enabled)
        vlm.model.zero_grad()
        reading, head = open_reading(vlm, groups, cut=True), vlm.head(vlm.vocabulary_size)
        for part in (places[:2], places[2:]):
            logits = head.logits(reading.read(part))
            logits.logsumexp(-1).sum().backward()
        reading.close()
        return [p.grad for p in vlm.model.parameters() if p.grad is not None]

    def held(is_enabled):
        """Bytes that are held, and those of the largest layer while it is computed again."""
        set_checkpointing(vlm, is_enabled)
        prompts, reading = saved_bytes(vlm.model, lambda: open_reading(vlm, groups, cut=True))
        part, _ = saved_bytes(vlm.model, lambda: reading.read(places[:2]))
        both = {**prompts.with_cache(reading).storages, **part.storages}
        return sum(x.nbytes() for x in both.values()), max(prompts.layer, part.layer)

    expected = [g.clone() for g in learn(False)]
    same = all(torch.equal(a, b) for a, b in zip(expected, learn(True), strict=True))
    (all_of_it, _), (kept, layer) = held(False), held(True)
    seconds = alternate({"off": lambda: learn(False), "on": lambda: learn(True)}, repeats)
    shape = f"{SIZE.layers} layers, K={SIBLINGS}, T=P={length}, parts of two responses"
    return [
        row(
            "checkpointing_held",
            kept / all_of_it,
            "ratio",
            f"{all_of_it / 2**20:,.0f} MiB without; {shape}",
        ),
        row(
            "checkpointing_peak",
            (kept + layer) / all_of_it,
            "ratio",
            "the same with the largest layer, which is computed again",
        ),
        row(
            "checkpointing_time",
            seconds["on"] / seconds["off"],
            "ratio",
            f"forward and backward; same gradient: {same}; {shape}",
        ),
    ]

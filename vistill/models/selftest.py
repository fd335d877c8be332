"""A family proves that it can share prompts before it is trusted to."""

import warnings
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from vistill.models.decoding import Decoder
from vistill.models.loading import VLM
from vistill.models.scoring import EncodedGroup, response_states
from vistill.types import LoadedImage, Prompt

#: Largest difference of hidden states relative to their largest entry, by bytes of a weight.
TOLERANCE = {4: 1e-4, 8: 1e-9, 2: 0.05}


def run_selftest(vlm: VLM) -> VLM:
    """The model as it is where its shared hidden states equal those of separate rows; else one that never shares.

    One small picture, two sibling responses of unequal length; a few milliseconds on a tiny model. Flex attention that
    fails the test gives way to padded blocks, which must pass it then.
    """
    if not vlm.shares_prompts:
        return largest_difference(vlm, "its adapter or its attention kernel cannot")
    reason = selftest_failure(vlm)
    if reason is None:
        return vlm
    if vlm.attention == "blocks":
        return largest_difference(vlm, reason)
    warnings.warn(
        f"{vlm.source}: prompts are attended to in padded blocks instead of by flex attention, because {reason}. "
        "The numbers are the same.",
        stacklevel=2,
    )
    return run_selftest(replace(vlm, attention="blocks"))


@torch.no_grad()
def selftest_failure(vlm: VLM) -> str | None:
    """Why shared hidden states cannot be trusted; None where they equal those of separate rows."""
    prompt = vlm.encode(
        Prompt("selftest", (LoadedImage(Image.new("RGB", (64, 64), (90, 140, 200))), "How many?"))
    )
    words = [i for i in range(vlm.vocabulary_size) if i not in vlm.family.banned_ids()][
        :: max(1, vlm.vocabulary_size // 9)
    ]
    groups = [EncodedGroup(prompt, (tuple(words[:5]), tuple(words[2:9])))]
    was_training = vlm.model.training
    vlm.model.eval()
    try:
        separate = response_states(replace(vlm, share_prompts=False), groups)
        found = (response_states(vlm, groups), decoded_states(vlm, groups[0]))
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        return f"its self-test failed with {type(error).__name__}: {error}"
    finally:
        vlm.model.train(was_training)
    difference = max(
        float((states - separate).abs().max() / separate.abs().max()) for states in found
    )
    if difference <= TOLERANCE[separate.element_size()]:
        return None
    return f"its hidden states differ by {difference:.1e} (relative)"


def decoded_states(vlm: VLM, group: EncodedGroup) -> Tensor:
    """Hidden states of the same responses, token after token as they would be written."""
    decoder = Decoder(vlm, [group.prompt], [0] * len(group.responses))
    longest, states = max(map(len, group.responses)), []
    for t in range(longest):
        states.append(decoder.states())
        decoder.append(
            torch.tensor([r[min(t, len(r) - 1)] for r in group.responses], device=vlm.device)
        )
    return torch.cat([torch.stack(states)[: len(r), row] for row, r in enumerate(group.responses)])


def largest_difference(vlm: VLM, reason: str) -> VLM:
    """The same model, one row per rollout, and a warning that says so."""
    warnings.warn(
        f"{vlm.source}: prompts are not shared between siblings, because {reason}. The numbers are the same, "
        "only slower: each rollout is read as a row of its own and transformers' generate writes.",
        stacklevel=3,
    )
    return replace(vlm, share_prompts=False)

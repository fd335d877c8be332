"""Test at load that a model is read correctly, and whether siblings can share a prompt.

A model that is read wrongly is refused. Where prompts cannot be shared, every rollout is its own
row.
"""

import warnings
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from vistill.models.decoding import Decoder
from vistill.models.loading import VLM
from vistill.models.proofs import prove_reading
from vistill.models.scoring import EncodedGroup, response_states
from vistill.types import LoadedImage, Prompt

#: Largest difference of hidden states, relative to their largest entry, by bytes of a weight.
TOLERANCE = {4: 1e-4, 8: 1e-9, 2: 0.05}


def run_selftest(vlm: VLM, role: str = "student") -> VLM:
    """Compare shared hidden states with those of separate rows, and choose how to read.

    The model is returned unchanged if they are equal, else without sharing. If flex attention
    fails, padded blocks are tested. The test reads one small image and two sibling responses of
    unequal length, which takes a few milliseconds on a tiny model. An error names the role.
    """
    prove_reading(vlm, role)
    if not vlm.shares_prompts:
        return without_sharing(vlm, why_not_shared(vlm))
    reason = selftest_failure(vlm)
    if reason is None:
        return vlm
    if vlm.attention == "blocks":
        return without_sharing(vlm, reason)
    warnings.warn(
        f"{vlm.source}: attention to prompts runs in padded blocks instead of by flex attention,"
        f" because {reason}. The numbers are the same.",
        stacklevel=2,
    )
    return run_selftest(replace(vlm, attention="blocks"), role)


def why_not_shared(vlm: VLM) -> str:
    """Why a model reads every rollout as its own row."""
    problem = vlm.family.sharing_problem(vlm.model)
    return problem or ("its adapter cannot share" if vlm.share_prompts else "it is turned off")


@torch.no_grad()
def selftest_failure(vlm: VLM) -> str | None:
    """Why shared hidden states are wrong, or None if they equal those of separate rows."""
    prompt = vlm.encode(
        Prompt("selftest", (LoadedImage(Image.new("RGB", (64, 64), (90, 140, 200))), "How many?"))
    )
    allowed = [i for i in range(vlm.vocabulary_size) if i not in vlm.family.banned_ids()]
    ids = allowed[:: max(1, vlm.vocabulary_size // 9)]
    groups = [EncodedGroup(prompt, (tuple(ids[:5]), tuple(ids[2:9])))]
    was_training = vlm.model.training
    vlm.model.eval()
    try:
        separate = response_states(replace(vlm, share_prompts=False), groups)
        shared = (response_states(vlm, groups), decoded_states(vlm, groups[0]))
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        return f"its self-test failed with {type(error).__name__}: {error}"
    finally:
        vlm.model.train(was_training)
    difference = max(
        float((states - separate).abs().max() / separate.abs().max()) for states in shared
    )
    if difference <= TOLERANCE[separate.element_size()]:
        return None
    return f"its hidden states differ by {difference:.1e} (relative)"


def decoded_states(vlm: VLM, group: EncodedGroup) -> Tensor:
    """Hidden states of the same responses, decoded token after token."""
    decoder = Decoder(vlm, [group.prompt], [0] * len(group.responses))
    longest, states = max(map(len, group.responses)), []
    for t in range(longest):
        states.append(decoder.states())
        decoder.append(
            torch.tensor([r[min(t, len(r) - 1)] for r in group.responses], device=vlm.device)
        )
    return torch.cat([torch.stack(states)[: len(r), row] for row, r in enumerate(group.responses)])


def without_sharing(vlm: VLM, reason: str) -> VLM:
    """The same model without prefix sharing. A warning gives the reason."""
    warnings.warn(
        f"{vlm.source}: prompts are not shared between siblings, because {reason}. The numbers are"
        " the same, but it is slower: each rollout is read as its own row, and transformers'"
        " generate writes the rollouts.",
        stacklevel=3,
    )
    return replace(vlm, share_prompts=False)

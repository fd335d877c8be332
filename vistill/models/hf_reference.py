"""Transformers' own forward pass of one prompt with one response: the reference for our readings.

It deliberately shares no code with `scoring.py`: positions, rows and masks are transformers' own.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from vistill.models.families.base import EncodedPrompt
from vistill.models.loading import VLM


@torch.no_grad()
def reference_log_probs(
    vlm: VLM, prompt: EncodedPrompt, response: tuple[int, ...], vocabulary: int
) -> Float[Tensor, " T"]:
    """Log-probability of each response token at temperature 1, over the shared vocabulary."""
    full_prompt = replace(prompt, ids=(*prompt.ids, *response))
    inputs = {
        name: x.to(vlm.device)
        for name, x in vlm.family.generation_inputs([full_prompt], vlm.pad_id).items()
    }
    was_training = vlm.model.training
    vlm.model.eval()
    logits = vlm.model(**inputs, logits_to_keep=len(response) + 1, use_cache=False).logits
    vlm.model.train(was_training)
    log_probs = torch.log_softmax(logits[0, :-1, :vocabulary].float(), -1)
    return log_probs.gather(-1, torch.tensor(response, device=log_probs.device)[:, None])[:, 0]


def has_same_pixels(a: EncodedPrompt, b: EncodedPrompt) -> bool:
    """Whether two prompts have the same image tensors."""
    return a.pixels.keys() == b.pixels.keys() and all(
        torch.equal(a.pixels[name], b.pixels[name]) for name in a.pixels
    )

"""Transformers' own forward pass of one prompt with one response: the reference for our readings.

It deliberately shares no code with `scoring.py`: positions, rows and masks are transformers' own.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from vistill.models.chat import chat_messages, load_images
from vistill.models.families.base import EncodedPrompt
from vistill.models.loading import VLM
from vistill.types import Prompt


@torch.no_grad()
def reference_log_probs(
    vlm: VLM, prompt: Prompt | EncodedPrompt, response: tuple[int, ...], vocabulary: int
) -> Float[Tensor, " T"]:
    """Log-probability of each response token at temperature 1, over the shared vocabulary.

    The inputs of a `Prompt` come from the model's own processor where it has one, so an adapter
    that drops one of them is seen.
    """
    if isinstance(prompt, Prompt):
        on_host = vlm.family.reference_inputs(chat_messages(prompt), load_images(prompt), response)
    else:
        on_host = vlm.family.generation_inputs([with_response(vlm, prompt, response)], vlm.pad_id)
    inputs = {name: x.to(vlm.device) for name, x in on_host.items()}
    was_training = vlm.model.training
    vlm.model.eval()
    logits = vlm.model(**inputs, logits_to_keep=len(response) + 1, use_cache=False).logits
    vlm.model.train(was_training)
    log_probs = torch.log_softmax(logits[0, :-1, :vocabulary].float(), -1)
    return log_probs.gather(-1, torch.tensor(response, device=log_probs.device)[:, None])[:, 0]


def with_response(vlm: VLM, prompt: EncodedPrompt, response: tuple[int, ...]) -> EncodedPrompt:
    """The prompt with a response behind it, token types included."""
    kind = (vlm.family.response_type,) * len(response)
    types = {name: (*types, *kind) for name, types in prompt.token_types.items()}
    return replace(prompt, ids=(*prompt.ids, *response), token_types=types)

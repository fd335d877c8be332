"""Proofs at load that a model is read correctly: on tiny inputs, before a run uses it.

They run for every family that vistill's own tests do not cover, so a model type without
tests is either read exactly or refused. Each proof has a code; the message names the family and the
largest difference.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from vistill.errors import ModelError
from vistill.models.chat import chat_messages, load_images
from vistill.models.families.base import base_model
from vistill.models.hf_reference import reference_log_probs
from vistill.models.loading import VLM
from vistill.models.scoring import EncodedGroup, response_states
from vistill.types import LoadedImage, Prompt

#: Largest difference of hidden states or logits, relative to the largest entry, by bytes of a
#: weight.
TOLERANCE = {4: 1e-4, 8: 1e-9, 2: 0.05}
#: The same for log-probabilities, in nats.
NATS = {4: 1e-3, 8: 1e-7, 2: 0.3}
LENGTHS = (5, 7)
#: A response of this length tells whether a token depends on later ones.
CHANGED_FROM = 4


@torch.no_grad()
def prove_reading(vlm: VLM, role: str = "student") -> None:
    """Raise M111 to M114 if a family that has no tests of vistill reads a model wrongly.

    - M111: hidden states and head give the logits of the model's own forward.
    - M112: a token does not depend on later tokens.
    - M113: a row next to another one equals the row alone.
    - M114: log-probabilities equal those of a forward whose inputs the processor makes.
    """
    if vlm.family.is_proven:
        return
    was_training = vlm.model.training
    vlm.model.eval()
    try:
        with vlm.on_device():
            run_proofs(replace(vlm, share_prompts=False), role)
    except (RuntimeError, TypeError, AttributeError, KeyError, IndexError) as error:
        message = next(iter(str(error).splitlines()), "")
        why = f"{type(error).__name__}: {message}"
        raise proof_error(vlm, "M114", "its first reading fails", why[:300], role) from error
    finally:
        vlm.model.train(was_training)


def run_proofs(vlm: VLM, role: str) -> None:
    """The proofs in order, from the head to the whole reading."""
    first, second = proof_prompts()
    responses = make_responses(vlm)
    tolerance = TOLERANCE[next(vlm.model.parameters()).element_size()]
    checks = (
        ("M111", head_difference(vlm, first), "logits of the head and of the forward differ"),
        ("M112", future_difference(vlm, first, responses), "states differ with later tokens"),
        ("M113", batch_difference(vlm, first, second, responses), "states differ in a batch"),
    )
    for code, difference, what in checks:
        if not difference <= tolerance:  # NaN too
            raise proof_error(vlm, code, f"{what} by {difference:.1e} (relative)", "", role)
    nats = NATS[next(vlm.model.parameters()).element_size()]
    for prompt in (first, second):
        difference = reference_difference(vlm, prompt, responses[0])
        if not difference <= nats:
            what = f"log-probabilities differ from transformers' own by {difference:.1e} nats"
            raise proof_error(vlm, "M114", what, "", role)


def proof_prompts() -> tuple[Prompt, Prompt]:
    """Two prompts with an image each, of different sizes and lengths."""
    gradient = Image.linear_gradient("L").resize((64, 48))
    first = Image.merge("RGB", (gradient, gradient.transpose(Image.Transpose.ROTATE_180), gradient))
    second = Image.new("RGB", (40, 80), (90, 140, 200))
    return (
        Prompt("first", (LoadedImage(first), "How many?")),
        Prompt("second", ("Look at this: ", LoadedImage(second), "What is it? Name the colour.")),
    )


def make_responses(vlm: VLM) -> list[tuple[int, ...]]:
    """Two responses of unequal length from all over the vocabulary."""
    banned = {*vlm.family.banned_ids()}
    allowed = [i for i in range(vlm.vocabulary_size) if i not in banned]
    ids = allowed[:: max(1, len(allowed) // 12)]
    return [tuple(ids[: LENGTHS[0]]), tuple(ids[2 : 2 + LENGTHS[1]])]


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest entry."""
    a, b = a.double(), b.double()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def head_difference(vlm: VLM, prompt: Prompt) -> float:
    """Difference of `head(states)` and the forward's logits for the same inputs."""
    on_host = vlm.family.reference_inputs(chat_messages(prompt), load_images(prompt), ())
    inputs = {name: x.to(vlm.device) for name, x in on_host.items()}
    states = base_model(vlm.model)(**inputs, use_cache=False).last_hidden_state
    logits = vlm.model(**inputs, use_cache=False).logits
    size = min(vlm.vocabulary_size, logits.shape[-1])
    return relative(vlm.head(size).logits(states[0]), logits[0, :, :size])


def states_of(
    vlm: VLM, prompts: Sequence[Prompt], responses: Sequence[tuple[int, ...]]
) -> list[Tensor]:
    """Hidden states of one response for each prompt, read in one batch."""
    pairs = zip(prompts, responses, strict=True)
    groups = [EncodedGroup(vlm.encode(p), (r,)) for p, r in pairs]
    return list(response_states(vlm, groups).split([len(r) for r in responses]))


def future_difference(vlm: VLM, prompt: Prompt, responses: Sequence[tuple[int, ...]]) -> float:
    """Difference of the states of equal tokens with different tokens behind them."""
    longer, other = responses[1], responses[1][:CHANGED_FROM] + responses[1][::-1][:3]
    (before,), (after,) = (states_of(vlm, [prompt], [r]) for r in (longer, other))
    return relative(after[: CHANGED_FROM + 1], before[: CHANGED_FROM + 1])


def batch_difference(
    vlm: VLM, first: Prompt, second: Prompt, responses: Sequence[tuple[int, ...]]
) -> float:
    """Difference of the states of a row alone and next to another row of another length."""
    together = states_of(vlm, [first, second], responses)
    alone = [states_of(vlm, [p], [r])[0] for p, r in zip((first, second), responses, strict=True)]
    return max(relative(a, b) for a, b in zip(together, alone, strict=True))


def reference_difference(vlm: VLM, prompt: Prompt, response: tuple[int, ...]) -> float:
    """Largest difference in nats to a forward whose inputs come from the processor."""
    (states,) = states_of(vlm, [prompt], [response])
    ids = torch.tensor(response, device=states.device)
    log_probs = torch.log_softmax(vlm.head(vlm.vocabulary_size).logits(states), -1)
    ours = log_probs.gather(-1, ids[:, None])[:, 0]
    reference = reference_log_probs(vlm, prompt, response, vlm.vocabulary_size)
    return float((ours - reference).abs().max())


def proof_error(vlm: VLM, code: str, what: str, why: str = "", role: str = "student") -> ModelError:
    """An error that says which proof fails, for which family, by how much."""
    return ModelError(
        code,
        f"family {vlm.family.describe()}: {what}",
        where=vlm.source,
        why=why or "training would use other numbers than the model's own",
        fix="report it with the model's name; until then use another model: "
        f"{role}.model=FOLDER_OR_HUB_ID",
        note=f"vistill explain {code}",
    )

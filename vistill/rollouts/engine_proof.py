"""Proof at load that an engine continues several images and siblings as the model reads them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from PIL import Image

from vistill.models.families.inputs import EncodedPrompt
from vistill.models.loading import VLM
from vistill.models.proofs import proof_error
from vistill.models.scoring import EncodedGroup, response_states
from vistill.rollouts.checked_engine import keep_awake
from vistill.rollouts.engine import RolloutEngine, RolloutRequest, Sampling, make_requests
from vistill.rollouts.samplers import make_sampler
from vistill.types import LoadedImage, Prompt, Rollout

#: Tokens of a response, the step in their noise key (no step of a run), and the siblings.
TOKENS, STEP, SIBLINGS = 6, -3, (0, 1)
SAMPLING = Sampling(0, STEP, 1.0, 1.0, TOKENS)


@torch.no_grad()
def prove_engine(
    vlm: VLM,
    engine: RolloutEngine,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    slack: float = 1e-3,
) -> None:
    """Raise M115 if an engine with keyed noise confuses two images or two siblings.

    Two prompts have two different images each, and two siblings. Every token must be the largest
    of logits plus the noise of its rollout, as the model itself reads it.

    Args:
        vlm: the model that the engine writes with.
        engine: the engine, awake or asleep.
        precision: the precision of a reading.
        slack: allowed distance of a token to the best one, in nats.
    """
    if vlm.family.is_proven or not engine.follows_keyed_noise:
        return
    prompts = [two_images(0), two_images(1)]
    encoded = [vlm.encode(prompt) for prompt in prompts]
    was_training = vlm.model.training
    vlm.model.eval()
    with keep_awake(engine), vlm.on_device():
        groups = engine.generate(make_requests(prompts, encoded, SIBLINGS), SAMPLING)
        with precision():
            distances = [
                distance_to_best(vlm, prompt, tokens, rollout)
                for prompt, tokens, group in zip(prompts, encoded, groups, strict=True)
                for rollout in group
            ]
    vlm.model.train(was_training)
    worst = max(distances)
    if worst > slack:
        what = f"the engine writes a token that is {worst:.1e} nats below the best one"
        why = "it gives images or noise to another sibling than its own"
        raise proof_error(vlm, "M115", what, why)


def distance_to_best(vlm: VLM, prompt: Prompt, encoded: EncodedPrompt, rollout: Rollout) -> float:
    """How far, in nats, a rollout's worst token is below the best one under its noise."""
    if not rollout.ids:
        return 0.0
    logits = vlm.head(vlm.vocabulary_size).logits(
        response_states(vlm, [EncodedGroup(encoded, (rollout.ids,))])
    )
    request = RolloutRequest(prompt.id, encoded, (rollout.sibling,), rollout.attempt)
    sampler = make_sampler(vlm, [request], SAMPLING)
    return max(
        sampler.distance_to_choice(row[None].clone(), token)
        for row, token in zip(logits, rollout.ids, strict=True)
    )


def two_images(number: int) -> Prompt:
    """A prompt with two different images of equal size."""
    gradient = Image.linear_gradient("L").resize((64, 48))
    turned = gradient.transpose(Image.Transpose.ROTATE_180)
    bands = (gradient, turned, gradient) if number == 0 else (turned, turned, gradient)
    first, second = Image.merge("RGB", bands), Image.merge("RGB", bands[::-1])
    plain = Image.new("RGB", (64, 48), (200, 40, 90))
    images = map(LoadedImage, (first, plain) if number == 0 else (plain, second))
    return Prompt(f"engine proof {number}", (*images, "Which?"))

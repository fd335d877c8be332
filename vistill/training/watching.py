"""When the canary sings: before the first step of a process, and at every evaluation."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import ImageOps

from vistill.training.canary import (
    SAMPLES,
    SENTENCE,
    Witness,
    check_effects,
    check_encodings,
    check_heads,
    check_itself,
    check_reading,
    check_rows,
)
from vistill.training.canary_engine import check_engine
from vistill.training.context import StepContext
from vistill.training.precision import autocast, precision_of
from vistill.types import LoadedImage, Prompt, Reader, View, Writer
from vistill.views import Partners


def examine(context: StepContext, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Everybody sees the picture, or a `ModelError` V802 to V816 says who does not.

    Returns:
        Mean effect in nats a token of exchanging the picture, by reader; nothing where no prompt has a picture.
    """
    samples = [p for p in prompts if p.images][:SAMPLES]
    cast = replace(context.cast, seen={}, partners=exchanged(samples, prompts))
    check_heads(cast)
    if not samples:
        return {}
    ids = cast.student.response_ids(SENTENCE)
    check_rows(cast, samples, ids)
    check_encodings(cast, samples)
    facts: dict[str, float] = {}
    for role in readers(context):
        vlm = cast.reader(role)
        weight, half = next(vlm.model.parameters()), precision_of(context.train, vlm.device) is torch.bfloat16
        precision = lambda device=vlm.device: autocast(context.train, device)
        witness = Witness(role, cast, samples, ids, precision, 2 if half else weight.element_size())
        was_training = vlm.model.training
        vlm.model.eval()
        with vlm.here():
            effects = hear(witness, context)
        vlm.model.train(was_training)
        facts[f"canary/{role}_image_effect"] = effects.get(View.SWAPPED, 0.0)
    return facts


def hear(witness: Witness, context: StepContext) -> dict[str, float]:
    """All that is asked of one reader."""
    check_reading(witness)
    effects = check_effects(witness)
    if witness.role is Reader.STUDENT:
        check_itself(witness)
        if context.objective.writer is Writer.STUDENT:
            check_engine(witness, context.desk.engine, context.rollout, context.seed)
    return effects


def readers(context: StepContext) -> tuple[Reader, ...]:
    """Student and, where there is one, teacher."""
    return (Reader.STUDENT,) if context.cast.teacher is None else (Reader.STUDENT, Reader.TEACHER)


def exchanged(samples: Sequence[Prompt], prompts: Sequence[Prompt]) -> dict[str, Prompt]:
    """For each sample a prompt with another picture: among the samples, else among all rows, else its own inverted."""
    others = lenders(samples, prompts)
    return {p.id: others.get(p.id) or inverted(p) for p in samples}


def lenders(samples: Sequence[Prompt], prompts: Sequence[Prompt]) -> dict[str, Prompt]:
    """The same without the samples that no row can lend another picture to."""
    near, far = Partners(samples), Partners(prompts)
    found = {p.id: near.get(p.id) or far.get(p.id) for p in samples}
    return {name: other for name, other in found.items() if other is not None}


def looked_at(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The rows whose pictures the canary reads, lent ones included."""
    samples = [p for p in prompts if p.images][:SAMPLES]
    return [*samples, *lenders(samples, prompts).values()]


def inverted(prompt: Prompt) -> Prompt:
    """The prompt with its own pictures inverted: another picture where the data have no other."""
    turned = [LoadedImage(ImageOps.invert(image.load().convert("RGB"))) for image in prompt.images]
    return prompt.with_images(turned)

"""When the canary sings: before the first step of a process, and at every evaluation."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import ImageOps

from vistill.training.canary.engine import check_engine
from vistill.training.canary.reader import (
    SAMPLES,
    SENTENCE,
    ReaderProbe,
    check_effects,
    check_encodings,
    check_heads,
    check_reading,
    check_rows,
    check_self_divergence,
)
from vistill.training.context import StepContext
from vistill.training.precision import autocast, precision_of
from vistill.types import LoadedImage, Prompt, Reader, View, Writer
from vistill.views import Partners


def run_canary(context: StepContext, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Everybody sees the picture, or a `ModelError` V802 to V816 says who does not.

    Returns:
        Mean effect in nats a token of exchanging the picture, by reader; nothing where no prompt has a picture.
    """
    samples = [p for p in prompts if p.images][:SAMPLES]
    models = replace(
        context.models, seen={}, partners=partners_with_other_pictures(samples, prompts)
    )
    check_heads(models)
    if not samples:
        return {}
    ids = models.student.response_ids(SENTENCE)
    check_rows(models, samples, ids)
    check_encodings(models, samples)
    facts: dict[str, float] = {}
    for role in roles_to_check(context):
        vlm = models.reader(role)
        weight, half = (
            next(vlm.model.parameters()),
            precision_of(context.train, vlm.device) is torch.bfloat16,
        )
        precision = lambda device=vlm.device: autocast(context.train, device)
        probe = ReaderProbe(
            role, models, samples, ids, precision, 2 if half else weight.element_size()
        )
        was_training = vlm.model.training
        vlm.model.eval()
        with vlm.on_device():
            effects = check_reader(probe, context)
        vlm.model.train(was_training)
        facts[f"canary/{role}_image_effect"] = effects.get(View.SWAPPED, 0.0)
    return facts


def check_reader(probe: ReaderProbe, context: StepContext) -> dict[str, float]:
    """All that is asked of one reader."""
    check_reading(probe)
    effects = check_effects(probe)
    if probe.role is Reader.STUDENT:
        check_self_divergence(probe)
        if context.objective.writer is Writer.STUDENT:
            check_engine(probe, context.response_source.engine, context.rollout, context.seed)
    return effects


def roles_to_check(context: StepContext) -> tuple[Reader, ...]:
    """Student and, where there is one, teacher."""
    return (Reader.STUDENT,) if context.models.teacher is None else (Reader.STUDENT, Reader.TEACHER)


def partners_with_other_pictures(
    samples: Sequence[Prompt], prompts: Sequence[Prompt]
) -> dict[str, Prompt]:
    """For each sample a prompt with another picture: among the samples, else among all rows, else its own inverted."""
    others = partners_among_rows(samples, prompts)
    return {p.id: others.get(p.id) or with_inverted_pictures(p) for p in samples}


def partners_among_rows(samples: Sequence[Prompt], prompts: Sequence[Prompt]) -> dict[str, Prompt]:
    """The same without the samples that no row can lend another picture to."""
    near, far = Partners(samples), Partners(prompts)
    found = {p.id: near.get(p.id) or far.get(p.id) for p in samples}
    return {name: other for name, other in found.items() if other is not None}


def canary_rows(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The rows whose pictures the canary reads, lent ones included."""
    samples = [p for p in prompts if p.images][:SAMPLES]
    return [*samples, *partners_among_rows(samples, prompts).values()]


def with_inverted_pictures(prompt: Prompt) -> Prompt:
    """The prompt with its own pictures inverted: another picture where the data have no other."""
    turned = [LoadedImage(ImageOps.invert(image.load().convert("RGB"))) for image in prompt.images]
    return prompt.with_images(turned)

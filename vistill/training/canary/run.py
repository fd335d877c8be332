"""The canary: all checks of student, teacher and engine."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from PIL import ImageOps

from vistill.phases import CANARY, count_items
from vistill.rollouts.engine import weight_bytes
from vistill.rollouts.engine_proof import prove_engine
from vistill.training.canary.engine import SLACK, check_engine
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
from vistill.training.models_of_run import Models
from vistill.training.precision import autocast, training_dtype
from vistill.training.teachers import naming_teacher
from vistill.types import LoadedImage, Prompt, Reader, View, Writer
from vistill.views import Partners

#: The distance between writing and scoring, next to the effects of views.
DISTANCE = "canary/writing_distance"


def run_canary(context: StepContext, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Stop the run if a reader ignores the image or reads it wrongly.

    Returns:
        By reader the mean effect of another image, and the mean distance between the
        log-probabilities of writing and of scoring where an engine reports them, in nats per
        token; empty if no prompt has an image.

    Raises:
        ModelError: V802 to V816.
    """
    samples = [p for p in prompts if p.images][:SAMPLES]
    partners = partners_with_other_images(samples, prompts)
    models = replace(context.models, encodings={}, partners=partners)
    for name, one in models.by_teacher():
        with naming_teacher(f"teachers.{name}" if name else "teacher"):
            check_heads(one)
    if not samples:
        return {}
    ids = models.student.response_ids(SENTENCE)
    check_rows(models, samples, ids)
    facts: dict[str, float] = {}
    for role, name, one in count_items(CANARY, readers_to_check(models)):
        with naming_teacher(f"teachers.{name}" if name else "teacher"):
            if role is Reader.STUDENT or name:
                check_encodings(one, samples)
            effects = run_reader(role, one, samples, ids, context)
        kind = f"{role}.{name}" if name else role
        facts[f"canary/{kind}_image_effect"] = effects.get(View.SWAPPED, 0.0)
        if DISTANCE in effects:
            facts[DISTANCE] = effects[DISTANCE]
    return facts


def describe_canary(facts: Mapping[str, float]) -> str:
    """The result of `run_canary` in words."""
    end = "_image_effect"
    readers = [
        f"{name.split('/')[1].removesuffix(end)} {effect:.3g}"
        for name, effect in facts.items()
        if name.endswith(end)
    ]
    if not readers:
        return "no images"
    text = f"every reader sees the image: {', '.join(readers)} nats per token"
    if DISTANCE in facts:
        text += f"; writing and scoring differ by {facts[DISTANCE]:.1e} nats per token"
    return text


def run_reader(
    role: Reader, models: Models, samples: Sequence[Prompt], ids: tuple[int, ...],
    context: StepContext,
) -> dict[str, float]:  # fmt: skip
    """All checks of one reader, on its device and in evaluation mode."""
    vlm = models.reader(role)
    half = training_dtype(context.train, vlm.device) is torch.bfloat16
    bytes_read = 2 if half else next(vlm.model.parameters()).element_size()
    precision = partial(autocast, context.train, vlm.device)
    probe = ReaderProbe(role, models, samples, ids, precision, bytes_read)
    was_training = vlm.model.training
    vlm.model.eval()
    with vlm.on_device():
        effects = check_reader(probe, context)
    vlm.model.train(was_training)
    return effects


def check_reader(probe: ReaderProbe, context: StepContext) -> dict[str, float]:
    """All checks of one reader; returns the effect of each view."""
    check_reading(probe)
    effects = check_effects(probe)
    if probe.role is Reader.STUDENT:
        check_self_divergence(probe)
        if context.objective.requirements.writer is Writer.STUDENT:
            engine = context.response_source.engine
            bytes_used = min(probe.bytes_read, weight_bytes(engine) or probe.bytes_read)
            prove_engine(probe.vlm, engine, probe.precision, SLACK[bytes_used])
            distance = check_engine(probe, engine, context.rollout, context.seed)
            if distance is not None:
                effects[DISTANCE] = distance
    return effects


def readers_to_check(models: Models) -> list[tuple[Reader, str, Models]]:
    """The student, and each teacher as the only one; with the teacher's name if it has one."""
    student = [(Reader.STUDENT, "", models if not models.has_several_teachers else alone(models))]
    if not models.has_teacher:
        return student
    return [*student, *((Reader.TEACHER, name, one) for name, one in models.by_teacher())]


def alone(models: Models) -> Models:
    """The models without their teachers."""
    return replace(models, teachers={}, teacher_encodes=False)


def partners_with_other_images(
    samples: Sequence[Prompt], prompts: Sequence[Prompt]
) -> dict[str, Prompt]:
    """For each sample a prompt with another image: a sample, any row, or itself inverted."""
    others = partners_among_rows(samples, prompts)
    return {p.id: others.get(p.id) or with_inverted_images(p) for p in samples}


def partners_among_rows(samples: Sequence[Prompt], prompts: Sequence[Prompt]) -> dict[str, Prompt]:
    """The same, without samples for which no row has another image."""
    among_samples, among_all = Partners(samples), Partners(prompts)
    partners = {p.id: among_samples.get(p.id) or among_all.get(p.id) for p in samples}
    return {name: partner for name, partner in partners.items() if partner is not None}


def canary_rows(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The rows whose images the canary reads, partners included."""
    samples = [p for p in prompts if p.images][:SAMPLES]
    return [*samples, *partners_among_rows(samples, prompts).values()]


def with_inverted_images(prompt: Prompt) -> Prompt:
    """The prompt with its own images inverted, for data in which all images are the same."""
    images = [LoadedImage(ImageOps.invert(image.load().convert("RGB"))) for image in prompt.images]
    return prompt.with_images(images)

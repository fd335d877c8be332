"""Is the text-only context valid? Without the image a model must still write language.

Steering (VGS) compares each model's distribution with the one without the image. If language breaks
down there, this difference is not what the image says. So a few short responses are read with the
image and without it, and compared on two kinds of tokens:

- *image-bound*: the distribution changes by more than `CRITICAL_NATS` when the image is another
  row's. This needs no text-only reading, so it does not depend on what is checked.
- *scaffold*: all others. A model should write them without the image too.

The limits lie between measured values (docs/families.md). Of models that saw some text alone,
scaffold tokens change by 0.002 to 0.03 nats without the image and keep their entropy; of models
that never did, by 0.06 to 1.6 nats, still less than image-bound tokens. A uniform distribution or
confident nonsense changes both kinds of tokens alike, by several nats. With the image, the
distributions of trained models have at most 0.1 of the entropy of a uniform one, those of untrained
models 0.96.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch
from jinja2 import TemplateError
from torch import Tensor

from vistill.batch import Objective, ScoredBatch
from vistill.errors import ModelError, VistillError
from vistill.evaluation.advantage import CRITICAL_NATS
from vistill.functional.divergences import entropy
from vistill.functional.rows import per_row
from vistill.models.pairs import same_family
from vistill.rollouts.build import make_engine
from vistill.rollouts.engine import Sampling, make_requests
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.storage import read_json, to_json
from vistill.signals.visual_advantage import distribution_advantage
from vistill.training.canary.run import partners_with_other_images
from vistill.training.checks.check import TRAINING_PURPOSES, StartCheck
from vistill.training.models_of_run import Models
from vistill.training.precision import autocast, training_dtype
from vistill.training.step_inputs import encode_step, flatten_responses, score_without_gradient
from vistill.training.teachers import naming_teacher
from vistill.types import Finish, Pass, Prompt, Reader, Rollout, RolloutGroup, View, Writer
from vistill.views import apply_view

if TYPE_CHECKING:
    from vistill.training.setup import RunSetup

FILE = "text_only.json"
#: Rows that are read, tokens of each response, and the step in the key of their noise: no step of
#: a run. The responses are greedy, so no noise is drawn.
ROWS, TOKENS, STEP = 8, 32, -3
#: From this share of the entropy of a uniform distribution on, a model does not know what to write.
UNIFORM_SHARE = 0.5
#: Language breaks down from this KL on scaffold tokens on, in nats, if it is at least this share of
#: the KL on image-bound tokens.
BROKEN_KL, BROKEN_SHARE = 1.0, 0.5
#: A valid context is weak from this KL on scaffold tokens on, in nats: the model hardly saw text
#: alone. This is a warning.
WEAK_KL = 0.5
#: Fewer tokens of a kind are no basis for comparing the KL.
MIN_TOKENS = 8
#: What an encoder raises if it cannot encode a prompt; a chat template has an error of its own.
ENCODING_ERRORS = (
    RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError, TemplateError,
)  # fmt: skip


@dataclass(frozen=True)
class TokenMeans:
    """Means over the tokens of one kind, in nats. They are 0 if there is no token."""

    tokens: int
    full_entropy: float
    """Entropy of the distribution with the image."""
    entropy: float
    """Entropy of the distribution without it."""
    kl: float
    """KL(with the image || without it)."""


@dataclass(frozen=True)
class TextOnlyReading:
    """How one model reads responses without the image, compared with its reading of the image."""

    role: str
    family: str
    uniform: float
    """Entropy of the uniform distribution over the vocabulary, in nats."""
    scaffold: TokenMeans
    bound: TokenMeans
    writer: str = "data"
    """Who wrote the responses: `student`, `teacher` or `data`."""

    def full_entropy(self) -> float:
        """Mean entropy of all tokens with the image."""
        kinds = (self.scaffold, self.bound)
        return sum(k.tokens * k.full_entropy for k in kinds) / sum(k.tokens for k in kinds)

    def problem(self) -> str:
        """Why the text-only context is not valid, or an empty string."""
        scaffold, bound, limit = self.scaffold, self.bound, UNIFORM_SHARE * self.uniform
        if not self.full_entropy() < limit:
            return ""
        values = (scaffold.entropy, scaffold.kl, bound.entropy, bound.kl)
        if not all(map(math.isfinite, values)):
            return "its distributions are not finite"
        if scaffold.entropy >= limit:
            return (
                f"its entropy on scaffold tokens is {scaffold.entropy:.2f} nats, with the image"
                f" {scaffold.full_entropy:.2f}; a uniform distribution has {self.uniform:.2f}"
            )
        if self.has_both_kinds() and scaffold.kl >= max(BROKEN_KL, BROKEN_SHARE * bound.kl):
            return (
                f"KL(full || text-only) is {scaffold.kl:.2f} nats on scaffold tokens,"
                f" {bound.kl:.2f} on image-bound tokens"
            )
        return ""

    def doubt(self) -> str:
        """Why the context cannot be judged, or an empty string."""
        with_image = self.full_entropy()
        if not math.isfinite(with_image):
            return "its distributions with the image are not finite"
        if with_image < UNIFORM_SHARE * self.uniform:
            return ""
        measured = (
            f"its entropy with the image is {with_image:.2f} nats"
            f" where a uniform distribution has {self.uniform:.2f}"
        )
        if self.writer in (self.role, "data"):
            return f"the model is untrained, {measured}"
        return f"on responses of the {self.writer}, which may be no language, {measured}"

    def is_weak(self) -> bool:
        """Whether a valid context differs much where the image should not matter."""
        return not self.problem() and not self.doubt() and self.scaffold.kl >= WEAK_KL

    def has_both_kinds(self) -> bool:
        """Whether there are enough tokens of both kinds."""
        return min(self.scaffold.tokens, self.bound.tokens) >= MIN_TOKENS

    def verdict(self) -> str:
        """What follows from the means, in words."""
        problem, doubt = self.problem(), self.doubt()
        if problem:
            return f"not valid: {problem}"
        if doubt:
            return f"cannot be judged: {doubt}"
        return "weak: scaffold tokens change much without the image" if self.is_weak() else "valid"

    def describe(self) -> str:
        """The verdict and the means, those of scaffold tokens before the slash."""

        def both(name: str) -> str:
            kinds = (self.scaffold, self.bound)
            return " / ".join(f"{getattr(k, name):.2g}" if k.tokens else "-" for k in kinds)

        return (
            f"{self.role} {self.family}: {self.verdict()};"
            f" scaffold / image-bound tokens {self.scaffold.tokens} / {self.bound.tokens},"
            f" entropy {both('entropy')} nats (full {both('full_entropy')}),"
            f" KL(full || text-only) {both('kl')}"
        )


def roles_that_need(objective: Objective) -> set[str]:
    """The models that a method lets read or write without the image."""
    wanted = objective.requirements
    readers = [p.reader for p in objective.passes() if p.view == View.TEXT_ONLY]
    if wanted.writer_view == View.TEXT_ONLY:
        readers.append(Reader.TEACHER if wanted.writer is Writer.TEACHER else Reader.STUDENT)
    if wanted.entry_gate is not None and wanted.entry_gate.view == View.TEXT_ONLY:
        readers.append(Reader.STUDENT)
    return {"teacher" if reader is Reader.TEACHER else "student" for reader in readers}


def rows_with_images(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The first rows with an image."""
    return [p for p in prompts if p.images][:ROWS]


def check_text_only_prompts(setup: "RunSetup") -> str:
    """M106 before any weight is loaded, if a method needs prompts without their images.

    A row that cannot be encoded with its image either raises its own error.
    """
    assert setup.encoders is not None, "the check `tokenizers` has not run yet"
    needed = roles_that_need(setup.objective)
    prompts = rows_with_images(setup.train_prompts)
    if not prompts:
        return "no row has an image"
    student = setup.student
    others = {
        role: one for role, one in setup.teacher_encoders.items() if not same_family(student, one)
    }
    encoders = {"student": student, **others}
    results = []
    for role, encoder in encoders.items():
        try:
            lengths = [len(encoder.encode(apply_view(p, View.TEXT_ONLY)).ids) for p in prompts]
            results.append(f"{role} {min(lengths)} to {max(lengths)} tokens")
        except ENCODING_ERRORS as error:
            for prompt in prompts:
                encoder.encode(prompt)
            reason = error.what if isinstance(error, VistillError) else str(error)
            why = f"{type(error).__name__}: {reason}"
            if needed:
                with naming_teacher(role if role != "student" else "teacher"):
                    kind = role.partition("s.")[0]
                    raise unreadable_view_error(f"{kind}.{View.TEXT_ONLY}", why) from error
            results.append(f"warning: the {role} cannot encode a prompt without its image ({why})")
    return "; ".join(results)


def unreadable_view_error(name: str, why: str) -> ModelError:
    """M106."""
    reader, _, view = name.partition(".")
    hint = "another model family" if view == View.TEXT_ONLY else "another model, or another view"
    return ModelError(
        "M106",
        f"the {reader} cannot read the view {view}",
        why=why[:300],
        fix=f"use {hint}: {'teacher' if reader == 'teacher' else 'student'}.model=FOLDER_OR_HUB_ID",
    )


def check_text_only_context(setup: "RunSetup") -> str:
    """M116 if a method needs the text-only view of a model whose language breaks down there.

    For other methods `vistill check` measures and says it; a run skips it. A run that needs it
    measures once; a later start with the same question reads `text_only.json`.
    """
    needed, name = roles_that_need(setup.objective), type(setup.objective).__name__
    prompts = rows_with_images(setup.train_prompts)
    if not prompts:
        return "no row has an image"
    if not needed and setup.purpose != "check":
        return f"not read by {name}"
    file, question = setup.folder.path / FILE, question_of(setup, prompts)
    if needed and file.exists():
        known = read_json(file, question=dict, summary=str)
        if known["question"] == question:
            return str(known["summary"])
    readings = []
    for teacher, models in setup.models.by_teacher():
        with naming_teacher(f"teachers.{teacher}" if teacher else "teacher"):
            measured = measure_text_only(setup, models, prompts)
            for reading in measured:
                if reading.role in needed and reading.problem():
                    raise invalid_context_error(reading, models, name)
        is_again = bool(readings)  # the student was measured with the first teacher
        readings += [
            replace(one, family=f"{teacher} {one.family}".strip()) if one.role == "teacher" else one
            for one in measured
            if not (is_again and one.role == "student")
        ]
    lines = [reading.describe() for reading in readings]
    unused = [reading.role for reading in readings if reading.problem()]
    if unused:
        lines.append(
            f"warning: {name} does not use it, but accuracy without the image and visual dependency"
            f" of the {' and the '.join(unused)} have no meaning"
        )
    summary = "\n".join(lines)
    if needed:
        warn_of_weak_contexts(setup, readings)
        record = {"question": question, "summary": summary}
        record["readings"] = [asdict(reading) for reading in readings]
        setup.folder.write(FILE, to_json(record, indent=2, exact=True))
    return summary


def warn_of_weak_contexts(setup: "RunSetup", readings: Sequence[TextOnlyReading]) -> None:
    """Log a warning of a run for each model whose text-only context is weak."""
    for reading in readings:
        if setup.purpose == "train" and reading.is_weak():
            text = f"warning: text-only context of the {reading.describe()}"
            setup.folder.event(text)
            setup.progress({"event": text})


def question_of(setup: "RunSetup", prompts: Sequence[Prompt]) -> dict[str, object]:
    """What the measurement depends on."""
    return {
        "models": setup.models_hash,
        "rows": [p.id for p in prompts],
        "writer": str(setup.objective.requirements.writer),
        "precision": str(training_dtype(setup.train, setup.models.student.device)),
    }


def measure_text_only(
    setup: "RunSetup", models: Models, prompts: Sequence[Prompt]
) -> list[TextOnlyReading]:
    """The reading of each model. The teacher, where there is one, says what is image-bound."""
    partners = partners_with_other_images(prompts, setup.train_prompts)
    models = replace(models, partners=partners, encodings={})
    readers = [Reader.STUDENT] if models.teacher is None else [Reader.STUDENT, Reader.TEACHER]
    passes = [Pass(reader, view) for reader in readers for view in (View.FULL, View.TEXT_ONLY)]
    passes.append(Pass(readers[-1], View.SWAPPED))
    groups = write_responses(setup, models, prompts)
    responses = flatten_responses(groups, setup.seed, STEP, models.student.device)
    inputs = encode_step(models, groups, passes, responses)
    with models.on_device(passes), autocast(setup.train, models.student.device):
        batch = score_without_gradient(models, inputs, passes, setup.poll)
    full, swapped = (batch[f"{readers[-1]}.{view}"] for view in (View.FULL, View.SWAPPED))
    bound = distribution_advantage(full, swapped) > CRITICAL_NATS
    writer = str(setup.objective.requirements.writer)
    return [reading_of(models, reader, batch, bound, writer) for reader in readers]


def write_responses(
    setup: "RunSetup", models: Models, prompts: Sequence[Prompt]
) -> list[RolloutGroup]:
    """One short response per prompt, by the writer of the method's responses, without noise."""
    kind = setup.objective.requirements.writer
    if kind is Writer.DATA:
        texts = [models.student.response_ids(p.response or "")[:TOKENS] for p in prompts]
        responses = [(Rollout(ids, 0, Finish.LENGTH),) for ids in texts]
    else:
        reader = Reader.TEACHER if kind is Writer.TEACHER else Reader.STUDENT
        writer, rows = models.reader(reader), setup.rollout.rows_per_call
        requests = make_requests(
            prompts, [models.encode(p, View.FULL, reader) for p in prompts], (0,)
        )
        sampling = Sampling(setup.seed, STEP, 0.0, 1.0, TOKENS, rows)
        with writer.on_device(), make_engine(writer, RolloutSettings(), setup.poll) as engine:
            responses = engine.generate(requests, sampling)
    pairs = zip(prompts, responses, strict=True)
    return [RolloutGroup(prompt, rollouts) for prompt, rollouts in pairs if rollouts[0].ids]


@torch.no_grad()
def reading_of(
    models: Models, reader: Reader, batch: ScoredBatch, bound: Tensor, writer: str
) -> TextOnlyReading:
    """Means over scaffold and image-bound tokens of one model, and who wrote them."""
    full, text_only = (batch[f"{reader}.{view}"] for view in (View.FULL, View.TEXT_ONLY))
    columns = [per_row(entropy, x.states(), x.projection()) for x in (full, text_only)]
    columns.append(distribution_advantage(full, text_only))

    def means(mask: Tensor) -> TokenMeans:
        count = int(mask.sum())
        values = [float(c[mask].double().mean()) if count else 0.0 for c in columns]
        return TokenMeans(count, *values)

    family = models.reader(reader).family.describe()
    return TextOnlyReading(
        str(reader), family, math.log(models.vocabulary), means(~bound), means(bound), writer
    )


def invalid_context_error(reading: TextOnlyReading, models: Models, name: str) -> ModelError:
    """M116."""
    vlm = models.reader(Reader(reading.role))
    return ModelError(
        "M116",
        f"the language of the {reading.role} breaks down without the image",
        where=f"{vlm.source}, family {reading.family}",
        why=f"{reading.problem()};\n{name} takes what this model says without the image as what"
        " language alone says",
        fix=f"{reading.role}.model=FOLDER_OR_HUB_ID   or, without this view,   method=opd",
        note="vistill explain M116",
    )


TEXT_ONLY_PROMPTS_CHECK = StartCheck(
    "text-only prompts",
    "prompts can be encoded without their images, if the method needs it",
    check_text_only_prompts,
    TRAINING_PURPOSES,
)
TEXT_ONLY_CHECK = StartCheck(
    "text-only",
    "without the image the models still write language, if the method needs it",
    check_text_only_context,
    TRAINING_PURPOSES,
)

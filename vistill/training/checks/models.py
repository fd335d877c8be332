"""Checks of the models: they match, fit every prompt, and can read every view of the method."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from vistill.batch import ScoredBatch
from vistill.errors import ConfigError, DataError, ModelError
from vistill.models.backends import with_head_precision, with_kernels
from vistill.models.checkpointing import set_checkpointing
from vistill.models.loading import (
    VLM,
    PromptEncoder,
    load_encoder,
)
from vistill.models.pairs import check_pair, same_family
from vistill.models.selftest import run_selftest
from vistill.runs.chosen_student import resolve_model
from vistill.training.adapted_student import describe_adapters, load_student
from vistill.training.checks.check import ALL_PURPOSES, TRAINING_PURPOSES, StartCheck
from vistill.training.checks.code import same_families, views_of
from vistill.training.checks.devices import check_same_device, choose_device
from vistill.training.checks.heads import check_heads
from vistill.training.checks.prompt_lengths import (
    MIN_IMAGE_TOKENS,
    measure_prompt_lengths,
)
from vistill.training.checks.special_tokens import SPECIAL_TOKENS_CHECK
from vistill.training.checks.text_only import (
    TEXT_ONLY_CHECK,
    TEXT_ONLY_PROMPTS_CHECK,
    unreadable_view_error,
)
from vistill.training.models_of_run import Models
from vistill.training.optim import freeze_parts
from vistill.training.optimizer_bytes import HALF_PRECISIONS
from vistill.training.precision import training_dtype
from vistill.training.quantized_teacher import load_teacher
from vistill.training.recipe import ModelSettings, Recipe, TeacherSettings
from vistill.training.row_lock import find_partners
from vistill.training.run_lock import lock_models
from vistill.training.step_inputs import encode_step, flatten_responses, score_without_gradient
from vistill.training.teachers import naming_teacher
from vistill.types import Finish, Pass, Prompt, Reader, Rollout, RolloutGroup, View, Writer
from vistill.views.registry import plugin_views

if TYPE_CHECKING:
    from vistill.training.setup import RunSetup

#: Rows on which a view of a plug-in is checked.
SAMPLES = 4


def check_tokenizers(setup: "RunSetup") -> str:
    """M101 to M105 before any weight is loaded."""
    student = find_encoders(setup)
    encoders = list(setup.teacher_encoders.values())
    for role, encoder in setup.teacher_encoders.items():
        with naming_teacher(role):
            check_pair(student, encoder)
    setup.encoders = student, encoders[0] if len(encoders) == 1 else None
    subject = "student and teacher share" if encoders else "the student has"
    if len(encoders) > 1:
        subject = f"student and {len(encoders)} teachers share"
    patch = student.family.patch_size
    names = list(dict.fromkeys(one.family.describe() for one in (student, *encoders)))
    return (
        f"{subject} {student.vocabulary_size:,} tokens, patches of {patch} pixels,"
        f" family {' and '.join(names)}"
    )


def find_encoders(setup: "RunSetup") -> PromptEncoder | VLM:
    """The encoder of the student; those of the teachers go into the setup, once per model."""
    provided, recipe = setup.provided, setup.recipe.located()
    limit = recipe.data.max_image_tokens
    if provided is None:
        student: PromptEncoder | VLM = load_encoder_of(recipe.student, "student", limit)
    else:
        student = provided.student
    if provided is None and recipe.teacher.model:
        setup.teacher_encoders = {"teacher": load_encoder_of(recipe.teacher, "teacher", limit)}
    elif provided is not None and provided.teacher is not None:
        setup.teacher_encoders = {"teacher": provided.teacher}
    names = recipe.teachers if provided is None else provided.teachers
    roles: dict[object, str] = {}
    for name in names:
        model = recipe.teachers[name]
        key: object = (model.model, model.revision, model.precision)
        if provided is not None:
            key = id(provided.teachers[name])
        role = roles.setdefault(key, f"teachers.{name}")
        if role not in setup.teacher_encoders:
            one = (
                load_encoder_of(model, role, limit) if provided is None else provided.teachers[name]
            )
            setup.teacher_encoders = {**setup.teacher_encoders, role: one}
        setup.teacher_roles = {**setup.teacher_roles, name: role}
    return student


def load_encoder_of(model: ModelSettings, role: str, limit: int | None) -> PromptEncoder:
    """Load tokenizer and adapter of a model."""
    source = resolve_model(model.model, role)
    return load_encoder(source, revision=model.revision, max_image_tokens=limit, role=role)


def load_models(setup: "RunSetup") -> str:
    """Load the weights, or take the caller's models; configure and self-test them."""
    recipe, provided = setup.recipe, setup.provided
    encoder = setup.student
    if provided is not None:
        student = provided.student
        if recipe.student.precision not in HALF_PRECISIONS:
            require_full_precision(student)
    else:
        assert isinstance(encoder, PromptEncoder)
        device = choose_device(recipe.student.device)
        for role, one in teacher_settings(recipe).items():
            with naming_teacher(role):
                check_same_device(device, choose_device(one.device))
        student = load_student(setup, encoder, device)
    teachers: dict[str, VLM] = {}
    quantized = ""
    for role, encoder in setup.teacher_encoders.items():
        if isinstance(encoder, PromptEncoder):
            precision = teacher_settings(recipe)[role].precision
            vlm, effect = load_teacher(setup, encoder, precision, str(student.device))
            quantized += effect
        else:
            vlm = encoder
        check_same_device(str(student.device), str(vlm.device))
        teachers[role] = prepare_teacher(setup, vlm, role)
    setup.loaded_models = configure_models(setup, student, teachers)
    context = setup.loaded_models.view
    setup.encoders = student, setup.loaded_models.teacher
    setup.teacher_encoders = teachers
    names = [f"{vlm.source} on {vlm.device}" for vlm in (student, *teachers.values())]
    more = describe_adapters(student) + quantized
    return f"{' and '.join(names)}{more}; pixelated to {context.pixel_share:g} of each side"


def teacher_settings(recipe: Recipe) -> Mapping[str, TeacherSettings]:
    """The settings of every teacher by role."""
    several = {f"teachers.{name}": one for name, one in recipe.teachers.items()}
    return several or ({"teacher": recipe.teacher} if recipe.teacher.model else {})


def configured(setup: "RunSetup", vlm: VLM, role: str) -> VLM:
    """A model with attention, kernels and head as the recipe says, after its self-test."""
    train = setup.train
    tested = run_selftest(replace(vlm, attention=train.attention), role)
    dtype = training_dtype(train, tested.device)
    fast = with_head_precision(with_kernels(tested, train.kernels), train.head_precision, dtype)
    return replace(fast, step_dtype=dtype)


def prepare_teacher(setup: "RunSetup", vlm: VLM, role: str) -> VLM:
    """A frozen teacher, in host memory while it does not read if the recipe says so.

    Each one is off-loaded before the next one is loaded, so the device holds one at a time.
    """
    teacher = configured(setup, vlm, role).freeze()
    rests = setup.train.keeps_teacher_on_host
    if rests and not is_on_host(teacher) and teacher.offload is None:
        return teacher.offloaded()
    return teacher


def configure_models(setup: "RunSetup", student: VLM, teachers: Mapping[str, VLM]) -> Models:
    """The models of the run. `teachers` are by role, once per model."""
    context = setup.recipe.view_context(student.family.patch_size)
    student = configured(setup, student, "student")
    set_checkpointing(student, setup.train.gradient_checkpointing)
    if setup.purpose in TRAINING_PURPOSES:  # before memory and disk are measured
        freeze_parts(student, setup.train.freeze)
    others = [vlm for vlm in teachers.values() if not same_family(student, vlm)]
    if others:  # none may write an id by which another one marks an image
        banned = [i for vlm in (student, *others) for i in vlm.family.banned_ids()]
        student = replace(student, also_banned=tuple(banned))
        teachers = {role: replace(vlm, also_banned=tuple(banned)) for role, vlm in teachers.items()}
    return Models(
        student,
        next(iter(teachers.values())) if len(teachers) == 1 else None,
        student.vocabulary_size,
        context,
        teacher_encodes=bool(others),
        teachers={name: teachers[role] for name, role in setup.teacher_roles.items()},
        teacher_names=setup.teacher_names,
    )


def is_on_host(vlm: VLM) -> bool:
    """Whether the model is in host memory already, so that there is nothing to offload."""
    return vlm.device.type == "cpu"


def require_full_precision(student: VLM) -> None:
    """C101 for a student in half precision: rounding would swallow most AdamW updates.

    Frozen weights may have any precision.
    """
    weights = list(student.model.parameters())
    dtype = next((p.dtype for p in weights if p.requires_grad), weights[0].dtype)
    if dtype in (torch.bfloat16, torch.float16):
        raise ConfigError(
            "C101",
            f"the student's weights are {str(dtype).removeprefix('torch.')}",
            where=student.source,
            why="rounding swallows an update of 1e-6; train float32 weights and compute in bf16",
            fix=f'student = vistill.load("{student.source}")',
        )


def lock_run_models(setup: "RunSetup") -> str:
    """C202 if the weights are not those of the first start."""
    by_role = {"student": setup.models.student, **loaded_teachers(setup)}
    reads_reference = any(p.reader is Reader.REFERENCE for p in setup.objective.passes())
    setup.models_hash = lock_models(setup.folder, by_role, reads_reference)
    same_families(setup)
    if setup.folder.has_started():
        return "weights are those of the first start"
    return "hashes of both models are stored when the run starts"


def loaded_teachers(setup: "RunSetup") -> dict[str, VLM]:
    """Every teacher model by role, once the check `models` has loaded them."""
    models = setup.models
    several = {role: models.teachers[name] for name, role in setup.teacher_roles.items()}
    return several or ({} if models.teacher is None else {"teacher": models.teacher})


def check_views(setup: "RunSetup") -> str:
    """M106 if a reader cannot read one short response under a view that the method needs."""
    check_heads(setup)
    setup.loaded_models = replace(setup.models, partners=find_partners(setup, setup.train_prompts))
    with_images = [p for p in setup.train_prompts if p.images] or list(setup.train_prompts)
    student = setup.models.student
    models = replace(setup.models, copies={Reader.EMA: student, Reader.REFERENCE: student})
    for view in plugin_views(views_of(setup.objective)):
        check_tokens_of(setup.models, view, with_images[:SAMPLES])
    rollout = Rollout((student.stop_ids[0],), 0, Finish.STOP)
    groups = [RolloutGroup(with_images[0], (rollout,))]
    for p in setup.objective.passes():
        apart = models.by_teacher() if p.reader is Reader.TEACHER else [("", models)]
        for name, one in apart:
            with naming_teacher(f"teachers.{name}" if name else "teacher"):
                check_view(setup, one, groups, p)
    return "readable: " + ", ".join(dict.fromkeys(p.name for p in setup.objective.passes()))


def check_view(setup: "RunSetup", models: Models, groups: list[RolloutGroup], p: Pass) -> None:
    """M106 if the reader of a pass cannot read its view."""
    passes = (replace(p, gradient=False, keep="log_prob"),)
    try:
        responses = flatten_responses(groups, setup.seed, 0, models.student.device)
        inputs = encode_step(models, groups, passes, responses)
        with models.on_device(passes):
            scored: ScoredBatch = score_without_gradient(models, inputs, passes)
        is_finite = bool(torch.isfinite(scored[p.name].sampled()).all())
    except (RuntimeError, ValueError, KeyError, IndexError, TypeError) as error:
        if isinstance(error, (DataError, ConfigError)):
            raise
        raise unreadable_view_error(p.name, f"{type(error).__name__}: {error}") from error
    if not is_finite:
        raise unreadable_view_error(p.name, "its log-probability is not finite")


def check_tokens_of(models: Models, view: str, prompts: Sequence[Prompt]) -> None:
    """V816 if a view of a plug-in keeps text and number of images, but not the tokens."""
    for prompt in prompts:
        shown = models.prompt_under(prompt, view)
        if shown.text != prompt.text or len(shown.images) != len(prompt.images):
            continue
        full, other = models.encode(prompt, View.FULL), models.encode(prompt, view)
        if other.ids != full.ids or not torch.equal(other.positions, full.positions):
            raise ModelError(
                "V816",
                f"the views full and {view} differ in more than pixels",
                where=prompt.labels.get("row", prompt.id),
                why=differences_of(prompt, shown, len(full.ids), len(other.ids)),
                fix=f"let the view {view} keep the size of every image:"
                " image.resize(original.size)",
                note="vistill explain V816",
            )


def differences_of(prompt: Prompt, shown: Prompt, before: int, after: int) -> str:
    """In which image sizes and token counts a view changes a prompt."""
    sizes = [tuple(image.load().size for image in p.images) for p in (prompt, shown)]
    parts = [
        f"image {number} has {new[0]} x {new[1]} pixels instead of {old[0]} x {old[1]}"
        for number, (old, new) in enumerate(zip(*sizes, strict=True), 1)
        if old != new
    ]
    same = f"its {after:,} tokens have other ids or positions"
    parts.append(same if before == after else f"{after:,} tokens instead of {before:,}")
    return "; ".join(parts)


def check_positions(setup: "RunSetup") -> str:
    """C101 if a response of full length would exceed the student's positions."""
    models = setup.models
    prompt, new = setup.train_prompts[0], setup.rollout.max_new_tokens
    first, limit, role = models.free_positions(prompt)
    if setup.objective.requirements.writer is Writer.DATA:
        return f"{limit:,}; rollout.max_new_tokens does not limit written responses"
    if first + new > limit:
        raise ConfigError(
            "C101",
            f"rollout.max_new_tokens = {new:,}, but the {role} has {limit:,} positions",
            where=prompt.labels.get("row", prompt.id),
            why=f"this prompt takes {first:,}, so at most {max(0, limit - first):,} tokens fit;"
            " the model was never trained on later positions",
            fix=f"rollout.max_new_tokens={(limit - first) // 2}"
            if limit - first >= 2
            else shorter_prompt_fix(setup.models.student, prompt, limit),
        )
    return f"{first:,} for the first prompt and {new:,} for a response, of {limit:,}"


def shorter_prompt_fix(student: VLM, prompt: Prompt, limit: int) -> str:
    """What makes a prompt fit into half of the positions: smaller images, or a shorter text."""
    tokens, image_tokens = student.lengths(prompt)
    per_image = (limit // 2 - tokens + image_tokens) // max(1, len(prompt.images))
    if student.family.can_limit_image_tokens and prompt.images and per_image >= MIN_IMAGE_TOKENS:
        return f"data.max_image_tokens={per_image}"
    return "shorten the question, or remove the row"


MODEL_CHECKS: tuple[StartCheck, ...] = (
    StartCheck(
        "tokenizers",
        "both models use the same tokens and image grid",
        check_tokenizers,
        ALL_PURPOSES,
        phase="loading tokenizers",
    ),
    SPECIAL_TOKENS_CHECK,
    StartCheck(
        "prompt lengths",
        "no prompt is longer than data.max_prompt_tokens",
        measure_prompt_lengths,
        TRAINING_PURPOSES,
    ),
    TEXT_ONLY_PROMPTS_CHECK,
    StartCheck(
        "models",
        "weights load and pass their self-test",
        load_models,
        ALL_PURPOSES,
        phase="loading models",
    ),
    StartCheck(
        "same models",
        "weights are those of the first start",
        lock_run_models,
        TRAINING_PURPOSES,
    ),
    StartCheck("views", "every reader can read every view", check_views, TRAINING_PURPOSES),
    TEXT_ONLY_CHECK,
    StartCheck(
        "positions",
        "the longest response fits into the student's positions",
        check_positions,
        TRAINING_PURPOSES,
    ),
)

"""From a recipe to a plan: the lock of the run folder, data before models, every check before the first step."""

import datetime
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vistill.batch import Objective
from vistill.config import ModelSettings, Recipe, compare_recipes
from vistill.data.answers import gold_response, judge_answer
from vistill.data.keys import num_steps
from vistill.data.loading import LoadedData, check_enough, check_overlap, load_both
from vistill.data.math_judge import MathJudge
from vistill.errors import ConfigError, DataError
from vistill.models.backends import with_kernels
from vistill.models.families.base import EncodedPrompt
from vistill.models.loading import VLM, PromptEncoder, check_pair, load_encoder, load_weights
from vistill.models.selftest import proven
from vistill.objectives import METHODS
from vistill.outward import masked_settings
from vistill.runs.chosen import resolve_model
from vistill.runs.folder import RunFolder
from vistill.runs.storage import to_json, write_json
from vistill.training.loop import Plan
from vistill.training.reading import Cast
from vistill.training.writing import check_response
from vistill.types import Prompt, View, Writer
from vistill.views import ViewContext, see

Progress = Callable[[dict[str, Any]], None]
#: With fewer a picture cannot be read, so it is no advice to shrink it so far.
FEWEST_IMAGE_TOKENS = 16


def plan_of(recipe: Recipe, folder: RunFolder, progress: Progress) -> Plan:
    """Everything a run needs, checked before its first step: data first, then models."""
    train_data, eval_data = load_both(recipe.data)
    check_overlap(train_data, eval_data, recipe.data)
    eval_data = without_bad_gold(eval_data, recipe)
    note_data(folder, train_data, eval_data)
    settings = recipe.train
    check_enough(settings.prompts_per_step, len(train_data.prompts))
    objective: Objective = METHODS[recipe.method](**recipe.knobs)
    if objective.writer is Writer.DATA:
        for prompt in train_data.prompts:
            check_response(prompt)
    encoders = encoders_of(recipe)
    if not train_data.diagrams:
        eyes = Eyes(encoders[0], context_of(recipe, encoders[0]))
        long = too_long(eyes, [*train_data.prompts, *eval_data.prompts], recipe.data.max_prompt_tokens)
        if any(p.view.startswith(View.PRIVILEGED) for p in objective.passes()):  # the only views that are longer
            long += too_long(eyes, train_data.prompts, recipe.data.max_prompt_tokens, View.PRIVILEGED)
        refuse_long(long, recipe.data.max_prompt_tokens)
    cast = cast_of(recipe, encoders)
    steps = settings.steps or num_steps(len(train_data.prompts), settings.prompts_per_step, settings.epochs)
    return Plan(
        cast=cast,
        objective=objective,
        train_prompts=train_data.prompts,
        eval_prompts=eval_data.prompts,
        train=settings,
        rollout=recipe.rollout,
        save=recipe.save,
        evaluation=recipe.eval,
        seed=recipe.seed,
        num_steps=steps,
        fingerprint=recipe.fingerprint(),
        progress=progress,
        diagrams=eval_data.diagrams,
        reward=recipe.reward,
        max_bad_share=recipe.data.max_bad_share,
        profile=recipe.profile,
    )


def choose_device(name: str) -> str:
    """`auto` takes a CUDA device where there is one."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            "C101",
            f"the device {name} is asked for, but torch {torch.__version__} sees none here",
            why="a build for CPUs, no driver, or no device",
            fix="student.device=cpu teacher.device=cpu",
        )
    return name


Encoders = tuple[PromptEncoder, PromptEncoder | None]


def encoders_of(recipe: Recipe) -> Encoders:
    """Tokenizers and adapters of student and teacher, held against each other before any weight is loaded."""
    limit = recipe.data.max_image_tokens

    def load_one(role: str, model: ModelSettings) -> PromptEncoder:
        source = resolve_model(model.model, role)
        return load_encoder(source, revision=model.revision, max_image_tokens=limit, role=role)

    student = load_one("student", recipe.student)
    if not recipe.teacher.model:
        return student, None
    teacher = load_one("teacher", recipe.teacher)
    check_pair(student, teacher)
    return student, teacher


def context_of(recipe: Recipe, student: PromptEncoder) -> ViewContext:
    """The parameters of the views."""
    return ViewContext(
        pixel_share=recipe.views.pixelate,
        mask_share=recipe.views.mask_share,
        patch=int(student.family.image_grid()["patch"]),
        degrade=recipe.views.degrade,
        thought=recipe.views.thought,
        seed=recipe.seed,
    )


def cast_of(recipe: Recipe, encoders: Encoders | None = None) -> Cast:
    """Load the weights of student and teacher, once they are known to fit."""
    student_encoder, teacher_encoder = encoders or encoders_of(recipe)

    def load_one(encoder: PromptEncoder, device: str, dtype: torch.dtype) -> VLM:
        vlm = load_weights(encoder, dtype=dtype, device=choose_device(device))
        return with_kernels(proven(replace(vlm, attention=recipe.train.attention)), recipe.train.kernels)

    student = load_one(student_encoder, recipe.student.device, torch.float32)
    context = context_of(recipe, student_encoder)
    if teacher_encoder is None:
        return Cast(student, None, student.vocabulary_size, context)
    half = choose_device(recipe.teacher.device) != "cpu" and recipe.train.precision != "fp32"
    teacher = load_one(teacher_encoder, recipe.teacher.device, torch.bfloat16 if half else torch.float32).freeze()
    rests = recipe.train.offload_teacher and teacher.device.type != "cpu"
    return Cast(student, teacher.rested() if rests else teacher, student.vocabulary_size, context)


@dataclass(frozen=True)
class Eyes:
    """How the student will see prompts, without its weights."""

    encoder: PromptEncoder
    context: ViewContext

    def encode(self, prompt: Prompt, view: View) -> EncodedPrompt:
        """A prompt under a view, in tokens."""
        return self.encoder.encode(see(prompt, view, self.context))


def check_prompt_lengths(eyes: Eyes | Cast, prompts: Sequence[Prompt], limit: int, view: View = View.FULL) -> None:
    """D203 before the first step."""
    refuse_long(too_long(eyes, prompts, limit, view), limit)


@dataclass(frozen=True)
class Long:
    """A prompt above the limit."""

    where: str
    tokens: int
    image_tokens: int
    pictures: int

    def room(self, limit: int) -> int:
        """Tokens that each of its pictures may have."""
        return (limit - self.tokens + self.image_tokens) // max(1, self.pictures)


def too_long(eyes: Eyes | Cast, prompts: Sequence[Prompt], limit: int, view: View = View.FULL) -> list[Long]:
    """The prompts above the limit."""
    found = []
    for prompt in prompts:
        encoded = eyes.encode(prompt, view)
        if len(encoded.ids) > limit:
            thoughts = len(prompt.thoughts) or len(prompt.boxes) if view is View.PRIVILEGED else 0
            place = prompt.labels.get("row", prompt.id)
            found.append(Long(place, len(encoded.ids), encoded.num_image_tokens, len(prompt.images) + thoughts))
    return found


def refuse_long(found: Sequence[Long], limit: int) -> None:
    """D203 for the longest, with settings under which all of them pass."""
    if not found:
        return
    worst, room = max(found, key=lambda long: long.tokens), min(long.room(limit) for long in found)
    shrink = f"data.max_image_tokens={room}   or   " if room >= FEWEST_IMAGE_TOKENS else ""
    others = f" ({len(found):,} prompts are too long, this is the longest)" if len(found) > 1 else ""
    text = worst.tokens - worst.image_tokens
    raise DataError(
        "D203",
        f"prompt longer than the limit: {worst.tokens:,} tokens = {worst.image_tokens:,} image + {text:,} text{others}",
        where=worst.where,
        why=f"data.max_prompt_tokens is {limit:,}; cutting a prompt would cut image placeholders",
        fix=f"{shrink}data.max_prompt_tokens={worst.tokens + 64}",
    )


def without_bad_gold(data: LoadedData, recipe: Recipe) -> LoadedData:
    """Gold answers pass their own checker, or their rows would count as wrong for ever (D301)."""
    if data.diagrams or not data.prompts:
        return data
    with MathJudge() as math:
        bad = [
            p
            for p in data.prompts
            if p.answer is not None
            and not judge_answer(gold_response(p.answer), p.answer, p.choices, recipe.eval.answer, math).correct
        ]
    if bad:
        raise DataError(
            "D301",
            f"{len(bad)} gold answers are not accepted by their own checker",
            where=bad[0].labels.get("row", bad[0].id),
            why=f'first: gold answer "{bad[0].answer}", choices {list(bad[0].choices)}',
            fix="correct the rows, or name the right columns under data.columns",
        )
    return data


def open_folder(folder: RunFolder, recipe: Recipe, accept: Sequence[str]) -> None:
    """Hold the recipe against an earlier start, or write it down."""
    lock(folder, recipe.to_dict(), accept)
    folder.write("recipe.json", to_json(recipe.to_dict(), indent=2))


def lock(folder: RunFolder, recipe: Mapping[str, Any], accept: Sequence[str]) -> None:
    """`run.lock.json`: recipe, versions, machine, accepted changes."""
    earlier: dict[str, Any] = {}
    if folder.lock_file.exists() and folder.has_started():
        earlier = json.loads(folder.lock_file.read_text(encoding="utf-8"))
        accepted = compare_recipes(earlier["recipe"], json.loads(to_json(recipe)), accept)  # both without secrets
        for key in accepted:
            folder.event(f"accepted change of {key}")
        earlier.setdefault("accepted", []).extend(accepted)
    record = {
        "recipe": recipe,
        "command": earlier.get("command", shown_command()),
        "versions": versions(),
        "machine": {"python": platform.python_version(), "system": platform.system(), "cpu": platform.machine()},
        "started": earlier.get("started", datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")),
        "accepted": earlier.get("accepted", []),
    }
    folder.write_lock(record)


def shown_command() -> str:
    """The command this process was started with, without the interpreter's path and without secrets."""
    words = ["vistill" if "vistill" in sys.argv[0] else Path(sys.argv[0]).name, *sys.argv[1:]]
    return masked_settings(" ".join(words))


def versions() -> dict[str, str]:
    """Versions of the packages that decide numbers."""
    found = {}
    for name in ("vistill", "torch", "transformers", "tokenizers", "safetensors", "pillow", "numpy", "math-verify"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def note_data(folder: RunFolder, train_data: LoadedData, eval_data: LoadedData) -> None:
    """Row counts and every quarantined row."""
    bad = [*train_data.quarantined, *eval_data.quarantined]
    folder.write("quarantine.jsonl", "".join(to_json(q.to_dict()) + "\n" for q in bad))
    record = {
        "train_rows": len(train_data.prompts),
        "eval_rows": len(eval_data.prompts),
        "quarantined": len(bad),
        "dropped_text_only": train_data.dropped_text_only + eval_data.dropped_text_only,
    }
    write_json(folder.path / "data.json", record)

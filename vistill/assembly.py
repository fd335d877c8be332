"""From a recipe to a plan: the lock of the run folder, data before models, every check before the first step."""

import datetime
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vistill.batch import Objective
from vistill.config import ModelSettings, Recipe, compare_recipes
from vistill.data.answers import gold_response, judge_answer
from vistill.data.keys import num_steps
from vistill.data.loading import LoadedData, load_both
from vistill.data.math_judge import MathJudge
from vistill.errors import DataError
from vistill.models.backends import with_kernels
from vistill.models.loading import VLM, check_pair, load_vlm
from vistill.models.selftest import proven
from vistill.objectives import METHODS
from vistill.runs.chosen import resolve_model
from vistill.runs.folder import RunFolder
from vistill.runs.storage import to_json, write_json
from vistill.training.loop import Plan
from vistill.training.preparation import check_enough
from vistill.training.reading import Cast
from vistill.training.writing import check_response
from vistill.types import Prompt, View, Writer
from vistill.views import ViewContext

Progress = Callable[[dict[str, Any]], None]


def plan_of(recipe: Recipe, folder: RunFolder, progress: Progress) -> Plan:
    """Everything a run needs, checked before its first step: data first, then models."""
    train_data, eval_data = load_both(recipe.data)
    eval_data = without_bad_gold(eval_data, recipe)
    note_data(folder, train_data, eval_data)
    settings = recipe.train
    check_enough(settings.prompts_per_step, len(train_data.prompts))
    objective: Objective = METHODS[recipe.method](**recipe.knobs)
    if objective.writer is Writer.DATA:
        for prompt in train_data.prompts:
            check_response(prompt)
    cast = cast_of(recipe)
    if not train_data.diagrams:
        check_prompt_lengths(cast, [*train_data.prompts, *eval_data.prompts], recipe.data.max_prompt_tokens)
        if any(p.view.startswith(View.PRIVILEGED) for p in objective.passes()):  # the only views that are longer
            check_prompt_lengths(cast, train_data.prompts, recipe.data.max_prompt_tokens, View.PRIVILEGED)
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
        profile=recipe.profile,
    )


def choose_device(name: str) -> str:
    """`auto` takes a CUDA device where there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def cast_of(recipe: Recipe) -> Cast:
    """Load student and teacher and hold them against each other."""
    limit = recipe.data.max_image_tokens

    def load_one(role: ModelSettings, dtype: torch.dtype) -> VLM:
        device, source = choose_device(role.device), resolve_model(role.model)
        vlm = load_vlm(source, revision=role.revision, dtype=dtype, device=device, max_image_tokens=limit)
        return with_kernels(proven(replace(vlm, attention=recipe.train.attention)), recipe.train.kernels)

    student = load_one(recipe.student, torch.float32)
    context = ViewContext(
        pixel_share=recipe.views.pixelate,
        mask_share=recipe.views.mask_share,
        patch=int(student.family.image_grid()["patch"]),
        degrade=recipe.views.degrade,
        thought=recipe.views.thought,
        seed=recipe.seed,
    )
    if not recipe.teacher.model:
        return Cast(student, None, student.vocabulary_size, context)
    half = choose_device(recipe.teacher.device) != "cpu" and recipe.train.precision != "fp32"
    teacher = load_one(recipe.teacher, torch.bfloat16 if half else torch.float32).freeze()
    vocabulary = check_pair(student, teacher)
    rests = recipe.train.offload_teacher and teacher.device.type != "cpu"
    return Cast(student, teacher.rested() if rests else teacher, vocabulary, context)


def check_prompt_lengths(cast: Cast, prompts: Sequence[Prompt], limit: int, view: View = View.FULL) -> None:
    """D203 before the first step."""
    for prompt in prompts:
        encoded = cast.encode(prompt, view)
        if len(encoded.ids) > limit:
            text = len(encoded.ids) - encoded.num_image_tokens
            raise DataError(
                "D203",
                f"prompt longer than the limit: {len(encoded.ids):,} tokens = {encoded.num_image_tokens:,} image"
                f" + {text:,} text; data.max_prompt_tokens = {limit:,}",
                where=prompt.labels.get("row", prompt.id),
                why="cutting a prompt would cut image placeholders",
                fix=f"data.max_image_tokens={max(16, (limit - text) // max(1, len(prompt.images)))}"
                f"   or data.max_prompt_tokens={len(encoded.ids) + 64}",
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
    if folder.lock_file.exists() and has_started(folder):
        earlier = json.loads(folder.lock_file.read_text(encoding="utf-8"))
        accepted = compare_recipes(earlier["recipe"], recipe, accept)
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


def has_started(folder: RunFolder) -> bool:
    """Whether a step was ever taken here; a start that failed on bad data binds nobody to its recipe."""
    return folder.metrics.exists() or any(folder.path.glob("checkpoint-*"))


def shown_command() -> str:
    """The command this process was started with, without the interpreter's path."""
    return " ".join(["vistill" if "vistill" in sys.argv[0] else Path(sys.argv[0]).name, *sys.argv[1:]])


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

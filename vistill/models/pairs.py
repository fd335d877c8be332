"""Whether student and teacher can be compared: the same vocabulary and the same image grid."""

import hashlib
import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from vistill.errors import ModelError, quote_setting
from vistill.models.loading import VLM, PromptEncoder, load_encoder
from vistill.runs.chosen_student import resolve_model
from vistill.runs.model_not_found import model_name, nearby_models


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Content hash of a vocabulary. It is equal if all words have equal ids."""
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:12]


def check_pair(student: VLM | PromptEncoder, teacher: VLM | PromptEncoder) -> int:
    """The size of the shared vocabulary (M101 or M102 if rows cannot be compared)."""
    if vocabulary_hash(student.tokenizer) != vocabulary_hash(teacher.tokenizer):
        raise vocabulary_mismatch_error(student, teacher)
    if student.family.image_grid() != teacher.family.image_grid():
        raise image_grid_mismatch_error(student, teacher)
    return student.vocabulary_size


def vocabulary_mismatch_error(
    student: VLM | PromptEncoder, teacher: VLM | PromptEncoder
) -> ModelError:
    """M101."""
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    differing = [i for word, i in ours.items() if theirs.get(word) != i] or [
        i for word, i in theirs.items() if word not in ours
    ]
    first = min(differing)
    words = [next((w for w, i in vocab.items() if i == first), None) for vocab in (ours, theirs)]
    models = [("student", student, len(ours)), ("teacher", teacher, len(theirs))]
    facts = [
        f"{role} {model_name(m.source)}: {n:,} tokens, sha {vocabulary_hash(m.tokenizer)}"
        for role, m, n in models
    ]
    return ModelError(
        "M101",
        "student and teacher do not share a vocabulary",
        where=f"first difference: id {first}, {words[0]!r:.30} and {words[1]!r:.30}",
        why="\n".join([*facts, "the loss compares both next-token distributions id by id"]),
        fix=find_matching_model(student, teacher)
        or "teacher.model=FOLDER_OR_HUB_ID   of a model with the student's tokenizer",
        note="padding rows of the output head are ignored; a method without a teacher:"
        " method=grpo teacher.model=",
    )


def image_grid_mismatch_error(
    student: VLM | PromptEncoder, teacher: VLM | PromptEncoder
) -> ModelError:
    """M102."""
    models = (("student", student), ("teacher", teacher))
    facts = [f"{role}: {vlm.family.describe_grid()}" for role, vlm in models]
    common = common_image_token_limit(student.family.image_grid(), teacher.family.image_grid())
    can_limit = student.family.can_limit_images and teacher.family.can_limit_images
    limit = f"data.max_image_tokens={common}" if common and can_limit else ""
    other_model = find_matching_model(student, teacher)
    return ModelError(
        "M102",
        "student and teacher turn the same image into different tokens",
        why="\n".join([*facts, "the loss needs one teacher row per student token"]),
        fix="   or   ".join(fix for fix in (limit, other_model) if fix)
        or "teacher.model=FOLDER_OR_HUB_ID   of a model with the student's patches",
    )


def common_image_token_limit(ours: dict[str, Any], theirs: dict[str, Any]) -> int | None:
    """A limit of image tokens under which two grids are equal, or None if the patches differ."""
    limits = {"min_pixels", "max_pixels"}
    without_limits = [
        {key: value for key, value in grid.items() if key not in limits} for grid in (ours, theirs)
    ]
    if without_limits[0] != without_limits[1] or not limits <= ours.keys() & theirs.keys():
        return None
    key = "max_pixels" if ours["min_pixels"] == theirs["min_pixels"] else "min_pixels"
    return max(1, min(int(ours[key]), int(theirs[key])) // (ours["patch"] * ours["merge"]) ** 2)


def find_matching_model(student: VLM | PromptEncoder, teacher: VLM | PromptEncoder) -> str:
    """A fix such as `teacher.model=NAME`, with a nearby model that matches, or an empty string.

    A teacher that matches the student is preferred to a student that matches the teacher.
    """
    nearby = list(dict.fromkeys([*nearby_models(teacher.source), *nearby_models(student.source)]))
    in_use = {model_name(student.source), model_name(teacher.source)}
    others = [name for name in nearby if name not in in_use][:12]
    for role, partner in (("teacher", student), ("student", teacher)):
        for name in others:
            try:
                check_same_inputs(load_encoder(partner.source), load_encoder(resolve_model(name)))
            except (ModelError, OSError, ValueError):
                continue
            return quote_setting(f"{role}.model", name)
    return ""


def check_same_inputs(one: PromptEncoder, other: PromptEncoder) -> None:
    """Raise ValueError if two encoders differ. The limits of a recipe are not applied."""
    same_vocabulary = vocabulary_hash(one.tokenizer) == vocabulary_hash(other.tokenizer)
    if not same_vocabulary or one.family.image_grid() != other.family.image_grid():
        raise ValueError

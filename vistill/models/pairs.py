"""Whether student and teacher can be compared: the same vocabulary and the same image grid."""

import hashlib
import json

from PIL import Image
from transformers import PreTrainedTokenizerBase

from vistill.errors import ModelError, quote_setting
from vistill.models.families.inputs import has_same_pixels
from vistill.models.loading import VLM, PromptEncoder, load_encoder
from vistill.runs.chosen_student import resolve_model
from vistill.runs.model_not_found import model_name, nearby_models
from vistill.types import LoadedImage, PilImage, Prompt

#: Sizes of images that both models encode, in pixels.
PROBE_SIZES = ((64, 64), (200, 70), (90, 320))
#: Texts that both models encode.
PROBE_TEXTS = (
    "The answer is \\boxed{12.5}.",
    "Step 1: a^2 + b^2 = c^2\n\n42 \u00b0 \u4e2d\u6587",
    " B",
)


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Content hash of a vocabulary. It is equal if all words have equal ids."""
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:12]


def merges_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Content hash of how a tokenizer joins characters to words, or an empty string."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return ""
    model = json.loads(backend.to_str())["model"]
    merges = [m.split(" ", 1) if isinstance(m, str) else list(m) for m in model.get("merges") or ()]
    return hashlib.sha256(json.dumps([model.get("type"), merges]).encode()).hexdigest()[:12]


def same_family(student: VLM | PromptEncoder, teacher: VLM | PromptEncoder) -> bool:
    """Whether both models encode images by the same rules, so that one encoding serves both."""
    return student.family.describe() == teacher.family.describe()


def check_pair(student: VLM | PromptEncoder, teacher: VLM | PromptEncoder) -> int:
    """The size of the shared vocabulary.

    Models of one family must encode a prompt with images to the same tokens and image tensors.
    Models of different families each read a prompt in their own way. Their responses must have the
    same tokens.

    Raises:
        ModelError: M101, the tokens of a response differ; M102, the same image is encoded
            differently by models of one family.
    """
    if vocabulary_hash(student.tokenizer) != vocabulary_hash(teacher.tokenizer):
        raise vocabulary_mismatch_error(student, teacher)
    tokenizers = student.tokenizer, teacher.tokenizer
    ours, theirs = ([ids_of(t, text) for text in PROBE_TEXTS] for t in tokenizers)
    if ours != theirs or len(set(map(merges_hash, tokenizers)) - {""}) > 1:
        raise merges_mismatch_error(student, teacher)
    if same_family(student, teacher) and not encode_alike(student, teacher):
        raise image_grid_mismatch_error(student, teacher)
    return student.vocabulary_size


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a response."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_alike(student: VLM | PromptEncoder, teacher: VLM | PromptEncoder) -> bool:
    """Whether two models of one family encode images of several sizes to equal inputs."""
    if student.family.image_grid() != teacher.family.image_grid():
        return False
    for number, size in enumerate(PROBE_SIZES):
        images = (LoadedImage(probe_image(size)),) * (1 + number % 2)
        prompt = Prompt("probe", (*images, "How many?"))
        ours, theirs = student.encode(prompt), teacher.encode(prompt)
        if ours.ids != theirs.ids or ours.token_types != theirs.token_types:
            return False
        if not has_same_pixels(ours, theirs):
            return False
    return True


def probe_image(size: tuple[int, int]) -> PilImage:
    """An image with a different colour in every place."""
    gradient = Image.linear_gradient("L").resize(size)
    return Image.merge("RGB", (gradient, gradient.transpose(Image.Transpose.ROTATE_180), gradient))


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
        fix=other_model_fix(student, teacher, "tokenizer"),
        note="padding rows of the output head are ignored; a method without a teacher:"
        " method=grpo teacher.model=",
    )


def merges_mismatch_error(student: VLM | PromptEncoder, teacher: VLM | PromptEncoder) -> ModelError:
    """M101 for tokenizers with the same words and other rules to find them."""
    facts = [
        f"{role} {model_name(m.source)}: rules sha {merges_hash(m.tokenizer)}"
        for role, m in (("student", student), ("teacher", teacher))
    ]
    return ModelError(
        "M101",
        "student and teacher split the same text into different tokens",
        why="\n".join([*facts, "the teacher was never trained on the tokens of the student"]),
        fix="teacher.model=FOLDER_OR_HUB_ID   of a model with the student's tokenizer",
    )


def image_grid_mismatch_error(
    student: VLM | PromptEncoder, teacher: VLM | PromptEncoder
) -> ModelError:
    """M102."""
    models = (("student", student), ("teacher", teacher))
    facts = [f"{role}: {vlm.family.describe_grid()}" for role, vlm in models]
    theirs = teacher.family.image_grid()
    can_limit = all(vlm.family.can_limit_image_tokens for _, vlm in models)
    is_other_grid = can_limit and student.family.image_grid() != theirs
    common = student.family.common_limit(theirs) if is_other_grid else None
    limit = f"data.max_image_tokens={common}" if common else ""
    other_model = other_model_fix(student, teacher, "patches")
    return ModelError(
        "M102",
        "student and teacher turn the same image into different tokens",
        why="\n".join([*facts, "the loss needs one teacher row per student token"]),
        fix="   or   ".join(fix for fix in (limit, other_model) if fix),
    )


def other_model_fix(student: VLM | PromptEncoder, teacher: VLM | PromptEncoder, common: str) -> str:
    """The fix of a pair that does not match: another teacher, or a nearby model that matches.

    A nearby student that matches the teacher is the second choice: the student is what is trained.

    Args:
        student: as it is.
        teacher: as it is.
        common: what both must have in common.
    """
    near = find_matching_model(student, teacher)
    any_teacher = f"teacher.model=FOLDER_OR_HUB_ID   of a model with the student's {common}"
    if not near.lstrip("'").startswith("student."):
        return near or any_teacher
    return f"{any_teacher}   or   {near}"


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
    same_grid = one.family.image_grid() == other.family.image_grid()
    if not same_vocabulary or (same_family(one, other) and not same_grid):
        raise ValueError

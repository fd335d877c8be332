"""Load and save models: one code path for `Qwen/Qwen3-VL-2B-Instruct` and for a tiny folder."""

import hashlib
import json
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME
from transformers.utils.hub import cached_file

from vistill.errors import ModelError
from vistill.functional.heads import Head, Kernels, full_tensor
from vistill.models.chat import messages_of, pictures_of
from vistill.models.families import FAMILIES
from vistill.models.families.base import EncodedPrompt, Family, PackedRow, RowBatch
from vistill.models.offload import OffloadedWeights
from vistill.models.packed import PackedForward, Reading
from vistill.runs.chosen_student import resolve_model
from vistill.runs.model_not_found import (
    looks_like_hub_id,
    model_name,
    model_not_found_error,
    nearby_models,
)
from vistill.types import Prompt

AttentionPlan = Literal["blocks", "flex"]


@dataclass(frozen=True)
class VLM:
    """A vision-language model with its tokenizer and family adapter."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: Family
    source: str
    """Folder or hub id it was loaded from."""
    share_prompts: bool = True
    """Read a prompt once for all its siblings, where the family can; false makes every rollout a row of its own."""
    kernels: Kernels = "torch"
    """What turns rows of logits into values and gradients (`models/backends.py` chooses)."""
    attention: AttentionPlan = "blocks"
    """How siblings attend to the prompt they share; the numbers are the same."""
    offload: OffloadedWeights | None = field(default=None, compare=False)
    """Where its weights wait while nobody reads with it."""
    packed: torch.nn.Module | None = field(default=None, compare=False, repr=False)
    """The module whose forward every reading enters, made from the model; a sharded or compiled one can be given."""

    def __post_init__(self) -> None:
        if self.packed is None or self.packed.model is not self.model:
            object.__setattr__(self, "packed", PackedForward(self.model))

    def read(self, row: PackedRow | RowBatch) -> Tensor | tuple[Tensor, ...]:
        """Hidden states before the head, [L, H] or [N, L, H]; of a row whose keys are kept, the keys and values."""
        assert self.packed is not None
        return self.packed(Reading(self.family, row))

    def states(self, row: PackedRow | RowBatch) -> Tensor:
        """Hidden states of a row whose keys are not kept."""
        states = self.read(row)
        assert isinstance(states, Tensor)
        return states

    @property
    def shares_prompts(self) -> bool:
        """Whether prompts are read once."""
        return self.share_prompts and self.family.shares_prompts(self.model)

    @property
    def device(self) -> torch.device:
        """Where the weights are when they are read with."""
        return self.model.device if self.offload is None else self.offload.device

    @property
    def vocabulary_size(self) -> int:
        """Length of the tokenizer: the shared vocabulary. Head rows beyond it are padding."""
        return len(self.tokenizer)

    @property
    def stop_ids(self) -> list[int]:
        """Ids that end a response."""
        ids: Any = (
            self.model.generation_config.eos_token_id if self.model.generation_config else None
        )
        if ids is None:
            ids = self.tokenizer.eos_token_id
        return [int(i) for i in (ids if isinstance(ids, list) else [ids])]

    @property
    def pad_id(self) -> int:
        """Padding id; the end-of-turn id where the tokenizer has none."""
        pad: Any = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else self.stop_ids[0]

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Tokens, image tensors and positions of a prompt as this model reads it."""
        return self.family.encode(messages_of(prompt), pictures_of(prompt))

    def lengths(self, prompt: Prompt) -> tuple[int, int]:
        """Tokens of a prompt, and of its pictures, without the image processor."""
        return self.family.lengths(messages_of(prompt), pictures_of(prompt))

    def head(self, vocabulary: int) -> Head:
        """The language-model head over the first `vocabulary` ids."""
        layer: Any = self.model.get_output_embeddings()
        weight, bias = full_tensor(layer.weight), getattr(layer, "bias", None)
        text_config = self.model.config.get_text_config()
        return Head(
            weight=weight[:vocabulary],
            bias=None if bias is None else full_tensor(bias)[:vocabulary],
            softcap=getattr(text_config, "final_logit_softcapping", None),
            kernels=self.kernels,
        )

    def response_ids(self, text: str) -> tuple[int, ...]:
        """A written response as tokens, end-of-turn included (only for data that is text to begin with)."""
        return (*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.stop_ids[0])

    def decode(self, ids: tuple[int, ...] | list[int]) -> str:
        """Text of a response, for people and answer checkers."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def tokens(self, ids: tuple[int, ...] | list[int]) -> list[str]:
        """Text of each token, for heatmaps."""
        return [str(self.tokenizer.decode([i])) for i in ids]

    def on_device(self) -> AbstractContextManager[None]:
        """Inside, the weights are on the device; a model that never rests is always there."""
        return nullcontext() if self.offload is None else self.offload.on_device()

    def offloaded(self) -> "VLM":
        """The same frozen model, its weights in host memory outside `here`; its head stays on the device."""
        head = self.model.get_output_embeddings()
        assert isinstance(head, torch.nn.Module)
        return replace(self, offload=OffloadedWeights(self.model, head, self.device))

    def freeze(self) -> "VLM":
        """Evaluation mode, no gradient."""
        self.model.requires_grad_(False)
        self.model.eval()
        return self


@dataclass(frozen=True)
class PromptEncoder:
    """What turns prompts into a model's tokens. Much can be refused with it before any weight is loaded."""

    source: str
    """Folder or hub id."""
    tokenizer: PreTrainedTokenizerBase
    family: Family
    revision: str | None = None

    @property
    def vocabulary_size(self) -> int:
        """Length of the tokenizer."""
        return len(self.tokenizer)

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Tokens, image tensors and positions of a prompt as the model will read it."""
        return self.family.encode(messages_of(prompt), pictures_of(prompt))

    def lengths(self, prompt: Prompt) -> tuple[int, int]:
        """Tokens of a prompt, and of its pictures, without the image processor."""
        return self.family.lengths(messages_of(prompt), pictures_of(prompt))


def load_encoder(
    source: str | Path,
    *,
    revision: str | None = None,
    max_image_tokens: int | None = None,
    role: str = "model",
) -> PromptEncoder:
    """Tokenizer and adapter of a model folder or hub id.

    Args:
        source: local folder, or a hub id such as `Qwen/Qwen3-VL-2B-Instruct`.
        revision: commit of a hub id.
        max_image_tokens: upper limit per picture; larger pictures are shrunk.
        role: student or teacher, for messages.

    Raises:
        ModelError: M103 where there is no such model, M105 without an adapter, M104 for a malformed configuration.
    """
    name = str(source)
    if not Path(name).exists() and not looks_like_hub_id(name):
        raise model_not_found_error(name, role)
    try:
        config: Any = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise model_not_found_error(name, role) from error
    family_type = FAMILIES.get(config.model_type)
    if family_type is None:
        raise unknown_family_error(name, config.model_type, role)
    check_index(name, revision)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    processor = family_type.processor_type.from_pretrained(name, revision=revision or "main")
    family = family_type(config, tokenizer, processor)
    if max_image_tokens is not None:
        family.limit_image_tokens(max_image_tokens)
    return PromptEncoder(name, tokenizer, family, revision)


def load_weights(
    encoder: PromptEncoder, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> VLM:
    """The model that belongs to an encoder (M107 where its weights cannot be read)."""
    name = encoder.source
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            name,
            revision=encoder.revision,
            dtype=dtype or torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise unreadable_model_error(
            name, f"{type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    encoder.family.check_arguments(model)
    return VLM(model.to(device), encoder.tokenizer, encoder.family, name)


def teacher_dtype(device: str | torch.device, precision: str = "auto") -> torch.dtype:
    """The precision of a model that is only read: bf16 on an accelerator unless `train.precision` is fp32."""
    return (
        torch.float32
        if torch.device(device).type == "cpu" or precision == "fp32"
        else torch.bfloat16
    )


def load_vlm(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    max_image_tokens: int | None = None,
) -> VLM:
    """Load a model folder or hub id.

    Args:
        source: local folder, or a hub id such as `Qwen/Qwen3-VL-2B-Instruct`.
        revision: commit of a hub id.
        dtype: precision of the weights; float32 by default.
        device: where the weights go.
        max_image_tokens: upper limit per picture; larger pictures are shrunk.

    Raises:
        ModelError: as `load_encoder`; M107 where the weights cannot be read.
    """
    encoder = load_encoder(source, revision=revision, max_image_tokens=max_image_tokens)
    return load_weights(encoder, dtype=dtype, device=device)


def check_index(name: str, revision: str | None) -> None:
    """M107 where the index of sharded weights names anything but safetensors files beside it.

    transformers opens whatever an index names, outside the folder too, and unpickles what is not called `.safetensors`.
    """
    found = cached_file(
        name,
        SAFE_WEIGHTS_INDEX_NAME,
        revision=revision or "main",
        _raise_exceptions_for_missing_entries=False,
    )
    if found is None:
        return
    try:
        files = set(json.loads(Path(found).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise unreadable_model_error(
            name, f"its index of weights cannot be read: {error}"
        ) from error
    strange = sorted(str(f) for f in files if not re.fullmatch(r"[\w.-]+\.safetensors", str(f)))
    if strange:
        raise unreadable_model_error(
            name,
            f"its index of weights names {strange[0]!r}, which is no safetensors file beside it",
        )


def unreadable_model_error(name: str, why: str) -> ModelError:
    """M107."""
    return ModelError(
        "M107",
        "the model's weights cannot be read",
        where=name,
        why=why[:300],
        fix="download the model again; only safetensors are read, convert others with save_pretrained",
    )


def unknown_family_error(name: str, family: str, role: str) -> ModelError:
    """M105."""
    key = "" if role == "model" else f"{role}.model="
    return ModelError(
        "M105",
        f"the family {family!r} has no adapter",
        where=name,
        why="image tokens and positions differ between families",
        fix=f"{key}Qwen/Qwen3-VL-2B-Instruct   or another model of: {', '.join(FAMILIES)}",
    )


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Content hash of a vocabulary: the same words under the same ids."""
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:12]


def check_pair(student: VLM | PromptEncoder, teacher: VLM | PromptEncoder) -> int:
    """The shared vocabulary's size, or an error where two models cannot be compared row by row (M101, M102)."""
    if vocabulary_hash(student.tokenizer) != vocabulary_hash(teacher.tokenizer):
        raise vocabulary_mismatch_error(student, teacher)
    if student.family.image_grid() != teacher.family.image_grid():
        raise image_grid_mismatch_error(student, teacher)
    return student.vocabulary_size


def vocabulary_mismatch_error(
    student: VLM | PromptEncoder, teacher: VLM | PromptEncoder
) -> ModelError:
    """M101."""
    mine, other = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    differing = [i for word, i in mine.items() if other.get(word) != i] or [
        i for w, i in other.items() if w not in mine
    ]
    at = min(differing)
    words = [next((word for word, i in vocab.items() if i == at), None) for vocab in (mine, other)]
    rows = [("student", student, len(mine)), ("teacher", teacher, len(other))]
    told = [
        f"{r} {model_name(m.source)}: {n:,} tokens, sha {vocabulary_hash(m.tokenizer)}"
        for r, m, n in rows
    ]
    return ModelError(
        "M101",
        "student and teacher do not share a vocabulary",
        where=f"first difference: id {at}, {words[0]!r:.30} and {words[1]!r:.30}",
        why="\n".join([*told, "the loss compares both next-token distributions id by id"]),
        fix=fitting(student, teacher)
        or "teacher.model=FOLDER_OR_HUB_ID   of a model with the student's tokenizer",
        note="padding rows of the output head are ignored; a method without a teacher: method=grpo teacher.model=",
    )


def image_grid_mismatch_error(
    student: VLM | PromptEncoder, teacher: VLM | PromptEncoder
) -> ModelError:
    """M102."""
    told = []
    for role, vlm in (("student", student), ("teacher", teacher)):
        told.append(f"{role}: {vlm.family.grid_in_words()}")
    common = common_limit(student.family.image_grid(), teacher.family.image_grid())
    shrunk = f"data.max_image_tokens={common}" if common else ""
    found = fitting(student, teacher)
    return ModelError(
        "M102",
        "student and teacher turn the same picture into different tokens",
        why="\n".join([*told, "the loss needs one teacher row per student token"]),
        fix="   or   ".join(fix for fix in (shrunk, found) if fix)
        or "teacher.model=FOLDER_OR_HUB_ID   of a model with the student's patches",
    )


def common_limit(ours: dict[str, Any], theirs: dict[str, Any]) -> int | None:
    """Image tokens a picture under which two grids are one; None where patches differ."""
    limits = {"min_pixels", "max_pixels"}
    rest = [
        {key: value for key, value in grid.items() if key not in limits} for grid in (ours, theirs)
    ]
    if rest[0] != rest[1] or not limits <= ours.keys() & theirs.keys():
        return None
    key = "max_pixels" if ours["min_pixels"] == theirs["min_pixels"] else "min_pixels"
    return max(1, min(int(ours[key]), int(theirs[key])) // (ours["patch"] * ours["merge"]) ** 2)


def fitting(student: VLM | PromptEncoder, teacher: VLM | PromptEncoder) -> str:
    """`teacher.model=...` with a model nearby that fits the student, else one that fits the teacher; or nothing."""
    near = list(dict.fromkeys([*nearby_models(teacher.source), *nearby_models(student.source)]))
    others = [
        name
        for name in near
        if name not in {model_name(student.source), model_name(teacher.source)}
    ][:12]
    for role, kept in (("teacher", student), ("student", teacher)):
        for name in others:
            try:
                check_same(load_encoder(kept.source), load_encoder(resolve_model(name)))
            except (ModelError, OSError, ValueError):
                continue
            return f"{role}.model={name}"
    return ""


def check_same(one: PromptEncoder, other: PromptEncoder) -> None:
    """ValueError where two encoders differ, as they are without limits of a recipe."""
    same_words = vocabulary_hash(one.tokenizer) == vocabulary_hash(other.tokenizer)
    if not same_words or one.family.image_grid() != other.family.image_grid():
        raise ValueError

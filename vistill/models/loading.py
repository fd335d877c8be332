"""Load models. The code path is the same for `Qwen/Qwen3-VL-2B-Instruct` and a tiny folder."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import __version__ as transformers_version

from vistill.functional.heads import Head, HeadPrecision, Kernels, full_tensor, row_width
from vistill.models.adapters import add_saved_adapters, base_of
from vistill.models.chat import chat_messages, load_images, plain_images
from vistill.models.families.base import EncodedPrompt, Family, PackedRow, RowBatch
from vistill.models.families.deviations import family_type_of
from vistill.models.families.processor_family import model_class_of
from vistill.models.offload import OffloadedWeights
from vistill.models.packed import PackedForward, PackedInput
from vistill.models.quantization import num_parameters, quantize
from vistill.models.weight_files import (
    check_index,
    invalid_config_error,
    unreadable_model_error,
)
from vistill.notebook_html import table_html
from vistill.registry import families
from vistill.runs.model_families import (
    GENERIC,
    NO_ENCODER_OUTPUTS,
    check_family,
    family_name,
    unsupported_family_error,
)
from vistill.runs.model_not_found import (
    check_model_exists,
    model_name,
    model_not_found_error,
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
    """Read a prompt once for all its siblings, if the family can. Else every rollout is a row."""
    kernels: Kernels = "torch"
    """The backend of the head's values and gradients. `models/backends.py` chooses it."""
    head_precision: HeadPrecision = "fp32"
    """Precision of the operands of the loss's products with a float32 head."""
    step_dtype: torch.dtype = torch.float32
    """Precision of the steps that train it."""
    attention: AttentionPlan = "blocks"
    """How siblings attend to the prompt they share. The numbers are the same."""
    offload: OffloadedWeights | None = field(default=None, compare=False)
    """The weights in host memory, if they are there while no pass reads with the model."""
    also_banned: tuple[int, ...] = ()
    """Ids that the model never writes, besides those of its family: a partner's image tokens."""
    packed: torch.nn.Module | None = field(default=None, compare=False, repr=False)
    """The module whose forward every reading enters.

    By default it is made from the model. A sharded or compiled one can be passed.
    """

    def __post_init__(self) -> None:
        if self.packed is None or self.packed.model is not self.model:
            object.__setattr__(self, "packed", PackedForward(self.model))

    def __repr__(self) -> str:
        """One line; the modules are in `model`."""
        facts = ", ".join(f"{name} {value}" for name, value in self.facts().items())
        return f"VLM({facts})"

    def _repr_html_(self) -> str:
        """The model in a notebook."""
        return table_html(self.facts())

    def facts(self) -> dict[str, str]:
        """What people want to know of a model."""
        weights = list(self.model.parameters())
        trained = sum(weight.numel() for weight in weights if weight.requires_grad)
        return {
            "source": model_name(self.source),
            "family": str(getattr(self.model.config, "model_type", "")),
            "parameters": f"{num_parameters(self.model):,} ({trained:,} trained)",
            "precision": str(weights[0].dtype).removeprefix("torch.") if weights else "",
            "device": str(self.device),
            "vocabulary": f"{self.vocabulary_size:,}",
        }

    def read(self, row: PackedRow | RowBatch) -> Tensor | tuple[Tensor, ...]:
        """Hidden states before the head, [L, H] or [N, L, H].

        For a row with a `new_cache` the result is its keys and values.
        """
        assert self.packed is not None
        return self.packed(PackedInput(self.family, row))

    def states(self, row: PackedRow | RowBatch) -> Tensor:
        """Hidden states of a row without a `new_cache`."""
        states = self.read(row)
        assert isinstance(states, Tensor)
        return states

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt is read once for all its siblings."""
        return self.share_prompts and self.family.shares_prompts(self.model)

    @property
    def device(self) -> torch.device:
        """The device of the weights while a pass reads with the model."""
        return self.model.device if self.offload is None else self.offload.device

    @property
    def vocabulary_size(self) -> int:
        """Length of the tokenizer, the shared vocabulary. Head rows beyond it are padding."""
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
        """Padding id, or the end-of-turn id if the tokenizer has none."""
        pad: Any = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else self.stop_ids[0]

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Tokens, image tensors and positions of a prompt as this model reads it."""
        return self.family.encode(chat_messages(prompt), load_images(prompt))

    def lengths(self, prompt: Prompt) -> tuple[int, int]:
        """Tokens of a prompt, and of its images, by the sizes of the images alone."""
        return self.family.lengths(chat_messages(prompt), plain_images(prompt))

    def head(self, vocabulary: int) -> Head:
        """The language-model head, over the first `vocabulary` ids."""
        layer: Any = self.model.get_output_embeddings()
        weight, bias = full_tensor(layer.weight), getattr(layer, "bias", None)
        uncut = weight.detach()[: row_width(vocabulary, weight.device)]
        is_cut = vocabulary < len(uncut) and bool(uncut[vocabulary:].isfinite().all())
        return Head(
            weight=weight[:vocabulary],
            bias=None if bias is None else full_tensor(bias)[:vocabulary],
            softcap=self.family.softcap(self.model),
            kernels=self.kernels,
            precision=self.head_precision,
            uncut=uncut if is_cut else None,  # 0 times infinity would be NaN in a gradient
        )

    def response_ids(self, text: str) -> tuple[int, ...]:
        """A response as tokens, end-of-turn included. Use it only for data that is text."""
        return (*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.stop_ids[0])

    def decode(self, ids: tuple[int, ...] | list[int]) -> str:
        """Text of a response, for display and answer checks."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def tokens(self, ids: tuple[int, ...] | list[int]) -> list[str]:
        """Text of each token, for heatmaps."""
        return [str(self.tokenizer.decode([i])) for i in ids]

    def on_device(self) -> AbstractContextManager[None]:
        """Inside, the weights are on the device; a model that never rests is always there."""
        return nullcontext() if self.offload is None else self.offload.on_device()

    def offloaded(self) -> "VLM":
        """The same frozen model with its weights in host memory outside `on_device`.

        The head stays on the device.
        """
        head = self.model.get_output_embeddings()
        assert isinstance(head, torch.nn.Module)
        return replace(self, offload=OffloadedWeights(self.model, head, self.device))

    def freeze(self) -> "VLM":
        """Set evaluation mode and turn off gradients. Return the model."""
        self.model.requires_grad_(False)
        self.model.eval()
        return self


@dataclass(frozen=True)
class PromptEncoder:
    """What turns prompts into a model's tokens. Many checks need only this, not the weights."""

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
        """Tokens, image tensors and positions of a prompt as the model reads it."""
        return self.family.encode(chat_messages(prompt), load_images(prompt))

    def lengths(self, prompt: Prompt) -> tuple[int, int]:
        """Tokens of a prompt, and of its images, by the sizes of the images alone."""
        return self.family.lengths(chat_messages(prompt), plain_images(prompt))


def render_prompt(model: "PromptEncoder | VLM", prompt: Prompt) -> tuple[str, int, int]:
    """The chat text of a prompt, one placeholder per image; its tokens and image tokens."""
    return (model.family.render(chat_messages(prompt)), *model.lengths(prompt))


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
        max_image_tokens: limit per image. Larger images are shrunk.
        role: student or teacher, for error messages.

    Raises:
        ModelError: M103 if there is no such model, M105 without a family, M104 for a malformed
            configuration, M107 for a bad index of weights.
    """
    name = str(source)
    check_model_exists(name, role)
    config = load_config(name, revision, role)
    check_index(name, revision)
    family = family_class(config, name, role).load(name, config, revision)
    if max_image_tokens is not None:
        family.limit_image_tokens(max_image_tokens)
        family.image_token_limit = max_image_tokens
    return PromptEncoder(name, family.tokenizer, family, revision)


def load_config(name: str, revision: str | None, role: str) -> Any:
    """The configuration of a model (M103 if there is none, M105 for an unknown model type)."""
    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except StrictDataclassError as error:
        raise invalid_config_error(name, error) from error
    except (OSError, ValueError, TypeError, AttributeError) as error:  # such as a list
        try:
            config, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
            model_type = config.get("model_type")
        except (OSError, ValueError, TypeError, AttributeError):
            model_type = None
        if model_type and model_type not in CONFIG_MAPPING:
            why = f"transformers {transformers_version} does not know it"
            raise unsupported_family_error(name, str(model_type), why, role) from error
        raise model_not_found_error(name, role) from error


def family_class(config: Any, name: str, role: str) -> type[Family]:
    """The adapter of a configuration: its own, or `generic` (M105 if neither can read it)."""
    check_family(config.to_dict(), name, role)
    if family_name(config.model_type) != GENERIC:
        return families.get(config.model_type)
    model_class = model_class_of(config)
    if model_class is None:
        why = "AutoModelForImageTextToText has no class for it"
        raise unsupported_family_error(name, config.model_type, why, role)
    if "mm_encoder_outputs" not in inspect.signature(model_class.forward).parameters:
        raise unsupported_family_error(name, config.model_type, NO_ENCODER_OUTPUTS, role)
    return family_type_of(config)


def load_weights(
    encoder: PromptEncoder,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    quantization: str = "",
) -> VLM:
    """Load the model of an encoder (M107 if its weights cannot be read).

    A folder of adapters gives its base model with the adapters, not merged. `int8` or `nf4`
    quantises the base (`models/quantization.py`).
    """
    name, revision = base_of(encoder.source, encoder.revision)
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            name,
            revision=revision,
            dtype=dtype or torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise unreadable_model_error(
            name, f"{type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    encoder.family.check_arguments(model)
    vlm = VLM(model, encoder.tokenizer, encoder.family, encoder.source)
    if quantization:
        quantize(vlm, quantization, device)
    move_to_device(model, device)
    if name != encoder.source:
        add_saved_adapters(model, Path(encoder.source))
    return vlm


def move_to_device(model: PreTrainedModel, device: str | torch.device) -> None:
    """Move a model, and keep its tied weights tied.

    On devices whose tensors cannot take the place of host tensors, such as many NPUs,
    `Module.to` makes a new parameter for each of two tied layers, and they would train apart.
    """
    model.to(device)  # pyright: ignore[reportArgumentType]
    model.tie_weights()


def teacher_dtype(device: str | torch.device, precision: str = "auto") -> torch.dtype:
    """The precision of a frozen model: bf16 on an accelerator, unless `train.precision` is fp32."""
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
        dtype: precision of the weights, float32 by default.
        device: the device of the weights.
        max_image_tokens: limit per image. Larger images are shrunk.

    Raises:
        ModelError: as `load_encoder`, and M107 if the weights cannot be read.
    """
    encoder = load_encoder(source, revision=revision, max_image_tokens=max_image_tokens)
    return load_weights(encoder, dtype=dtype, device=device)

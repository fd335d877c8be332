"""The adapter between prompts and a family of vision-language models, with defaults.

A family gives its name, its image processor, the number of tokens of an image, and what determines
that number. Everything else has a default for the usual layout of transformers: a base model with a
vision tower, a projector and a decoder, and a head on top. A family overrides what it does
differently, such as three position axes or a processor with more inputs.

A reading encodes an image, puts its states in place of the image tokens, and gives embeddings to
the decoder. It never passes an image by a keyword of the model's forward, because transformers'
forwards accept any keyword and ignore unknown ones.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vistill.data.decoding import to_rgb
from vistill.errors import DataError
from vistill.flops_counter import is_counting
from vistill.models.decode_attention import DecodeAttention
from vistill.models.families.inputs import (
    EncodedPrompt,
    ImageStates,
    PackedRow,
    Pixels,
    RowBatch,
    join_pixels,
    left_pad,
    row_positions,
)
from vistill.models.families.layers import (
    add_at_image_tokens,
    base_model,
    check_number,
    check_signature,
    is_fully_causal,
    run_to_attention,
    tower_weights,
    weights_except,
)
from vistill.models.families.limits import image_limit_error, tokens_of_large_images
from vistill.models.families.processors import find_chat_template, naming_processor
from vistill.models.flops import ModelFlops, ReadTokens, count_reading, model_flops
from vistill.models.sharing import ATTENTION_NAME
from vistill.types import PilImage

#: The parts of a model that a recipe can freeze.
PARTS = ("vision", "tower", "language", "head")

DecoderStep = Callable[[Tensor, Tensor, DecodeAttention], Tensor]
"""(ids [N], positions [axes, N], attention of the rows) -> hidden states [N, H]."""


class Family(ABC):
    """An adapter between prompts and one family of vision-language models."""

    name: ClassVar[str]
    """The `model_type` of its configurations."""
    processor_type: ClassVar[Any]
    """The class of its image processor. It must not need torchvision."""
    is_proven: ClassVar[bool] = False
    """Whether tests of vistill cover the family, so that a start need not prove its reading."""
    encodes_in_threads: ClassVar[bool] = False
    """Whether several threads may call `encode` at once, so that prompts are encoded ahead."""
    response_type: ClassVar[int] = 0
    """The token type of a response token, for a model that has types."""
    image_token_limit: int | None = None
    """Limit of image tokens that the model was loaded with."""

    def __init__(self, config: Any, tokenizer: PreTrainedTokenizerBase, processor: Any) -> None:
        self.config, self.tokenizer, self.processor = config, tokenizer, processor
        self.image_id = int(config.image_token_id)
        self.placeholder = str(tokenizer.convert_ids_to_tokens(self.image_id))

    @classmethod
    def load(cls, name: str, config: Any, revision: str | None) -> "Family":
        """The adapter of a folder or hub id: its tokenizer and its image processor (M108)."""
        with naming_processor(name):
            tokenizer = AutoTokenizer.from_pretrained(
                name, revision=revision, trust_remote_code=False
            )
            processor = cls.processor_type.from_pretrained(name, revision=revision or "main")
        tokenizer.chat_template = find_chat_template(name, tokenizer, revision)
        return cls(config, tokenizer, processor)

    def describe(self) -> str:
        """The family in words."""
        return self.name

    def save_processor(self, folder: Path) -> None:
        """Write tokenizer, chat template and image processor."""
        self.tokenizer.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    # Every family must define these.

    @abstractmethod
    def image_tokens(self, image: PilImage) -> int:
        """The number of tokens of an image. It depends on width and height only."""

    @abstractmethod
    def image_grid(self) -> dict[str, Any]:
        """The settings that determine how an image becomes tokens.

        They must be equal for student and teacher. `patch` is a patch's side in pixels.
        """

    @property
    def patch_size(self) -> int:
        """The side of a patch in pixels. It scales the masks of views."""
        return int(self.image_grid()["patch"])

    def common_limit(self, other: dict[str, Any]) -> int | None:
        """A limit of image tokens under which the grid equals another one, or None."""
        return None

    def describe_grid(self) -> str:
        """The image grid in words, for messages."""
        return ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in self.image_grid().items())

    # Encoding.

    def encode(self, messages: list[dict[str, Any]], images: Sequence[PilImage]) -> EncodedPrompt:
        """Render the chat template, expand image placeholders and compute positions."""
        ids = self.text_ids(messages, len(images))
        pixels = self.pixels(images) if images else {}
        expanded, positions, next_position = self.expand_placeholders(ids, images, pixels)
        return EncodedPrompt(
            tuple(expanded), pixels, positions, next_position, expanded.count(self.image_id)
        )

    def lengths(
        self, messages: list[dict[str, Any]], images: Sequence[PilImage]
    ) -> tuple[int, int]:
        """Tokens of a prompt, and of its images. It uses their sizes, not the image processor."""
        ids = self.text_ids(messages, len(images))
        num_image_tokens = sum(map(self.image_tokens, images))
        return len(ids) - len(images) + num_image_tokens, num_image_tokens

    def render(self, messages: list[dict[str, Any]]) -> str:
        """The chat text, with one placeholder per image."""
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert isinstance(text, str)
        return text

    def text_ids(self, messages: list[dict[str, Any]], num_images: int) -> list[int]:
        """The prompt in tokens, with one placeholder per image (else D103)."""
        ids = self.tokenizer(self.render(messages), add_special_tokens=False)["input_ids"]
        if ids.count(self.image_id) != num_images:
            raise DataError(
                "D103",
                f"{ids.count(self.image_id)} image placeholders, but {num_images} images",
                why=f"the text contains {self.placeholder!r}, or the chat template drops images",
                fix="remove the placeholder token from the question",
            )
        return ids

    def pixels(self, images: Sequence[PilImage]) -> Pixels:
        """Image tensors of one prompt."""
        processed = self.processor(images=[to_rgb(image) for image in images], return_tensors="pt")
        return {name: processed[name] for name in self.processor.model_input_names}

    def expand_placeholders(
        self, ids: Sequence[int], images: Sequence[PilImage], pixels: Pixels
    ) -> tuple[list[int], Tensor, int]:
        """Expand each placeholder to its tokens.

        Returns:
            Expanded ids, positions [axes, P], and the position of the next token.
        """
        counts = iter([self.image_tokens(image) for image in images])
        expanded = [
            token for i in ids for token in ([i] * next(counts) if i == self.image_id else [i])
        ]
        return expanded, torch.arange(len(expanded))[None], len(expanded)

    @property
    def can_limit_image_tokens(self) -> bool:
        """Whether `data.max_image_tokens` works."""
        return type(self).limit_image_tokens is not Family.limit_image_tokens

    def limit_image_tokens(self, limit: int) -> None:
        """Shrink larger images to at most `limit` image tokens (C101 if the family cannot)."""
        counts = tokens_of_large_images(self.image_tokens)
        if len(counts) == 1 and max(counts) <= limit:  # every image has these few
            return
        why = "the model fixes the number of tokens of an image"
        raise image_limit_error(limit, f"the family {self.name} does not support a limit", why)

    def encoding_problem(self, prompt: EncodedPrompt, images: Sequence[PilImage]) -> str | None:
        """Why image tokens or image tensors do not match the images, or None if they match."""
        expected, present = sum(map(self.image_tokens, images)), prompt.ids.count(self.image_id)
        if present != expected:
            return f"{present} image tokens, but the images need {expected}"
        missing = images and not set(prompt.pixels) >= set(self.processor.model_input_names)
        return "the pixels of the image are missing" if missing else None

    def banned_ids(self) -> list[int]:
        """Multimodal special tokens. A model cannot read a response that contains one."""
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        ids = (getattr(self.config, name, None) for name in names)
        return sorted({int(i) for i in ids if i is not None})

    def generation_inputs(self, prompts: Sequence[EncodedPrompt], pad_id: int) -> dict[str, Tensor]:
        """Left-padded keyword arguments of `generate` and of the model's own forward."""
        ids, mask = left_pad([p.ids for p in prompts], pad_id)
        return {"input_ids": ids, "attention_mask": mask, **join_pixels(prompts)}

    def generation_arguments(
        self, model: Any, prompts: Sequence[EncodedPrompt], siblings: int, pad_id: int
    ) -> tuple[dict[str, Any], int]:
        """Arguments of `generate` for several siblings per prompt, and its `num_return_sequences`.

        transformers repeats the rows, and encodes each image once.
        """
        inputs = self.generation_inputs(prompts, pad_id)
        return {name: tensor.to(model.device) for name, tensor in inputs.items()}, siblings

    def reference_inputs(
        self, messages: list[dict[str, Any]], images: Sequence[PilImage], response: Sequence[int]
    ) -> dict[str, Tensor]:
        """Arguments of the model's own forward for a prompt with a response.

        A family with a processor of transformers takes them from the processor itself.
        """
        prompt = self.encode(messages, images)
        return self.generation_inputs([replace(prompt, ids=(*prompt.ids, *response))], 0)

    # The modules of a model.

    def decoder(self, model: Any) -> Any:
        """The text model: `embed_tokens`, `layers`, `rotary_emb`, `norm`."""
        return model.get_decoder()

    def parts(self, model: Any) -> dict[str, list[nn.Module | nn.Parameter]]:
        """All weights, by part.

        `language` is the decoder with its input embedding, `head` the output embedding, `vision`
        the rest; `tower` is `vision` without the modules between tower and decoder. A tied head is
        the same tensor as the input embedding and belongs to both parts.
        """
        decoder, base = self.decoder(model), base_model(model)
        return {
            "vision": weights_except(base, decoder),
            "tower": tower_weights(base),
            "language": [decoder],
            "head": [model.get_output_embeddings()],
        }

    def check_arguments(self, model: Any) -> None:
        """Raise M110 if a signature lacks a keyword that we pass for an image or a position."""
        probe = self.pixels([Image.new("RGB", (64, 64))])
        prompt = EncodedPrompt((self.image_id,), probe, torch.zeros(1, 1), 1, 1)
        check_signature(model.forward, [*self.generation_inputs([prompt], 0), "logits_to_keep"])
        check_signature(base_model(model).get_image_features, probe)
        names = ("inputs_embeds", "attention_mask", "position_ids")
        arguments = [*names, *self.image_arguments(torch.zeros(1), ())]
        check_signature(self.decoder(model).forward, arguments)

    def softcap(self, model: Any) -> float | None:
        """The softcap of the logits, or None."""
        return getattr(model.config.get_text_config(), "final_logit_softcapping", None)

    # Reading.

    def image_features(self, model: Any, prompts: Sequence[EncodedPrompt]) -> Any | None:
        """The vision tower's output for the images of several prompts, in order, or None.

        `pooler_output` holds the states of each image. `deepstack_features`, if present, holds the
        states of each level.
        """
        on_device = join_pixels(prompts, model.device)
        if not on_device:
            return None
        vision = model.config.vision_config
        if vision._attn_implementation == "sdpa":
            vision._attn_implementation = ATTENTION_NAME
        return base_model(model).get_image_features(**on_device, return_dict=True)

    def image_states(self, model: Any, prompts: Sequence[EncodedPrompt]) -> list[Tensor]:
        """What the decoder gets for each image, [tokens, H] each. Empty without images."""
        features = self.image_features(model, prompts)
        return [] if features is None else list(features.pooler_output)

    def join_image_states(self, model: Any, prompts: Sequence[EncodedPrompt]) -> ImageStates | None:
        """The states of all images, concatenated, or None without images."""
        features = self.image_features(model, prompts)
        if features is None:
            return None
        states = torch.cat(list(features.pooler_output))
        check_number(len(states), sum(p.num_image_tokens for p in prompts))
        levels = getattr(features, "deepstack_features", None) or ()
        return ImageStates(states, [torch.cat(list(level)) for level in levels])

    def image_arguments(self, is_image: Tensor, levels: Sequence[Tensor]) -> dict[str, Any]:
        """Keyword arguments of the decoder for states that its first layers add (DeepStack)."""
        assert not levels, "the family has DeepStack levels but does not define image_arguments"
        return {}

    def backbone(self, model: Any, rows: RowBatch) -> Tensor:
        """Hidden states [N, L, H] before the head. The vision tower runs once per prompt."""
        decoder, ids = self.decoder(model), rows.ids.to(model.device)
        if is_counting():
            num_prompt = sum(len(rows.prompts[g].ids) for g in rows.group)
            num_all = rows.ids.numel()
            read = ReadTokens(num_prompt, num_all - num_prompt, num_all * rows.ids.shape[1])
            self.count(model, read, rows.prompts)
        hidden, extra = decoder.embed_tokens(ids), {}
        images = self.join_image_states(model, rows.prompts)
        if images is not None:
            images, is_image = images.repeat_by_rollout(rows), ids == self.image_id
            hidden = hidden.masked_scatter(is_image[..., None], images.states.to(hidden.dtype))
            extra = self.image_arguments(is_image, images.levels)
        output = decoder(
            inputs_embeds=hidden,
            attention_mask=rows.mask.to(model.device),
            position_ids=row_positions(rows).to(model.device),
            use_cache=False,
            **extra,
        )
        return output.last_hidden_state

    def shares_prompts(self, model: Any) -> bool:
        """Whether prompts can be read once for all siblings."""
        return self.sharing_problem(model) is None

    def sharing_problem(self, model: Any) -> str | None:
        """Why siblings cannot share the keys and values of a prompt, or None."""
        config = self.decoder(model).config
        if config._attn_implementation not in {"sdpa", ATTENTION_NAME}:
            return f"its attention is {config._attn_implementation}, not sdpa"
        if not is_fully_causal(config):
            return "some of its layers have a window, a softcap or no attention"
        return None

    def packed_states(self, model: Any, row: PackedRow) -> Tensor | tuple[Tensor, ...]:
        """Hidden states [L, H] before the head: embedding, layers with our attention, and norm.

        For a row with a `new_cache` only keys and values are computed, and they are the result.
        """
        decoder, device, cache = self.decoder(model), model.device, row.attention.new_cache
        decoder.config._attn_implementation = ATTENTION_NAME
        if is_counting():
            length, keys_only = len(row.ids), cache is not None
            read = ReadTokens(
                prompt_tokens=length * keys_only,
                response_tokens=length * (not keys_only),
                num_scores=row.attention.num_scores,
                keys_only=keys_only,
            )
            self.count(model, read, row.prompts)
        ids = row.ids.to(device)
        hidden, levels, is_image = decoder.embed_tokens(ids), (), ids == self.image_id
        images = self.join_image_states(model, row.prompts)
        if images is not None:
            hidden = hidden.masked_scatter(is_image[:, None], images.states.to(hidden.dtype))
            levels = images.levels
        hidden = hidden[None]
        positions = (row.positions[:, None] if len(row.positions) > 1 else row.positions).to(device)
        options = {"position_embeddings": decoder.rotary_emb(hidden, positions)}
        last = len(decoder.layers) - 1
        for index, layer in enumerate(decoder.layers):
            if cache is not None and index == last:
                row.attention.last_layer = last
                run_to_attention(layer, hidden, row.attention, options)
                return tuple(cache.tensors())
            hidden = layer(hidden, attend=row.attention.__call__, **options)
            if index < len(levels):
                hidden = add_at_image_tokens(hidden, is_image[None], levels[index])
        return decoder.norm(hidden)[0]

    def decoder_step(self, model: Any) -> DecoderStep | None:
        """A faster `packed_states` for one more token per row, with equal states, or None."""
        return None

    # Costs.

    def count(self, model: Any, read: ReadTokens, prompts: Sequence[EncodedPrompt]) -> None:
        """Count a reading."""
        grids = [grid for p in prompts if p.has_image for grid in self.patch_grids(p)]
        count_reading(self.costs(model), read, grids)

    def patch_grids(self, prompt: EncodedPrompt) -> Iterable[tuple[int, int, int]]:
        """Frames, rows and columns of patches of each image. By default one row of its tokens."""
        return [(1, 1, prompt.num_image_tokens)]

    def costs(self, model: Any) -> ModelFlops:
        """Operations per token and per patch."""
        tower = [m for m in self.parts(model)["vision"] if isinstance(m, nn.Module)]
        vision = getattr(model.config, "vision_config", None)
        return model_flops(self.decoder(model), tower, vision)

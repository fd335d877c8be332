"""Encoding by a model's own processor: the half of `generic` that needs no weights."""

import copy
import inspect
import re
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerBase

from vistill.data.decoding import to_rgb
from vistill.data.rows import special_token_error
from vistill.errors import DataError
from vistill.models.families.base import Family, base_model
from vistill.models.families.inputs import EncodedPrompt, pad_to_common_shape, token_rows
from vistill.models.families.limits import (
    has_limit,
    image_limit_error,
    set_image_token_limit,
    tokens_of_large_images,
)
from vistill.models.families.processors import PlainImages, load_processor
from vistill.types import PilImage

#: Keywords of a processor's output that the adapter itself handles or leaves out.
HANDLED = ("input_ids", "attention_mask", "labels")
#: How the names of token types end.
TYPES = "token_type_ids"
#: Limits of image tokens that are tried for one that a processor keeps.
MOST_TRIES = 4


class ProcessorFamily(Family):
    """A family that encodes prompts with a processor of transformers."""

    processor_type: ClassVar[Any] = None
    encodes_in_threads: ClassVar[bool] = True

    def __init__(self, config: Any, tokenizer: PreTrainedTokenizerBase, processor: Any) -> None:
        super().__init__(config, tokenizer, processor)
        self.model_type = str(config.model_type)
        self.plain = PlainImages(processor)
        self.lock = threading.RLock()  # a processor may change itself while it works

    @classmethod
    def load(cls, name: str, config: Any, revision: str | None) -> "ProcessorFamily":
        """The adapter of a folder or hub id. The tokenizer is the processor's: it may add words."""
        processor = load_processor(name, revision)
        return cls(config, processor.tokenizer, processor)

    def describe(self) -> str:
        """The family in words."""
        return f"generic ({self.model_type})"

    def save_processor(self, folder: Path) -> None:
        """Write the processor with its tokenizer and chat template."""
        self.processor.save_pretrained(folder)

    def render(self, messages: list[dict[str, Any]]) -> str:
        """The chat text, by the processor's template."""
        return str(
            self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )

    def process(
        self, messages: list[dict[str, Any]], images: Sequence[PilImage], processor: Any = None
    ) -> dict[str, Tensor]:
        """Everything that the processor makes of a prompt (D103 if its images do not fit)."""
        self.refuse_control_tokens(messages)
        text = self.render(messages)
        placeholder = getattr(self.processor, "image_token", None) or self.placeholder
        if text.count(placeholder) != len(images):
            raise placeholder_error(placeholder, text.count(placeholder), len(images))
        inputs = self.call_processor(processor or self.processor, text, images)
        return {name: inputs[name] for name in inputs if name != "labels"}

    @cached_property
    def control_tokens(self) -> "re.Pattern[str]":
        """A pattern of the special tokens. Written in a text they would act as such."""
        added = self.tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in added if getattr(token, "special", False)}
        longest_first = sorted(special, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def refuse_control_tokens(self, messages: list[dict[str, Any]]) -> None:
        """Raise D103 for a special token in a text of the messages."""
        parts = [part for message in messages for part in message["content"]]
        for text in (part["text"] for part in parts if part["type"] == "text"):
            match = self.control_tokens.search(text)
            if match:
                raise special_token_error(match.group(0), "", "question")

    def call_processor(self, processor: Any, text: str, images: Sequence[PilImage]) -> Any:
        """The processor's output. Images are nested: a flat list has another meaning for some."""
        options: dict[str, Any] = {"add_special_tokens": False, "return_tensors": "pt"}
        if images:
            options["images"] = [[to_rgb(image) for image in images]]
        return processor(text=[text], **options)

    def encode(self, messages: list[dict[str, Any]], images: Sequence[PilImage]) -> EncodedPrompt:
        """The processor's encoding, with the positions that the model will derive."""
        with self.lock:
            inputs = self.process(messages, images)
            positions, next_position = self.positions(inputs)
        ids = inputs["input_ids"]
        others = {name: x for name, x in inputs.items() if name not in HANDLED}
        pixels = {name: x for name, x in others.items() if not name.endswith(TYPES)}
        return EncodedPrompt(
            tuple(ids[0].tolist()),
            pixels,
            positions,
            next_position,
            int((ids == self.image_id).sum()),
            {n: tuple(x[0].tolist()) for n, x in others.items() if n.endswith(TYPES)},
        )

    def positions(self, inputs: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Positions [axes, P] of a prompt, and the position of the next token.

        They are the model's own: by `get_rope_index` where the base model has one, else in order.
        """
        length = inputs["input_ids"].shape[1]
        if self.rope_index is None:
            return torch.arange(length)[None], length
        if "image_grid_thw" not in inputs:
            return torch.arange(length).expand(3, -1), length
        names = inspect.signature(self.rope_index).parameters
        known = {name: x for name, x in inputs.items() if name in names}
        positions, delta = self.rope_index(**known)
        return positions[:, 0], length + int(delta)

    @cached_property
    def rope_index(self) -> Any:
        """The base model's `get_rope_index`, or None. It needs the configuration only."""
        model_class = model_class_of(self.config)
        with torch.device("meta"):
            model: Any = model_class._from_config(copy.deepcopy(self.config))
        return getattr(base_model(model), "get_rope_index", None)

    def lengths(
        self, messages: list[dict[str, Any]], images: Sequence[PilImage]
    ) -> tuple[int, int]:
        """Tokens of a prompt, and of its images. Image processing runs once per size."""
        ids = self.process(messages, images, self.plain.processor)["input_ids"]
        return ids.shape[1], int((ids == self.image_id).sum())

    def image_tokens(self, image: PilImage) -> int:
        """The tokens of an image alone, from its size. Several images may take fewer each."""
        return self.lengths(*self.only_images([image]))[1]

    def only_images(
        self, images: Sequence[PilImage]
    ) -> tuple[list[dict[str, Any]], Sequence[PilImage]]:
        """A prompt of images and one word."""
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": "a"}]
        return [{"role": "user", "content": content}], images

    def image_grid(self) -> dict[str, Any]:
        """Patch size, and every setting of the image processor."""
        settings = self.processor.image_processor.to_dict()
        plain = {k: v for k, v in sorted(settings.items()) if v is not None and "type" not in k}
        return {"patch": self.patch_size, **plain}

    def describe_grid(self) -> str:
        """The settings that decide about image tokens, in words."""
        keys = ("size", "max_patches", "max_image_size", "do_image_splitting", "image_seq_length")
        grid = self.image_grid()
        parts = [f"{key.replace('_', ' ')} {grid[key]}" for key in keys if key in grid]
        return f"{self.model_type}, patch {self.patch_size}, {', '.join(parts)}"

    @property
    def patch_size(self) -> int:
        """The side of a patch in pixels. It scales the masks of views."""
        vision = getattr(self.config, "vision_config", None)
        patch = getattr(vision, "patch_size", None) or 14
        return int(patch[0] if isinstance(patch, (list, tuple)) else patch)

    @property
    def can_limit_image_tokens(self) -> bool:
        """Whether a rule for the model type exists."""
        return has_limit(self.processor, self.model_type)

    def limit_image_tokens(self, limit: int) -> None:
        """Shrink larger images to at most `limit` image tokens (C101 if the family cannot)."""
        images = copy.deepcopy(self.processor.image_processor)
        counts = self.tokens_under_limit(limit)
        is_limited, most = self.can_limit_image_tokens or len(counts) == 1, max(counts)
        if is_limited and most <= limit:
            return
        raise image_limit_error(
            limit,
            f"an image of {self.describe()} takes {most} tokens",
            "its processor has no setting that keeps images below the limit",
            self.possible_limit(images, most) if self.can_limit_image_tokens else None,
        )

    def possible_limit(self, images: Any, tokens: int) -> int | None:
        """A limit of at least so many tokens that the processor keeps; None if none is near.

        Args:
            images: the image processor as it was loaded.
            tokens: the fewest that a large image takes.
        """
        for _ in range(MOST_TRIES):
            self.processor.image_processor = copy.deepcopy(images)
            most = max(self.tokens_under_limit(tokens))
            if most <= tokens:
                return tokens
            tokens = most
        return None

    def tokens_under_limit(self, limit: int) -> set[int]:
        """The tokens of large images after a limit is set, where the model type has a rule."""
        if self.can_limit_image_tokens:
            set_image_token_limit(self.processor, self.model_type, limit)
        self.plain = PlainImages(self.processor)
        return tokens_of_large_images(self.image_tokens)

    def encoding_problem(self, prompt: EncodedPrompt, images: Sequence[PilImage]) -> str | None:
        """Compare image tokens and the shapes of image tensors with those of plain images."""
        if not images:
            return None if not prompt.num_image_tokens else "image tokens without an image"
        plain = self.process(*self.only_images(images), self.plain.processor)
        present, expected = prompt.ids.count(self.image_id), plain["input_ids"][0].tolist()
        if present != expected.count(self.image_id):
            return f"{present} image tokens, but the images need {expected.count(self.image_id)}"
        names = {n for n in plain if n not in HANDLED and not n.endswith(TYPES)}
        if not names <= set(prompt.pixels):
            return "the pixels of the image are missing"
        for name in sorted(names):
            shape, needed = prompt.pixels[name].shape, plain[name].shape
            if shape != needed:
                return f"{name} has the shape {tuple(shape)}, but the images need {tuple(needed)}"
        sizes = [n for n in names if not prompt.pixels[n].is_floating_point()]
        for name in sorted(sizes):
            if not torch.equal(prompt.pixels[name], plain[name]):
                return f"{name} is {prompt.pixels[name].tolist()!r:.80}, but the images need others"
        return None

    def banned_ids(self) -> list[int]:
        """Special added tokens, and every token of images. Tokens that end a response may come."""
        added = self.tokenizer.added_tokens_decoder.items()
        special = {int(i) for i, token in added if getattr(token, "special", False)}
        of_images = {int(i) for i in (self.processor.image_token_ids or ()) if i is not None}
        return sorted({*special, *of_images, self.image_id, *super().banned_ids()})

    def generation_inputs(self, prompts: Sequence[EncodedPrompt], pad_id: int) -> dict[str, Tensor]:
        """Left-padded arguments of the model's own forward, with image tensors."""
        inputs = token_rows(prompts, pad_id, left=True)
        with_images = [p.pixels for p in prompts if p.has_image]
        for name in with_images[0] if with_images else ():
            inputs[name] = pad_to_common_shape([pixels[name] for pixels in with_images])
        return inputs

    def reference_inputs(
        self, messages: list[dict[str, Any]], images: Sequence[PilImage], response: Sequence[int]
    ) -> dict[str, Tensor]:
        """What the processor makes of a prompt, with the response behind it.

        This deliberately uses nothing of `encode`: it is the reference for it.
        """
        options: dict[str, Any] = {"add_special_tokens": False, "return_tensors": "pt"}
        if images:
            options["images"] = [list(map(to_rgb, images))]
        text = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return self.with_response(self.processor(text=[text], **options), response)

    def with_response(self, output: Any, response: Sequence[int]) -> dict[str, Tensor]:
        """A processor's output with a response behind the prompt."""
        tail = torch.tensor([list(response)], dtype=torch.long)
        kinds = {"input_ids": tail, "attention_mask": torch.ones_like(tail)}
        inputs = {name: output[name] for name in output if name != "labels"}
        for name in [n for n in inputs if n in kinds or n.endswith(TYPES)]:
            behind = kinds.get(name, torch.full_like(tail, self.response_type))
            inputs[name] = torch.cat([inputs[name], behind.to(inputs[name].dtype)], 1)
        return inputs

    def patch_grids(self, prompt: EncodedPrompt) -> list[tuple[int, int, int]]:
        """Patches of each image, from the grids or from the sizes of the image tensors."""
        if "image_grid_thw" in prompt.pixels:
            return [(f, h, w) for f, h, w in prompt.pixels["image_grid_thw"].tolist()]
        for name, x in prompt.pixels.items():
            if name.startswith("pixel_values") and x.ndim >= 4:
                height, width = (int(side) // self.patch_size for side in x.shape[-2:])
                return [(1, height, width)] * int(x.shape[:-3].numel())
        return [(1, 1, prompt.num_image_tokens)]


def model_class_of(config: Any) -> Any:
    """The class that `AutoModelForImageTextToText` loads, or None."""
    mapping = AutoModelForImageTextToText._model_mapping  # pyright: ignore[reportAttributeAccessIssue]
    return mapping.get(type(config), None)


def placeholder_error(placeholder: str, present: int, images: int) -> DataError:
    """D103."""
    return DataError(
        "D103",
        f"{present} image placeholders, but {images} images",
        why=f"the text contains {placeholder!r}, or the chat template drops images",
        fix="remove the placeholder token from the question",
    )

"""Any model of `AutoModelForImageTextToText`, by its own processor and transformers' public calls.

The processor encodes prompts. The model gets everything that the processor makes, so token types
and sizes reach it without code for a family. It derives positions and masks itself. The images of a
prompt are encoded once (`get_image_features`) and reach the rows of its rollouts as
`mm_encoder_outputs`. A prompt is read once for its siblings only where the configuration says that
every layer attends to all earlier tokens and to nothing else. What no rule covers is in
`DEVIATIONS`, and the proofs at load (`proofs.py`) test the rest.
"""

import copy
import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerBase

from vistill.data.decoding import to_rgb
from vistill.errors import ConfigError, DataError, ModelError
from vistill.flops_counter import is_counting
from vistill.models.families.base import EncodedPrompt, Family, RowBatch, base_model
from vistill.models.families.inputs import (
    ImageStates,
    PackedRow,
    pad_to_common_shape,
    token_rows,
)
from vistill.models.families.layers import check_signature
from vistill.models.families.limits import set_image_token_limit
from vistill.models.families.processors import PlainImages, load_processor, plain_image
from vistill.models.flops import ReadTokens
from vistill.models.sharing import ATTENTION_NAME, packed_attention
from vistill.types import PilImage

#: Keywords of a processor's output that the adapter itself handles or leaves out.
HANDLED = ("input_ids", "attention_mask", "labels")
TYPES = "token_type_ids"
#: Sizes in pixels on which the adapter looks at the encoding of a model.
PROBE_SIZE = (64, 48)


class GenericFamily(Family):
    """Adapter for every model type without a file of its own."""

    name: ClassVar[str] = "generic"
    processor_type: ClassVar[Any] = None

    def __init__(self, config: Any, tokenizer: PreTrainedTokenizerBase, processor: Any) -> None:
        super().__init__(config, tokenizer, processor)
        self.model_type = str(config.model_type)
        self.plain = PlainImages(processor)

    @classmethod
    def load(cls, name: str, config: Any, revision: str | None) -> "GenericFamily":
        """The adapter of a folder or hub id. The tokenizer is the processor's: it may add words."""
        processor = load_processor(name, revision)
        return family_type_of(config)(config, processor.tokenizer, processor)

    def describe(self) -> str:
        """The family in words."""
        return f"generic ({self.model_type})"

    def save_processor(self, folder: Any) -> None:
        """Write the processor with its tokenizer and chat template."""
        self.processor.save_pretrained(folder)

    # Encoding.

    def render(self, messages: list[dict[str, Any]]) -> str:
        """The chat text, by the processor's template."""
        return str(
            self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )

    def process(
        self, messages: list[dict[str, Any]], images: Sequence[PilImage], processor: Any = None
    ) -> dict[str, Tensor]:
        """Everything that the processor makes of a prompt (D103 if its images do not fit)."""
        text = self.render(messages)
        placeholder = getattr(self.processor, "image_token", None) or self.placeholder
        if text.count(placeholder) != len(images):
            raise placeholder_error(placeholder, text.count(placeholder), len(images))
        inputs = self.call_processor(processor or self.processor, text, images)
        return {name: inputs[name] for name in inputs if name != "labels"}

    def call_processor(self, processor: Any, text: str, images: Sequence[PilImage]) -> Any:
        """The processor's output. Images are nested: a flat list has another meaning for some."""
        options: dict[str, Any] = {"add_special_tokens": False, "return_tensors": "pt"}
        if images:
            options["images"] = [[to_rgb(image) for image in images]]
        return processor(text=[text], **options)

    def encode(self, messages: list[dict[str, Any]], images: Sequence[PilImage]) -> EncodedPrompt:
        """The processor's encoding, with the positions that the model will derive."""
        inputs = self.process(messages, images)
        ids = inputs["input_ids"]
        others = {name: x for name, x in inputs.items() if name not in HANDLED}
        pixels = {name: x for name, x in others.items() if not name.endswith(TYPES)}
        positions, next_position = self.positions(inputs)
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

    def limit_image_tokens(self, limit: int) -> None:
        """Shrink larger images to at most `limit` image tokens (C101 if the family cannot)."""
        settings = set_image_token_limit(self.processor, self.model_type, limit)
        self.plain = PlainImages(self.processor)
        sizes = ((2048, 1536), (1536, 2048), (1600, 1600), (4096, 512))
        most = max(self.image_tokens(plain_image(size)) for size in sizes)
        if not settings or most > limit:
            raise ConfigError(
                "C101",
                f"data.max_image_tokens = {limit}, but an image of {self.describe()} takes"
                f" {most} tokens",
                why="its processor has no setting that keeps images below the limit",
                fix="data.max_image_tokens=null",
            )

    def encoding_problem(self, prompt: EncodedPrompt, images: Sequence[PilImage]) -> str | None:
        """Compare image tokens and the shapes of image tensors with those of plain images."""
        if not images:
            return None if not prompt.num_image_tokens else "image tokens without an image"
        plain = self.process(*self.only_images(images), self.plain.processor)
        present, expected = prompt.ids.count(self.image_id), plain["input_ids"][0].tolist()
        if present != expected.count(self.image_id):
            return (
                f"{present} image tokens, but the images need {expected.count(self.image_id)}"
            )
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

    def generation_arguments(
        self, model: Any, prompts: Sequence[EncodedPrompt], siblings: int, pad_id: int
    ) -> tuple[dict[str, Any], int]:
        """Arguments of `generate`, one row per response: each prompt is repeated here.

        transformers would repeat the images of a batch for `num_return_sequences`, for some models
        in another order than the rows.
        """
        group = [g for g in range(len(prompts)) for _ in range(siblings)]
        rows = token_rows([prompts[g] for g in group], pad_id, left=True)
        arguments = {name: x.to(model.device) for name, x in rows.items()}
        return arguments | self.image_keywords(model, prompts, group), 1

    def reference_inputs(
        self, messages: list[dict[str, Any]], images: Sequence[PilImage], response: Sequence[int]
    ) -> dict[str, Tensor]:
        """What the processor makes of a prompt, with the response behind it.

        This deliberately uses nothing of `encode`: it is the reference for it.
        """
        options: dict[str, Any] = {"images": [list(map(to_rgb, images))]} if images else {}
        text = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        made = self.processor(text=[text], add_special_tokens=False, return_tensors="pt", **options)
        return self.with_response(made, response)

    def with_response(self, made: Any, response: Sequence[int]) -> dict[str, Tensor]:
        """A processor's output with a response behind the prompt."""
        tail = torch.tensor([list(response)], dtype=torch.long)
        kinds = {"input_ids": tail, "attention_mask": torch.ones_like(tail)}
        inputs = {name: made[name] for name in made if name != "labels"}
        for name in [n for n in inputs if n in kinds or n.endswith(TYPES)]:
            behind = kinds.get(name, torch.full_like(tail, self.response_type))
            inputs[name] = torch.cat([inputs[name], behind.to(inputs[name].dtype)], 1)
        return inputs

    # Reading.

    def check_arguments(self, model: Any) -> None:
        """Raise M110 if a call lacks a keyword for something that the processor makes."""
        base = base_model(model)
        arguments = ["input_ids", "attention_mask", "mm_encoder_outputs"]
        inputs = self.process(*self.only_images([plain_image(PROBE_SIZE)]))
        names = [name for name in inputs if name not in HANDLED]
        types = [name for name in names if name.endswith(TYPES)]
        check_signature(base.forward, [*arguments, *types])
        check_signature(model.forward, [*arguments[:2], "logits_to_keep"])
        sizes = set(inspect.signature(base.forward).parameters)
        pixels = [name for name in names if name not in types]
        check_signature(
            base.get_image_features,
            [n for n in pixels if n not in sizes or n.startswith("pixel")],
        )

    def image_features(self, model: Any, prompts: Sequence[EncodedPrompt]) -> Any | None:
        """The vision tower's output for the images of several prompts, or None without images.

        The tower runs once per prompt, so no image of another prompt changes a result. The outputs
        are joined in the container that the model itself uses: a tensor, a list or a tuple.
        """
        outputs = [self.features_of_prompt(model, p) for p in prompts if p.has_image]
        return join_features(outputs, range(len(outputs))) if outputs else None

    def features_of_prompt(self, model: Any, prompt: EncodedPrompt) -> Any:
        """The vision tower's output for the images of one prompt."""
        base = base_model(model)
        set_attention(getattr(model.config, "vision_config", None))
        names = inspect.signature(base.get_image_features).parameters
        pixels = {n: x.to(model.device) for n, x in prompt.pixels.items() if n in names}
        return base.get_image_features(**pixels, return_dict=True)

    def image_states(self, model: Any, prompts: Sequence[EncodedPrompt]) -> list[Tensor]:
        """What the decoder gets for the images of each prompt, [tokens, H] each."""
        outputs = [self.features_of_prompt(model, p) for p in prompts if p.has_image]
        return [flat_states(output.pooler_output) for output in outputs]

    def join_image_states(self, model: Any, prompts: Sequence[EncodedPrompt]) -> ImageStates | None:
        """The states of all image tokens in order, and those of DeepStack."""
        features = self.image_features(model, prompts)
        if features is None:
            return None
        states, needed = flat_states(features.pooler_output), sum(p.num_image_tokens for p in prompts)
        if len(states) != needed:
            raise ValueError(f"the vision tower gives {len(states)} states for {needed} image tokens")
        levels = getattr(features, "deepstack_features", None) or ()
        return ImageStates(states, [flat_states(level) for level in levels])

    def image_keywords(
        self, model: Any, prompts: Sequence[EncodedPrompt], group: Sequence[int]
    ) -> dict[str, Any]:
        """The images of rows as keywords of the base model: encoded ones, and their sizes."""
        outputs = {
            g: self.features_of_prompt(model, p) for g, p in enumerate(prompts) if p.has_image
        }
        rows = [g for g in group if g in outputs]
        if not rows:
            return {}
        names = inspect.signature(base_model(model).forward).parameters
        sizes = [n for n in prompts[rows[0]].pixels if n in names and not n.startswith("pixel")]
        return {
            "mm_encoder_outputs": {"image": join_features(outputs, rows)},
            **{
                name: torch.cat([prompts[g].pixels[name] for g in rows]).to(model.device)
                for name in sizes
            },
        }

    def backbone(self, model: Any, rows: RowBatch) -> Tensor:
        """Hidden states [N, L, H] before the head. The model derives positions and masks."""
        if is_counting():
            num_prompt = sum(len(rows.prompts[g].ids) for g in rows.group)
            num_all = rows.ids.numel()
            read = ReadTokens(num_prompt, num_all - num_prompt, num_all * rows.ids.shape[1])
            self.count(model, read, rows.prompts)
        set_attention(self.decoder(model).config)
        prompts = [rows.prompts[g] for g in rows.group]
        types = token_rows(prompts, 0, left=False, width=rows.ids.shape[1])
        known = {n: x for n, x in types.items() if n.endswith(TYPES)}
        for name, x in known.items():
            for row, prompt in enumerate(prompts):
                x[row, len(prompt.ids) :] = self.response_type
            known[name] = x.to(model.device)
        output = base_model(model)(
            input_ids=rows.ids.to(model.device),
            attention_mask=rows.mask.to(model.device),
            use_cache=False,
            **known,
            **self.image_keywords(model, rows.prompts, rows.group),
        )
        return output.last_hidden_state

    def sharing_problem(self, model: Any) -> str | None:
        """Why siblings cannot attend to the keys and values of one prompt, or None."""
        problem = super().sharing_problem(model)
        if problem is not None:
            return problem
        if TYPES in inspect.signature(base_model(model).forward).parameters:
            return "tokens of its images or of its prompt attend in both directions"
        if not getattr(self.decoder(model), "_supports_attention_backend", False):
            return "its attention cannot be replaced"
        return None

    def packed_states(self, model: Any, row: PackedRow) -> Tensor | tuple[Tensor, ...]:
        """Hidden states [L, H] before the head, by the model's own decoder with our attention."""
        decoder, device, cache = self.decoder(model), model.device, row.attention.new_cache
        if is_counting():
            length = len(row.ids)
            read = ReadTokens(
                prompt_tokens=length * (cache is not None),
                response_tokens=length * (cache is None),
                num_scores=row.attention.num_scores,
            )
            self.count(model, read, row.prompts)
        ids = row.ids.to(device)
        hidden, is_image = model.get_input_embeddings()(ids), ids == self.image_id
        images, extra = self.join_image_states(model, row.prompts), {}
        if images is not None:
            hidden = hidden.masked_scatter(is_image[:, None], images.states.to(hidden.dtype))
            if images.levels:
                extra = self.image_arguments(is_image[None], images.levels)
        positions = row.positions[:, None] if len(row.positions) > 1 else row.positions
        with packed_attention(decoder.config):
            output = decoder(
                inputs_embeds=hidden[None],
                position_ids=positions.to(device),
                attend=row.attention.__call__,
                use_cache=False,
                **extra,
            )
        if cache is not None:
            return tuple(cache.tensors())
        return output.last_hidden_state[0]

    def image_arguments(self, is_image: Tensor, levels: Sequence[Tensor]) -> dict[str, Any]:
        """The arguments of DeepStack, as transformers' decoders name them."""
        return {"visual_pos_masks": is_image, "deepstack_visual_embeds": list(levels)}

    # Costs.

    def patch_grids(self, prompt: EncodedPrompt) -> list[tuple[int, int, int]]:
        """Patches of each image, from the grids or from the sizes of the image tensors."""
        if "image_grid_thw" in prompt.pixels:
            return [(f, h, w) for f, h, w in prompt.pixels["image_grid_thw"].tolist()]
        for name, x in prompt.pixels.items():
            if name.startswith("pixel_values") and x.ndim >= 4:
                height, width = (int(side) // self.patch_size for side in x.shape[-2:])
                return [(1, height, width)] * int(x.shape[:-3].numel())
        return [(1, 1, prompt.num_image_tokens)]


class Gemma3Family(GenericFamily):
    """Gemma 3: its image model applies no softcap to the logits, whatever the configuration."""

    name = "gemma3"

    def softcap(self, model: Any) -> float | None:
        """None."""
        return None


class PaliGemmaFamily(GenericFamily):
    """PaliGemma 1 and 2: response tokens have a type, and the processor refuses text alone."""

    name = "paligemma"
    response_type = 1

    def call_processor(self, processor: Any, text: str, images: Sequence[PilImage]) -> Any:
        """The processor's output. Text alone gets what the processor writes around a text."""
        if images:
            return super().call_processor(processor, text, images)
        return self.tokenizer(
            [f"{self.tokenizer.bos_token}{text}\n"],
            add_special_tokens=False,
            return_tensors="pt",
            return_token_type_ids=True,
        )

    def reference_inputs(
        self, messages: list[dict[str, Any]], images: Sequence[PilImage], response: Sequence[int]
    ) -> dict[str, Tensor]:
        """What the processor makes of a prompt with images, and the tokenizer of a text alone."""
        if images:
            return super().reference_inputs(messages, images, response)
        alone = self.call_processor(self.processor, self.render(messages), ())
        return self.with_response(alone, response)


#: Model types with a rule that `GenericFamily` does not have.
DEVIATIONS: dict[str, type[GenericFamily]] = {
    kind.name: kind for kind in (Gemma3Family, PaliGemmaFamily)
}


def family_type_of(config: Any) -> type[GenericFamily]:
    """The adapter of a model type without a file of its own."""
    return DEVIATIONS.get(config.model_type, GenericFamily)


def model_class_of(config: Any) -> Any:
    """The class that `AutoModelForImageTextToText` loads, or None."""
    mapping = AutoModelForImageTextToText._model_mapping  # pyright: ignore[reportAttributeAccessIssue]
    return mapping.get(type(config), None)


def set_attention(config: Any) -> None:
    """Let a module use our attention function: transformers' own with repeatable gradients."""
    if config is not None and getattr(config, "_attn_implementation", None) == "sdpa":
        config._attn_implementation = ATTENTION_NAME


def flat_states(pooled: Any) -> Tensor:
    """The states of image tokens, [tokens, H], from a tensor, a list or a tuple."""
    x = pooled if isinstance(pooled, Tensor) else torch.cat(list(pooled))
    return x.reshape(-1, x.shape[-1])


def join_features(outputs: Any, order: Sequence[int]) -> Any:
    """The outputs of several prompts as one, in order, in the container of the model."""
    first = outputs[order[0]]

    def join(containers: list[Any]) -> Any:
        if isinstance(containers[0], Tensor):
            return torch.cat(containers)
        return type(containers[0])(x for container in containers for x in container)

    fields: dict[str, Any] = {"pooler_output": join([outputs[i].pooler_output for i in order])}
    if getattr(first, "deepstack_features", None):
        levels = zip(*(outputs[i].deepstack_features for i in order), strict=True)
        fields["deepstack_features"] = [join(list(level)) for level in levels]
    return type(first)(**fields)


def placeholder_error(placeholder: str, present: int, images: int) -> DataError:
    """D103."""
    return DataError(
        "D103",
        f"{present} image placeholders, but {images} images",
        why=f"the text contains {placeholder!r}, or the chat template drops images",
        fix="remove the placeholder token from the question",
    )

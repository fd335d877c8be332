"""What a family of vision-language models must say, and everything that can be derived from it.

A family names itself and its image processor, and says how many tokens a picture takes and what
decides that. The rest has defaults for the usual layout of transformers: a base model with a vision
tower, a projector and a decoder, and a head on top. A family overrides what is different in it, such
as three position axes or a processor with further inputs.

In our readings a picture is encoded and put in place of its image tokens, and the decoder reads
embeddings. It never travels by a keyword of the model's forward that may not be known there:
transformers' forwards accept any keyword and ignore those they do not know.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from vistill.data.images import flatten_on_white
from vistill.errors import ConfigError, DataError
from vistill.flops_counter import is_counting
from vistill.models.decode_attention import DecodeAttention
from vistill.models.families.layers import keys_only, plainly_causal, with_added
from vistill.models.families.signatures import check_signature
from vistill.models.flops import ModelFlops, ReadTokens, count_reading, learns, linear_costs
from vistill.models.sharing import ATTENTION, Attention
from vistill.types import PilImage

#: Image tensors of one prompt, under the model's own keyword names. Opaque outside this package.
Pixels = Mapping[str, Tensor]
#: Parts of a model that a recipe can name.
PARTS = ("vision", "language", "head")


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as one model family reads it."""

    ids: tuple[int, ...]
    """Prompt tokens, image tokens expanded, up to and including the generation prompt."""
    pixels: Pixels
    """Image tensors; empty without pictures."""
    positions: Tensor
    """Rotary positions of the prompt tokens, [axes, P]."""
    next_position: int
    """Position of the first response token. It is not P where pictures take fewer positions than tokens."""
    num_image_tokens: int

    @property
    def has_image(self) -> bool:
        """Whether there is a picture."""
        return self.num_image_tokens > 0


@dataclass(frozen=True)
class RowBatch:
    """Prompt and response as one row per rollout, right-padded; made and consumed in this package only."""

    ids: Tensor
    """[N, L]"""
    mask: Tensor
    """[N, L], 1 for real tokens."""
    positions: Tensor
    """[axes, N, L]"""
    prompts: Sequence[EncodedPrompt]
    """One per group."""
    group: Sequence[int]
    """Group of each row."""


@dataclass(frozen=True)
class PackedRow:
    """Tokens of several prompts or responses on one axis, each with its position; `attend` keeps them apart."""

    ids: Tensor
    """[L]"""
    positions: Tensor
    """[axes, L]"""
    attend: Attention
    prompts: Sequence[EncodedPrompt] = ()
    """Whose pictures stand among the ids, in order."""


@dataclass(frozen=True)
class PictureStates:
    """Pictures as the decoder reads them."""

    states: Tensor
    """One row for each image token, [I, H]: what stands in place of its embedding."""
    levels: Sequence[Tensor] = ()
    """What is added at the image tokens behind the first layers (DeepStack), [I, H] each."""

    def repeated(self, rows: RowBatch) -> "PictureStates":
        """The states once more for each rollout of a prompt, in row order."""
        counts = [p.num_image_tokens for p in rows.prompts]

        def in_row_order(table: Tensor) -> Tensor:
            by_prompt = table.split(counts)
            return torch.cat([by_prompt[g] for g in rows.group])

        return PictureStates(
            in_row_order(self.states), [in_row_order(level) for level in self.levels]
        )


DecoderStep = Callable[[Tensor, Tensor, DecodeAttention], Tensor]
"""Ids [N], positions [axes, N], attention of the rows -> hidden states [N, H]."""


class Family(ABC):
    """An adapter between prompts and one family of vision-language models."""

    name: ClassVar[str]
    """The `model_type` of its configurations."""
    processor_type: ClassVar[Any]
    """The class of its image processor, one that needs no torchvision."""

    def __init__(self, config: Any, tokenizer: PreTrainedTokenizerBase, processor: Any) -> None:
        self.config, self.tokenizer, self.processor = config, tokenizer, processor
        self.image_id = int(config.image_token_id)
        placeholder = tokenizer.convert_ids_to_tokens(self.image_id)
        assert isinstance(placeholder, str)
        self.placeholder = placeholder

    # What every family must say.

    @abstractmethod
    def image_tokens(self, image: PilImage) -> int:
        """How many tokens a picture takes, from its width and height alone."""

    @abstractmethod
    def image_grid(self) -> dict[str, Any]:
        """What decides how a picture becomes tokens; equal for student and teacher.

        `patch` is the side of a patch in pixels; the other entries are the family's own.
        """

    def grid_in_words(self) -> str:
        """The grid in a message."""
        return ", ".join(
            f"{key.replace('_', ' ')} {value}" for key, value in self.image_grid().items()
        )

    # Encoding.

    def encode(self, messages: list[dict[str, Any]], images: Sequence[PilImage]) -> EncodedPrompt:
        """Render the chat template, expand image placeholders, compute positions."""
        ids = self.text_ids(messages, len(images))
        pixels = self.pixels(images) if images else {}
        expanded, positions, following = self.place(ids, images, pixels)
        return EncodedPrompt(
            tuple(expanded), pixels, positions, following, expanded.count(self.image_id)
        )

    def lengths(
        self, messages: list[dict[str, Any]], images: Sequence[PilImage]
    ) -> tuple[int, int]:
        """Tokens of a prompt, and of its pictures; from their sizes, without the image processor."""
        ids = self.text_ids(messages, len(images))
        of_images = sum(map(self.image_tokens, images))
        return len(ids) - len(images) + of_images, of_images

    def text_ids(self, messages: list[dict[str, Any]], num_images: int) -> list[int]:
        """The chat template in tokens, one placeholder a picture (D103)."""
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert isinstance(text, str)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids.count(self.image_id) != num_images:
            raise DataError(
                "D103",
                f"{ids.count(self.image_id)} image placeholders, but {num_images} pictures",
                why=f"text of the prompt holds {self.placeholder!r} itself, or the chat template drops pictures",
                fix="remove the placeholder token from the question",
            )
        return ids

    def pixels(self, images: Sequence[PilImage]) -> Pixels:
        """Image tensors of one prompt."""
        processed = self.processor(
            images=[flatten_on_white(image).convert("RGB") for image in images], return_tensors="pt"
        )
        return {name: processed[name] for name in self.processor.model_input_names}

    def place(
        self, ids: Sequence[int], images: Sequence[PilImage], pixels: Pixels
    ) -> tuple[list[int], Tensor, int]:
        """Expand each placeholder to its tokens; ids, positions [axes, P] and the position that follows."""
        counts = iter([self.image_tokens(image) for image in images])
        expanded = [
            token for i in ids for token in ([i] * next(counts) if i == self.image_id else [i])
        ]
        return expanded, torch.arange(len(expanded))[None], len(expanded)

    def limit_image_tokens(self, limit: int) -> None:
        """Shrink larger pictures to at most `limit` image tokens each (C101 where a family cannot)."""
        raise ConfigError(
            "C101",
            f"data.max_image_tokens = {limit}, but models of the family {self.name} take no limit",
            why="the number of tokens of a picture is fixed by the model",
            fix="data.max_image_tokens=null",
        )

    def wrong_encoding(self, prompt: EncodedPrompt, images: Sequence[PilImage]) -> str | None:
        """Why image tokens or image tensors are not what the pictures ask for; None where they are."""
        expected, present = sum(map(self.image_tokens, images)), prompt.ids.count(self.image_id)
        if present != expected:
            return f"{present} image tokens, the pictures ask for {expected}"
        missing = images and not set(prompt.pixels) >= set(self.processor.model_input_names)
        return "the picture's pixels are missing" if missing else None

    def banned_ids(self) -> list[int]:
        """Multimodal special tokens that must never be sampled: one in a response breaks the next forward."""
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        ids = (getattr(self.config, name, None) for name in names)
        return sorted({int(i) for i in ids if i is not None})

    def generation_inputs(self, prompts: Sequence[EncodedPrompt], pad_id: int) -> dict[str, Tensor]:
        """Left-padded keyword arguments for `generate` and for the model's own forward."""
        ids, mask = left_pad([p.ids for p in prompts], pad_id)
        return {"input_ids": ids, "attention_mask": mask, **joined_pixels(prompts)}

    # The modules of a model.

    def decoder(self, model: Any) -> Any:
        """The text model: `embed_tokens`, `layers`, `rotary_emb`, `norm`."""
        return model.get_decoder()

    def parts(self, model: Any) -> dict[str, list[nn.Module | nn.Parameter]]:
        """Every weight by the part it belongs to.

        `language` is the decoder with its input embedding, `head` the output embedding, `vision` all
        the rest: the tower and what carries its states into the decoder. A tied head is the same
        tensor as the input embedding and belongs to both.
        """
        decoder, base = self.decoder(model), base_of(model)
        rest = [child for child in base.children() if child is not decoder]
        loose = [p for p in base.parameters(recurse=False) if isinstance(p, nn.Parameter)]
        return {
            "vision": [*rest, *loose],
            "language": [decoder],
            "head": [model.get_output_embeddings()],
        }

    def check_arguments(self, model: Any) -> None:
        """M110 where a keyword that a picture or a position travels by is not in the signature of what is called."""
        probe = self.pixels([Image.new("RGB", (64, 64))])
        prompt = EncodedPrompt((self.image_id,), probe, torch.zeros(1, 1), 1, 1)
        check_signature(model.forward, [*self.generation_inputs([prompt], 0), "logits_to_keep"])
        check_signature(base_of(model).get_image_features, probe)
        wanted = (
            "inputs_embeds",
            "attention_mask",
            "position_ids",
            *self.picture_arguments(torch.zeros(1), ()),
        )
        check_signature(self.decoder(model).forward, wanted)

    # Reading.

    def image_features(self, model: Any, prompts: Sequence[EncodedPrompt]) -> Any | None:
        """The vision tower's output for the pictures of several prompts, in order; None without pictures.

        `pooler_output` holds the states of each picture, `deepstack_features`, where there are any,
        those of each level.
        """
        pixels = joined_pixels(prompts)
        if not pixels:
            return None
        on_device = {name: tensor.to(model.device) for name, tensor in pixels.items()}
        return base_of(model).get_image_features(**on_device, return_dict=True)

    def picture_states(self, model: Any, prompts: Sequence[EncodedPrompt]) -> list[Tensor]:
        """What the decoder is given for each picture, [tokens, H] each, in order; empty where nothing is given."""
        features = self.image_features(model, prompts)
        return [] if features is None else list(features.pooler_output)

    def joined_pictures(self, model: Any, prompts: Sequence[EncodedPrompt]) -> PictureStates | None:
        """The states of all pictures, one after the other."""
        features = self.image_features(model, prompts)
        if features is None:
            return None
        states = torch.cat(list(features.pooler_output))
        wanted = sum(p.num_image_tokens for p in prompts)
        if len(states) != wanted:
            raise ValueError(
                f"the vision tower gives {len(states)} states for {wanted} image tokens"
            )
        levels = getattr(features, "deepstack_features", None) or ()
        return PictureStates(states, [torch.cat(list(level)) for level in levels])

    def picture_arguments(self, seen: Tensor, levels: Sequence[Tensor]) -> dict[str, Any]:
        """Keyword arguments of the decoder for states that are added behind its first layers."""
        assert not levels, "this family does not say how its decoder takes several levels"
        return {}

    def backbone(self, model: Any, rows: RowBatch) -> Tensor:
        """Hidden states [N, L, H] before the head; the vision tower runs once per prompt, not once per rollout."""
        decoder, ids = self.decoder(model), rows.ids.to(model.device)
        if is_counting():
            prompts, every = sum(len(rows.prompts[g].ids) for g in rows.group), rows.ids.numel()
            self.count(
                model, ReadTokens(prompts, every - prompts, every * rows.ids.shape[1]), rows.prompts
            )
        hidden, extra = decoder.embed_tokens(ids), {}
        pictures = self.joined_pictures(model, rows.prompts)
        if pictures is not None:
            pictures, seen = pictures.repeated(rows), ids == self.image_id
            hidden = hidden.masked_scatter(seen[..., None], pictures.states.to(hidden.dtype))
            extra = self.picture_arguments(seen, pictures.levels)
        output = decoder(
            inputs_embeds=hidden,
            attention_mask=rows.mask.to(model.device),
            position_ids=row_positions(rows).to(model.device),
            use_cache=False,
            **extra,
        )
        return output.last_hidden_state

    def shares_prompts(self, model: Any) -> bool:
        """Whether prompts can be read once: torch's own attention, and every layer plainly causal."""
        config = self.decoder(model).config
        return config._attn_implementation in {"sdpa", ATTENTION} and plainly_causal(config)

    def packed_states(self, model: Any, row: PackedRow) -> Tensor | tuple[Tensor, ...]:
        """Hidden states [L, H] before the head: embedding, layers and norm, with our attention between the tokens.

        Where the row's keys and values are kept, only those are computed, and they are the result.
        """
        decoder, device = self.decoder(model), model.device
        decoder.config._attn_implementation = ATTENTION
        if is_counting():
            length, kept = len(row.ids), row.attend.kept is not None
            read = ReadTokens(length * kept, length * (not kept), row.attend.cells, keys_only=kept)
            self.count(model, read, row.prompts)
        ids = row.ids.to(device)
        hidden, levels, seen = decoder.embed_tokens(ids), (), ids == self.image_id
        pictures = self.joined_pictures(model, row.prompts)
        if pictures is not None:
            hidden = hidden.masked_scatter(seen[:, None], pictures.states.to(hidden.dtype))
            levels = pictures.levels
        hidden = hidden[None]
        positions = (row.positions[:, None] if len(row.positions) > 1 else row.positions).to(device)
        options = {"position_embeddings": decoder.rotary_emb(hidden, positions)}
        last = len(decoder.layers) - 1
        for index, layer in enumerate(decoder.layers):
            if row.attend.kept is not None and index == last:
                row.attend.last_layer = last
                keys_only(layer, hidden, row.attend, options)
                return tuple(row.attend.kept.tensors())
            hidden = layer(hidden, attend=row.attend.__call__, **options)
            if index < len(levels):
                hidden = with_added(hidden, seen[None], levels[index])
        return decoder.norm(hidden)[0]

    def decoder_step(self, model: Any) -> DecoderStep | None:
        """Something faster than `packed_states` for one more token a row, with the same states; None without."""
        return None

    # Costs.

    def count(self, model: Any, read: ReadTokens, prompts: Sequence[EncodedPrompt]) -> None:
        """Report a reading to the meter."""
        grids = [grid for p in prompts if p.has_image for grid in self.patch_grids(p)]
        count_reading(self.costs(model), read, grids)

    def patch_grids(self, prompt: EncodedPrompt) -> Iterable[tuple[int, int, int]]:
        """Frames, rows and columns of patches of each picture; by default one strip as long as its tokens."""
        return [(1, 1, prompt.num_image_tokens)]

    def costs(self, model: Any) -> ModelFlops:
        """What a token and a patch cost in operations."""
        decoder, vision = self.decoder(model), model.config.vision_config
        seeing = [m for m in self.parts(model)["vision"] if isinstance(m, nn.Module)]
        depth = getattr(vision, "depth", None) or vision.num_hidden_layers
        return text_costs(decoder, any(map(learns, seeing))).with_vision(
            patch=linear_costs(seeing),
            patch_pair=4.0 * vision.hidden_size * depth,
            backward=2.0 * any(map(learns, seeing)),
        )


def text_costs(decoder: Any, vision_learns: bool) -> ModelFlops:
    """What the tokens of a decoder cost."""
    text = decoder.config
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelFlops(
        token=linear_costs(decoder.layers),
        last_feed_forward=linear_costs([decoder.layers[-1].mlp]),
        cell=4.0 * text.num_attention_heads * width,
        layers=len(decoder.layers),
        patch=0.0,
        patch_pair=0.0,
        text_backward=float(learns(decoder)) + float(learns(decoder) or vision_learns),
        vision_backward=0.0,
    )


def base_of(model: Any) -> Any:
    """The model below the head."""
    return getattr(model, model.base_model_prefix)


def joined_pixels(prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
    """Image tensors of several prompts, one after the other."""
    with_pictures = [p for p in prompts if p.has_image]
    names = with_pictures[0].pixels if with_pictures else ()
    return {name: torch.cat([p.pixels[name] for p in with_pictures]) for name in names}


def left_pad(rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of left-padded rows."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[value] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def row_positions(rows: RowBatch) -> Tensor:
    """Positions as transformers' decoders take them: [N, L], or with several axes the text's own before them."""
    if len(rows.positions) == 1:
        return rows.positions[0]
    return torch.cat([(rows.mask.cumsum(-1) - 1).clamp_min(0)[None], rows.positions])

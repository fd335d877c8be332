"""Shapes of models: sizes, and parameters by part. Needs no torch.

Shapes of the models that shipped recipes name are in `models/`, each with its source and date. For
Qwen3-VL the parameters follow from the sizes. For another family `meta.py` counts them.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

MODELS = Path(__file__).parent / "models"
#: Family whose parameters follow from its sizes.
COUNTED_FAMILY = "qwen3_vl"


@dataclass(frozen=True)
class VisionShape:
    """Sizes of a vision tower and its projector."""

    width: int
    feed_forward: int
    depth: int
    heads: int
    patch: int
    """Side of a patch in pixels."""
    merge: int
    """Patches along one side of an image token."""
    frames: int
    channels: int
    positions: int
    """Entries of the table of positions."""
    out: int
    levels: int
    """DeepStack levels; each has a merger of its own, besides the last merger."""
    tokens_of_image: int = 0
    """Tokens of every image, if the configuration fixes them."""

    @property
    def patch_values(self) -> int:
        """Input values of a patch."""
        return self.channels * self.frames * self.patch**2

    @property
    def merged(self) -> int:
        """Width of the patches of one image token together."""
        return self.width * self.merge**2

    @property
    def tower_weights(self) -> int:
        """Weights of the tower that multiply every patch."""
        block = 4 * self.width**2 + 2 * self.width * self.feed_forward
        return self.patch_values * self.width + self.depth * block

    @property
    def merger_weights(self) -> int:
        """Weights of all mergers, which multiply every image token."""
        return (self.levels + 1) * (self.merged**2 + self.merged * self.out)

    def parameters(self) -> tuple[int, int]:
        """Parameters of the tower and of the projector, for Qwen3-VL's classes."""
        biases = self.depth * (9 * self.width + self.feed_forward) + self.width
        tower = self.tower_weights + biases + self.positions * self.width
        mergers = self.merger_weights + (self.levels + 1) * (self.merged + self.out)
        norms = 2 * self.width + self.levels * 2 * self.merged
        return tower, mergers + norms


@dataclass(frozen=True)
class Parameters:
    """Parameters by part. A tied head is counted in the language part."""

    vision: int
    """The vision tower."""
    projector: int
    language: int
    """The decoder with its input embedding."""
    head: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.vision + self.projector + self.language + self.head


@dataclass(frozen=True)
class LinearSizes:
    """Inputs plus outputs of all linear layers of a part, which determine the size of adapters."""

    vision: int
    """The vision tower."""
    projector: int
    language: int


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a vision-language model."""

    name: str
    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    """Rows of the head, padding included."""
    is_tied: bool
    vision: VisionShape | None
    parameters: Parameters
    source: str = ""
    date: str = ""
    is_confirmed: bool = True
    linear_sizes: LinearSizes | None = None
    """Counted in a model; None where they follow from the sizes above."""

    @property
    def linear_weights(self) -> int:
        """Weights of the decoder that multiply every token; the head is not among them."""
        return self.layers * layer_weights(self)

    @property
    def kv_values(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def head_weights(self) -> int:
        """Weights of the head, tied or not."""
        return self.vocabulary * self.hidden

    def trained_parameters(self, frozen: Collection[str] = ()) -> int:
        """Parameters that the optimizer updates, with some parts frozen (`train.freeze`)."""
        parts = self.parameters
        tower = parts.vision * ("vision" not in frozen and "tower" not in frozen)
        projector = parts.projector * ("vision" not in frozen)
        language = parts.language * ("language" not in frozen)
        if self.is_tied and "head" in frozen and language:
            language -= self.head_weights
        return tower + projector + language + parts.head * ("head" not in frozen)


def layer_weights(shape: ModelShape) -> int:
    """Weights of one decoder layer that multiply every token."""
    attention = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    return shape.hidden * (attention + 3 * shape.feed_forward)


def shape_of_config(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape that a `config.json` describes; parameters are those of Qwen3-VL's classes.

    Raises:
        KeyError, TypeError, ValueError: the configuration lacks a size.
    """
    text = config.get("text_config") or config
    heads = int(text["num_attention_heads"])
    vision = config.get("vision_config")
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    tokens = int(config.get("image_seq_length") or config.get("mm_tokens_per_image") or 0)
    shape = ModelShape(
        name=name,
        model_type=str(config.get("model_type", "")),
        hidden=int(text["hidden_size"]),
        layers=int(text["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or text["hidden_size"] // heads),
        feed_forward=int(text["intermediate_size"]),
        vocabulary=int(text["vocab_size"]),
        is_tied=bool(tied),
        vision=vision_shape(vision, int(text["hidden_size"]), tokens) if vision else None,
        parameters=Parameters(0, 0, 0, 0),
    )
    return replace(shape, parameters=count_parameters(shape))


def vision_shape(vision: Mapping[str, Any], out: int, tokens: int) -> VisionShape:
    """The sizes of a vision tower; other families use other names for some of them."""
    width = int(vision["hidden_size"])
    return VisionShape(
        width=width,
        feed_forward=int(vision.get("intermediate_size") or vision["mlp_ratio"] * width),
        depth=int(vision.get("depth") or vision["num_hidden_layers"]),
        heads=int(vision.get("num_heads") or vision["num_attention_heads"]),
        patch=int(vision["patch_size"]),
        merge=int(vision.get("spatial_merge_size") or 1),
        frames=int(vision.get("temporal_patch_size") or 1),
        channels=int(vision.get("in_channels") or vision.get("num_channels") or 3),
        positions=int(vision.get("num_position_embeddings") or 0),
        out=int(vision.get("out_hidden_size") or out),
        levels=len(vision.get("deepstack_visual_indexes") or ()),
        tokens_of_image=tokens,
    )


def count_parameters(shape: ModelShape) -> Parameters:
    """Parameters of Qwen3-VL's classes: no bias in the decoder, norms of queries and keys."""
    tower, projector = shape.vision.parameters() if shape.vision else (0, 0)
    norms = shape.layers * (2 * shape.hidden + 2 * shape.head_dim) + shape.hidden
    language = shape.linear_weights + norms + shape.head_weights
    return Parameters(tower, projector, language, 0 if shape.is_tied else shape.head_weights)


@dataclass(frozen=True)
class ShippedShape:
    """One file of `models/`."""

    names: tuple[str, ...]
    source: str
    date: str
    confirmed: bool
    config: dict[str, Any] = field(hash=False)
    parameters: dict[str, int] | None = field(default=None, hash=False)
    """By part, where they do not follow from the sizes: a family that is not Qwen3-VL."""


@cache
def shipped_shapes() -> dict[str, ModelShape]:
    """Shapes that the package includes, by hub id."""
    shapes = {}
    for file in sorted(MODELS.glob("*.json")):
        entry = ShippedShape(**json.loads(file.read_text(encoding="utf-8")))
        for name in entry.names:
            shape = shape_of_config(entry.config, name)
            counted = entry.parameters
            shapes[name] = replace(
                shape,
                parameters=Parameters(**counted) if counted else shape.parameters,
                source=entry.source,
                date=entry.date,
                is_confirmed=entry.confirmed,
            )
    return shapes

"""Floating-point operations of the matrix products of a model, computed from shapes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from vistill.flops_counter import count
from vistill.models.adapters import is_adapted_layer
from vistill.models.checkpointing import checkpoints


@dataclass(frozen=True)
class ModelFlops:
    """Operations of one unit of work in one forward pass. A multiply-add counts as two."""

    token: float
    """One token in the linear maps of all decoder layers."""
    last_feed_forward: float
    """The part of `token` that a reading for keys and values skips."""
    attention_score: float
    """One attention score and its use, in one decoder layer."""
    layers: int
    """Decoder layers."""
    patch: float
    """One image patch in the linear maps of the vision tower, mergers included."""
    patch_pair: float
    """One attention score of the vision tower and its use, in all its layers."""
    text_backward: float
    """Cost of backward over forward for the decoder.

    2 if it is trainable, 1 if only a part before it is, else 0. Of a decoder with adapters, 1 and
    the share of the adapters. With gradient checkpointing 1 more.
    """
    vision_backward: float
    """The same for the vision tower."""

    def with_vision(self, patch: float, patch_pair: float, backward: float) -> "ModelFlops":
        """The same decoder, with the costs of a vision tower."""
        return replace(self, patch=patch, patch_pair=patch_pair, vision_backward=backward)


#: Modules whose weights multiply every token or patch.
LINEAR = (nn.Linear, nn.Conv2d, nn.Conv3d)


def linear_flops(parts: Iterable[nn.Module]) -> float:
    """Twice the number of weights in the linear maps and patch embeddings of some modules."""
    return 2.0 * sum(map(num_weights, linear_maps(parts)))


def linear_maps(parts: Iterable[nn.Module]) -> list[Any]:
    """The linear maps and patch embeddings in some modules."""
    return [m for part in parts for m in part.modules() if isinstance(m, LINEAR)]


def num_weights(layer: Any) -> int:
    """Weights of a linear map. Those of 4 bits are packed, so their tensor is smaller."""
    if isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features
    return layer.weight.numel()


def backward_cost(parts: Sequence[nn.Module], is_reached: bool) -> float:
    """Cost of backward over forward: 1 for inputs, up to 1 for weights, 1 to compute layers again.

    Args:
        parts: modules. Without adapters they are trained as a whole.
        is_reached: whether something before them is trained.
    """
    is_trained = any(map(is_trainable, parts))
    of_weights = float(is_trained)
    if any(is_adapted_layer(m) for part in parts for m in part.modules()):
        layers = linear_maps(parts)
        trained = sum(num_weights(x) for x in layers if x.weight.requires_grad)
        of_weights = trained / sum(map(num_weights, layers))
    again = any(checkpoints(m) and m.training for part in parts for m in part.modules())
    return of_weights + (1.0 + again) * (is_trained or is_reached)


def is_trainable(module: nn.Module) -> bool:
    """Whether any weight of a module gets a gradient."""
    return any(p.requires_grad for p in module.parameters())


def decoder_flops(decoder: Any, is_vision_trainable: bool) -> ModelFlops:
    """The costs of a decoder. Those of the vision tower are 0."""
    text = decoder.config
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelFlops(
        token=linear_flops(decoder.layers),
        last_feed_forward=linear_flops([decoder.layers[-1].mlp]),
        attention_score=4.0 * text.num_attention_heads * width,
        layers=len(decoder.layers),
        patch=0.0,
        patch_pair=0.0,
        text_backward=backward_cost([decoder], is_vision_trainable),
        vision_backward=0.0,
    )


def model_flops(decoder: Any, tower: Sequence[nn.Module], vision: Any) -> ModelFlops:
    """The costs of a decoder and of everything before it, from their configurations."""
    is_tower_trainable = any(map(is_trainable, tower))
    depth = getattr(vision, "depth", None) or getattr(vision, "num_hidden_layers", 0)
    return decoder_flops(decoder, is_tower_trainable).with_vision(
        patch=linear_flops(tower),
        patch_pair=4.0 * getattr(vision, "hidden_size", 0) * depth,
        backward=backward_cost(tower, is_reached=False),
    )


@dataclass(frozen=True)
class ReadTokens:
    """What one reading sent through the decoder."""

    prompt_tokens: int = 0
    response_tokens: int = 0
    num_scores: int = 0
    """Attention scores per layer and head."""
    keys_only: bool = False
    """Whether the last layer computed only keys and values."""


def count_reading(
    costs: ModelFlops, read: ReadTokens, grids: Sequence[tuple[int, int, int]] = ()
) -> None:
    """Count a reading. With gradient count its backward pass too.

    Args:
        costs: operations per unit.
        read: what went through the decoder.
        grids: frames, rows and columns of patches of each image that was encoded.
    """
    patches = [frames * height * width for frames, height, width in grids]
    tokens = read.prompt_tokens + read.response_tokens
    text = tokens * (costs.token - costs.last_feed_forward * read.keys_only)
    text += read.num_scores * costs.attention_score * (costs.layers - read.keys_only)
    pairs = sum(frames * (height * width) ** 2 for frames, height, width in grids)
    vision = sum(patches) * costs.patch + pairs * costs.patch_pair
    if torch.is_grad_enabled():
        text *= 1 + costs.text_backward
        vision *= 1 + costs.vision_backward
    count(
        prompt_tokens=read.prompt_tokens,
        response_tokens=read.response_tokens,
        patches=sum(patches),
        flops=text + vision,
    )

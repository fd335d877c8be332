"""Floating-point operations of the matrix products of a forward pass, from shapes alone, and of its backward pass."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from vistill.flops_counter import count


@dataclass(frozen=True)
class ModelFlops:
    """What one unit costs in one forward pass, in floating-point operations (a multiply-add is two)."""

    token: float
    """A token through the linear maps of all decoder layers."""
    last_feed_forward: float
    """The part of `token` that a prompt's keys and values do not need."""
    cell: float
    """An attention score and its use, in one decoder layer."""
    layers: int
    """Decoder layers."""
    patch: float
    """A picture patch through the linear maps of the vision tower, its mergers included."""
    patch_pair: float
    """An attention score of the vision tower and its use, in all its layers."""
    text_backward: float
    """Backward over forward, language: 2 where it learns, 1 where only something before it does, else 0."""
    vision_backward: float

    def with_vision(self, patch: float, patch_pair: float, backward: float) -> "ModelFlops":
        """The same decoder with a vision tower."""
        return replace(self, patch=patch, patch_pair=patch_pair, vision_backward=backward)


def linear_costs(parts: Iterable[nn.Module]) -> float:
    """`2 x weights` of every linear map and patch embedding below some modules."""
    modules = [m for part in parts for m in part.modules() if isinstance(m, (nn.Linear, nn.Conv3d))]
    return 2.0 * sum(m.weight.numel() for m in modules)


def learns(module: nn.Module) -> bool:
    """Whether any of its weights gets a gradient."""
    return any(p.requires_grad for p in module.parameters())


@dataclass(frozen=True)
class ReadTokens:
    """What one reading went through."""

    prompt_tokens: int = 0
    response_tokens: int = 0
    cells: int = 0
    """Attention scores of one layer and head."""
    keys_only: bool = False
    """The last layer made keys and values alone."""


def count_reading(
    costs: ModelFlops, read: ReadTokens, grids: Sequence[tuple[int, int, int]] = ()
) -> None:
    """Report a reading; with gradient its backward pass is counted too.

    Args:
        costs: what a unit costs.
        read: what went through the decoder.
        grids: frames, rows and columns of patches of each picture that was encoded.
    """
    patches = [frames * height * width for frames, height, width in grids]
    tokens = read.prompt_tokens + read.response_tokens
    text = tokens * (costs.token - costs.last_feed_forward * read.keys_only)
    text += read.cells * costs.cell * (costs.layers - read.keys_only)
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

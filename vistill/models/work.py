"""Floating-point operations of the matrix products of a forward pass, from shapes alone, and of its backward pass."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vistill.meter import count
from vistill.models.family import Costs, EncodedPrompt


def linear_costs(parts: Iterable[nn.Module]) -> float:
    """`2 x weights` of every linear map and patch embedding below some modules."""
    modules = [m for part in parts for m in part.modules() if isinstance(m, (nn.Linear, nn.Conv3d))]
    return 2.0 * sum(m.weight.numel() for m in modules)


def learns(module: nn.Module) -> bool:
    """Whether any of its weights gets a gradient."""
    return any(p.requires_grad for p in module.parameters())


@dataclass(frozen=True)
class Read:
    """What one reading went through."""

    prompt_tokens: int = 0
    response_tokens: int = 0
    cells: int = 0
    """Attention scores of one layer and head."""
    prompts: Sequence[EncodedPrompt] = ()
    """Whose pictures were encoded."""
    keys_only: bool = False
    """The last layer made keys and values alone."""


def count_reading(costs: Costs, read: Read) -> None:
    """Report a reading; with gradient its backward pass is counted too."""
    grids = [grid for p in read.prompts if p.has_image for grid in p.pixels["image_grid_thw"].tolist()]
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

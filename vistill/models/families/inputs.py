"""What a family of models reads: encoded prompts, rows of tokens, states of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from vistill.models.sharing import Attention

#: Image tensors of one prompt, by the model's keyword names. Only this package looks inside.
Pixels = Mapping[str, Tensor]


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as a model family reads it."""

    ids: tuple[int, ...]
    """Prompt tokens with expanded image tokens, up to and including the generation prompt."""
    pixels: Pixels
    """Image tensors. Empty without images."""
    positions: Tensor
    """Rotary positions of the prompt tokens, [axes, P]."""
    next_position: int
    """Position of the first response token.

    It is below P if images take fewer positions than tokens.
    """
    num_image_tokens: int
    token_types: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Types of the prompt tokens by the model's keyword names, [P] each."""

    @property
    def has_image(self) -> bool:
        """Whether the prompt has an image."""
        return self.num_image_tokens > 0


@dataclass(frozen=True)
class RowBatch:
    """Prompt and response as one right-padded row per rollout. Only this package uses it."""

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
    """Tokens of several prompts or responses on one axis. `attention` keeps them separate."""

    ids: Tensor
    """[L]"""
    positions: Tensor
    """[axes, L]"""
    attention: Attention
    prompts: Sequence[EncodedPrompt] = ()
    """The prompts whose images are among the ids, in order."""


@dataclass(frozen=True)
class ImageStates:
    """Images as the decoder reads them."""

    states: Tensor
    """One row per image token, [I, H]. It replaces the embedding of the token."""
    levels: Sequence[Tensor] = ()
    """States to add at the image tokens after the first layers (DeepStack), [I, H] each."""

    def repeat_by_rollout(self, rows: RowBatch) -> "ImageStates":
        """The states repeated for each rollout of a prompt, in row order."""
        counts = [p.num_image_tokens for p in rows.prompts]

        def in_row_order(table: Tensor) -> Tensor:
            by_prompt = table.split(counts)
            return torch.cat([by_prompt[g] for g in rows.group])

        return ImageStates(
            in_row_order(self.states), [in_row_order(level) for level in self.levels]
        )


def join_pixels(
    prompts: Sequence[EncodedPrompt], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Image tensors of several prompts, concatenated on a device."""
    with_images = [p for p in prompts if p.has_image]
    names = with_images[0].pixels if with_images else ()
    return {
        name: torch.cat([to_device(p.pixels[name], device) for p in with_images]) for name in names
    }


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device. The host does not wait for a copy from page-locked memory."""
    return tensor.to(device, non_blocking=tensor.is_pinned())


def has_same_pixels(a: EncodedPrompt, b: EncodedPrompt) -> bool:
    """Whether two prompts have the same image tensors."""
    return a.pixels.keys() == b.pixels.keys() and all(
        torch.equal(a.pixels[name], b.pixels[name]) for name in a.pixels
    )


def pad_to_common_shape(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors concatenated on the first axis, padded with 0 at the end of every other axis."""
    shape = [max(sizes) for sizes in zip(*(x.shape[1:] for x in tensors), strict=True)]
    padded = []
    for x in tensors:
        pad = [p for size, own in zip(shape, x.shape[1:], strict=True) for p in (size - own, 0)]
        padded.append(functional.pad(x, pad[::-1]))
    return torch.cat(padded)


def token_rows(
    prompts: Sequence[EncodedPrompt], pad_id: int, left: bool, width: int | None = None
) -> dict[str, Tensor]:
    """Ids, attention mask and token types of padded rows. Padding has type 0."""
    width = width or max(len(p.ids) for p in prompts)
    rows = {
        "input_ids": torch.full((len(prompts), width), pad_id),
        "attention_mask": torch.zeros((len(prompts), width), dtype=torch.long),
    }
    rows |= {
        name: torch.zeros((len(prompts), width), dtype=torch.long)
        for name in prompts[0].token_types
    }
    for row, prompt in enumerate(prompts):
        at = slice(width - len(prompt.ids), width) if left else slice(0, len(prompt.ids))
        rows["input_ids"][row, at] = torch.tensor(prompt.ids)
        rows["attention_mask"][row, at] = 1
        for name, types in prompt.token_types.items():
            rows[name][row, at] = torch.tensor(types)
    return rows


def left_pad(rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of left-padded rows."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[value] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def row_positions(rows: RowBatch) -> Tensor:
    """Positions as a decoder of transformers takes them: [N, L], or [1 + axes, N, L].

    With several axes the text positions come before them.
    """
    if len(rows.positions) == 1:
        return rows.positions[0]
    return torch.cat([(rows.mask.cumsum(-1) - 1).clamp_min(0)[None], rows.positions])

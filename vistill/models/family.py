"""What a model family must be able to do. One file a family, one line in `FAMILIES`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from vistill.models.one_each import OneEach
from vistill.models.sharing import Attention
from vistill.types import Picture

#: Image tensors of one prompt, under the model's own keyword names. Opaque outside this room.
Pixels = Mapping[str, Tensor]


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
    """Prompt and response as one row per rollout, right-padded; made and consumed in this room only."""

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
class Costs:
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


DecoderStep = Callable[[Tensor, Tensor, OneEach], Tensor]
"""Ids [N], positions [axes, N], attention of the rows -> hidden states [N, H]."""


@runtime_checkable
class Family(Protocol):
    """An adapter between prompts and one family of vision-language models."""

    name: str

    def encode(self, messages: list[dict[str, Any]], images: Sequence[Picture]) -> EncodedPrompt:
        """Chat messages and pictures to tokens, image tensors and positions."""
        ...

    def backbone(self, model: Any, rows: RowBatch) -> Tensor:
        """Hidden states [N, L, H] before the head. Each prompt's pictures are encoded once for all its siblings."""
        ...

    def packed_states(self, model: Any, row: PackedRow) -> Tensor:
        """Hidden states [L, H] before the head; where the row's keys are kept, only those are made (empty result)."""
        ...

    def decoder_step(self, model: Any) -> DecoderStep:
        """What reads one token a row while responses are written: `packed_states`, or something faster, same states."""
        ...

    def costs(self, model: Any) -> Costs:
        """What a token and a patch cost in operations."""
        ...

    def shares_prompts(self, model: Any) -> bool:
        """Whether `packed_states` can be used with this model; if not, every rollout is a row of its own."""
        ...

    def generation_inputs(self, prompts: Sequence[EncodedPrompt], pad_id: int) -> dict[str, Tensor]:
        """Left-padded keyword arguments for `generate`."""
        ...

    def wrong_encoding(self, prompt: EncodedPrompt, images: Sequence[Picture]) -> str | None:
        """Why image tokens, image tensors or grids are not what the pictures ask for; None where they are."""
        ...

    def picture_states(self, model: Any, prompts: Sequence[EncodedPrompt]) -> list[Tensor]:
        """What the decoder is given for each picture, [tokens, H] each, in order; empty where nothing is given."""
        ...

    def banned_ids(self) -> list[int]:
        """Multimodal special tokens that must never be sampled."""
        ...

    def image_grid(self) -> dict[str, Any]:
        """What decides how a picture becomes tokens; equal for student and teacher."""
        ...


def left_pad(rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of left-padded rows."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[value] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask

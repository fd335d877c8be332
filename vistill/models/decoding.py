"""Decode one token after another: prompts are read once, finished rows can be dropped."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vistill.models.decode_attention import DecodeAttention
from vistill.models.families.base import DecoderStep, EncodedPrompt, PackedRow
from vistill.models.loading import VLM
from vistill.models.packed import is_unmodified
from vistill.models.scoring import EncodedGroup, SharedReading
from vistill.models.sharing import KVCache, Segment
from vistill.models.static_step import StaticAttention, StaticStep


class Decoder:
    """Siblings of several prompts. Each call of `states` reads one more token per row.

    No call waits for the device. With `is_static` a step has static shapes, and a CUDA device
    replays it as a graph.
    """

    def __init__(
        self,
        vlm: VLM,
        prompts: Sequence[EncodedPrompt],
        group: Sequence[int],
        *,
        is_static: bool = False,
    ) -> None:
        self.vlm = vlm
        reading = SharedReading(vlm, [EncodedGroup(p, ()) for p in prompts])
        device = vlm.device
        cache, mask = pad_prompts(reading.prompt_cache, reading.segments)
        kind = StaticAttention if is_static else DecodeAttention
        self.attention = kind(cache, mask, list(group))
        self.ids = torch.tensor([prompts[g].ids[-1] for g in group], device=device)
        self.prompt_ends = torch.stack([prompts[g].positions[:, -1] for g in group], 1)
        self.prompt_ends = self.prompt_ends.to(device)
        next_positions = [prompts[g].next_position for g in group]
        self.next_positions = torch.tensor(next_positions, device=device)
        self.last_position = max(next_positions)
        self.step = make_decoder_step(vlm)
        self.static_step = None
        if isinstance(self.attention, StaticAttention):
            self.static_step = StaticStep(self.step, self.attention, len(self.prompt_ends))

    @torch.no_grad()
    def states(self) -> Float[Tensor, "N H"]:
        """Read the newest token of each row. Return the states that predict the next tokens."""
        num_read = self.attention.num_added
        last = self.last_position + num_read - 1
        if num_read == 0:
            hidden = self.first_states(last)
        elif self.static_step is not None:
            hidden = self.static_step(self.ids, self.next_positions + (num_read - 1), last)
        else:
            positions = (self.next_positions + (num_read - 1)).expand(len(self.prompt_ends), -1)
            self.attention.last_position = last
            hidden = self.step(self.ids, positions, self.attention)
        self.attention.num_added += 1
        return hidden

    def first_states(self, last: int) -> Float[Tensor, "N H"]:
        """Read the last token of each prompt, whose axes may have different positions."""
        attention = self.attention
        attention.last_position = last
        if isinstance(attention, StaticAttention):
            attention.grow()
            attention.length.zero_()
            attention.write_mask()
        return self.step(self.ids, self.prompt_ends, attention)

    def append(self, ids: Int[Tensor, " N"]) -> None:
        """Append the next token to each row."""
        self.ids = ids

    def rewind(self, count: int, ids: Int[Tensor, " N"]) -> None:
        """Forget the last `count` reads; `ids` are the newest tokens of the rows again."""
        self.attention.num_added -= count
        self.ids = ids

    def keep(self, rows: list[int]) -> None:
        """Drop all other rows."""
        index = torch.tensor(rows, device=self.ids.device)
        self.ids = self.ids[index]
        self.next_positions = self.next_positions[index]
        self.prompt_ends = self.prompt_ends[:, index]
        self.attention.keep(rows)
        if self.static_step is not None:
            self.static_step.forget()


def make_decoder_step(vlm: VLM) -> DecoderStep:
    """The family's fast step if no hook or wrapper needs the modules, else the packed reading."""
    assert vlm.packed is not None
    fast = vlm.family.decoder_step(vlm.model) if is_unmodified(vlm.packed) else None
    if fast is not None:
        return fast

    def step(ids: Tensor, positions: Tensor, attention: DecodeAttention) -> Tensor:
        return vlm.states(PackedRow(ids, positions, attention))

    return step


def pad_prompts(
    cache: KVCache, segments: Sequence[Segment]
) -> tuple[dict[int, tuple[Tensor, Tensor]], Tensor | None]:
    """Keys [G, heads, d, P] and values [G, heads, P, d] by layer, and the mask [G, 1, P]."""
    keys = next(iter(cache.keys.values()))
    start, length = (
        torch.tensor([getattr(s, name) for s in segments], device=keys.device)[:, None]
        for name in ("start", "length")
    )
    column = torch.arange(int(length.max()), device=keys.device)
    index = (start + torch.minimum(column, (length - 1).clamp_min(0))).clamp_max(len(keys) - 1)

    def pad(x: Tensor, order: tuple[int, ...]) -> Tensor:
        return x[index].unflatten(-1, (cache.heads, -1)).permute(order).contiguous()

    inside = column < length
    mask = None
    if not bool(inside.all()):
        zeros = torch.zeros(inside.shape, device=keys.device)
        mask = zeros.masked_fill(~inside, -torch.inf)[:, None]
    keys_last, values_last = (0, 2, 3, 1), (0, 2, 1, 3)
    pairs = {
        i: (pad(cache.keys[i], keys_last), pad(cache.values[i], values_last)) for i in cache.keys
    }
    return pairs, mask

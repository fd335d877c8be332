"""Write one token after another: prompts read once, a cache that is written in place, rows that can be dropped."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vistill.models.decode_attention import DecodeAttention
from vistill.models.families.base import DecoderStep, EncodedPrompt, PackedRow
from vistill.models.loading import VLM
from vistill.models.packed import is_plain
from vistill.models.scoring import EncodedGroup, SharedReading
from vistill.models.sharing import KeysValues, Segment


class Decoder:
    """Siblings of several prompts, one more token at each call."""

    def __init__(self, vlm: VLM, prompts: Sequence[EncodedPrompt], group: Sequence[int]) -> None:
        self.vlm = vlm
        reading = SharedReading(vlm, [EncodedGroup(p, ()) for p in prompts])
        device = vlm.device
        prompt, mask = padded(reading.made, reading.segments)
        self.attend = DecodeAttention(prompt, mask, torch.tensor(group, device=device))
        self.ids = torch.tensor([prompts[g].ids[-1] for g in group], device=device)
        self.positions = torch.stack([prompts[g].positions[:, -1] for g in group], 1)
        self.following = torch.tensor([prompts[g].next_position for g in group])
        self.step = decoder_step(vlm)

    @torch.no_grad()
    def states(self) -> Float[Tensor, "N H"]:
        """Read the rows' newest tokens; hidden states that predict the next ones."""
        hidden = self.step(self.ids, self.positions, self.attend)
        self.positions = (self.following + self.attend.time).expand(len(self.positions), -1)
        self.attend.time += 1
        return hidden

    def append(self, ids: Int[Tensor, " N"]) -> None:
        """The rows' next tokens."""
        self.ids = ids

    def keep(self, rows: Int[Tensor, " M"]) -> None:
        """Drop all other rows."""
        here = rows.to(self.following.device)
        self.ids, self.following, self.positions = (
            self.ids[rows],
            self.following[here],
            self.positions[:, here],
        )
        self.attend.keep(rows)


def decoder_step(vlm: VLM) -> DecoderStep:
    """The family's own fast step where nothing hangs on the model's modules, else the packed reading."""
    assert vlm.packed is not None
    fast = vlm.family.decoder_step(vlm.model) if is_plain(vlm.packed) else None
    return fast or (lambda ids, positions, attend: vlm.states(PackedRow(ids, positions, attend)))


def padded(
    made: KeysValues, segments: Sequence[Segment]
) -> tuple[dict[int, tuple[Tensor, Tensor]], Tensor | None]:
    """Packed prompts as [G, heads, P, d] by layer, and the mask of what is padding."""
    some = next(iter(made.keys.values()))
    start, length = (
        torch.tensor([getattr(s, name) for s in segments], device=some.device)[:, None]
        for name in ("start", "length")
    )
    column = torch.arange(int(length.max()), device=some.device)
    index = (start + torch.minimum(column, (length - 1).clamp_min(0))).clamp_max(len(some) - 1)
    shape = lambda x: x[index].unflatten(-1, (made.heads, -1)).transpose(1, 2).contiguous()
    inside = column < length
    mask = None
    if not bool(inside.all()):
        mask = torch.zeros(inside.shape, device=some.device).masked_fill(~inside, -torch.inf)[
            :, None, None
        ]
    return {i: (shape(made.keys[i]), shape(made.values[i])) for i in made.keys}, mask

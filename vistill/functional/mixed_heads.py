"""Hidden states of several models on one axis of rows, each projected by its own head."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vistill.functional.heads import Head


@dataclass(frozen=True)
class MixedHead(Head):
    """Several heads in place of one. The last column of the hidden states says which one of a row.

    Rows of a narrower model are filled up with zeros. Any selection of rows carries the column
    along, so signals and loss terms need not know that there are several models. The inherited
    `weight` is that of the first head, which has the shared vocabulary and device.
    """

    heads: tuple[Head, ...] = ()

    @property
    def is_linear(self) -> bool:
        """False: hidden states of several models cannot be added up before the head."""
        return False

    @property
    def logits_dtype(self) -> torch.dtype:
        """The widest precision of the heads."""
        dtype = torch.float32
        for head in self.heads:
            dtype = torch.promote_types(dtype, head.logits_dtype)
        return dtype

    def logits(self, hidden: Float[Tensor, "R H"]) -> Float[Tensor, "R V"]:
        """Logits in float32 or wider, each row by its own head."""
        out = hidden.new_empty(len(hidden), len(self.weight), dtype=self.logits_dtype)
        for head, rows in self.rows_by_head(hidden):
            out[rows] = head.logits(hidden[rows, : head.weight.shape[1]]).to(out.dtype)
        return out

    @torch.no_grad()
    def project(
        self, hidden: Float[Tensor, "R H"], buffer: Float[Tensor, "R W"]
    ) -> Float[Tensor, "R V"]:
        """The logits of each row in the first columns of a buffer.

        Scale and softcap of its head are applied already, so `product_to_logits` changes nothing.
        """
        out = buffer[:, : len(self.weight)]
        for head, rows in self.rows_by_head(hidden):
            own = buffer.new_empty(len(rows), buffer.shape[1], dtype=head.logits_dtype)
            product = head.project(hidden[rows, : head.weight.shape[1]], own)
            out[rows] = head.product_to_logits(product).to(out.dtype)
        return out

    def rows_by_head(self, hidden: Float[Tensor, "R H"]) -> list[tuple[Head, Tensor]]:
        """The heads that have a row, and the indices of their rows."""
        number = hidden[:, -1]
        rows = [torch.nonzero(number == index)[:, 0] for index in range(len(self.heads))]
        return [(head, own) for head, own in zip(self.heads, rows, strict=True) if len(own)]

    def detached(self) -> "MixedHead":
        """The same heads without gradient."""
        heads = tuple(head.detached() for head in self.heads)
        return replace(self, weight=heads[0].weight, heads=heads)


def mix_heads(parts: Sequence[tuple[Tensor, Head]]) -> tuple[Tensor, MixedHead]:
    """Rows of several models one after another, and their heads as one.

    Args:
        parts: hidden states [r, h] of each model, and its head.

    Returns:
        The states of all rows [R, largest h + 1], and the head.

    The number of a head is exact in any floating-point format up to 256 heads.
    """
    assert len(parts) <= 256, "the number of a head is a small whole number"
    width = max(hidden.shape[1] for hidden, _ in parts) + 1
    dtype = parts[0][0].dtype
    for hidden, _ in parts[1:]:
        dtype = torch.promote_types(dtype, hidden.dtype)
    padded = []
    for number, (hidden, _) in enumerate(parts):
        wide = F.pad(hidden.to(dtype), (0, width - hidden.shape[1]))
        wide[:, -1] = number
        padded.append(wide)
    heads = tuple(head for _, head in parts)
    first = heads[0]
    return torch.cat(padded), MixedHead(first.weight, kernels=first.kernels, heads=heads)

"""One token a row through the Qwen3-VL decoder with few, large operations: what writing responses spends its time on.

The same mathematics as `packed_states`, laid out for rows of one token: queries, keys and values come from one product,
gate and up from another, norm weights stand inside the products' weights, rotary angles are looked up in a table. A
tiny model writes 1.5 times as fast; a large one keeps its weights where they are. The self-test at load compares both.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistill.models.decode_attention import DecodeAttention

#: Weights of the decoder layers that may be copied into fused ones, in entries (64 MiB of float32).
FUSED_ENTRIES = 1 << 24
#: Positions in the first table of rotary angles; it doubles when they are used up.
TABLE = 512


def fits(decoder: nn.Module) -> bool:
    """Whether the layers are the plain float32 ones this file is written for, and small enough to copy."""
    parts = [m for layer in decoder.layers for m in layer.modules()]  # pyright: ignore[reportGeneralTypeIssues]
    maps = [m for m in parts if isinstance(m, nn.Linear)]
    known = {
        "Linear",
        "Qwen3VLTextRMSNorm",
        "Qwen3VLTextAttention",
        "Qwen3VLTextMLP",
        "Qwen3VLTextDecoderLayer",
    }
    plain = all(type(m).__name__ in known or not list(m.parameters()) for m in parts)
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in parts)
    float32 = all(m.weight.dtype == torch.float32 and m.bias is None for m in maps)
    return plain and float32 and not hooked and sum(m.weight.numel() for m in maps) <= FUSED_ENTRIES


class FusedLayer:
    """Weights of one decoder layer, laid out for `step`."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.heads, self.width = (
            attention.q_proj.out_features // attention.head_dim,
            attention.head_dim,
        )
        self.kv_heads = attention.k_proj.out_features // self.width
        before, between = layer.input_layernorm, layer.post_attention_layernorm
        self.eps = before.variance_epsilon
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv = (torch.cat([m.weight for m in projections]) * before.weight).T.contiguous()
        self.gate_up = (
            torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * between.weight
        ).T.contiguous()
        self.out, self.down = (
            attention.o_proj.weight.T.contiguous(),
            mlp.down_proj.weight.T.contiguous(),
        )
        queries = (attention.q_norm.weight * attention.scaling).expand(self.heads, -1)
        self.qk_norm = torch.cat([queries, attention.k_norm.weight.expand(self.kv_heads, -1)])
        self.act = mlp.act_fn

    def step(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, index: int, attend: DecodeAttention
    ) -> Tensor:
        """Hidden states [N, H] after the layer."""
        made = (torch.mm(hidden, self.qkv) * inverse_norm(hidden, self.eps)).unflatten(
            -1, (-1, self.width)
        )
        turning = made[:, : self.heads + self.kv_heads]
        turning = turning * inverse_norm(turning, self.eps) * self.qk_norm
        turning = torch.addcmul(turning * cos, turning.roll(self.width // 2, -1), sin)
        query, key = turning[:, : self.heads], turning[:, self.heads :]
        seen = attend.rows(index, query, key, made[:, self.heads + self.kv_heads :])
        hidden = torch.addmm(hidden, seen, self.out)
        gate, up = (torch.mm(hidden, self.gate_up) * inverse_norm(hidden, self.eps)).chunk(2, -1)
        return torch.addmm(hidden, self.act(gate) * up, self.down)


def inverse_norm(x: Tensor, eps: float) -> Tensor:
    """`1 / sqrt(mean(x^2) + eps)` over the last axis."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(norm.new_full((), eps), norm, norm, value=1 / x.shape[-1]).rsqrt_()


class FusedDecoder:
    """All layers, from token ids to the states the head reads."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        with torch.no_grad():
            self.layers = [FusedLayer(layer) for layer in decoder.layers]
        self.table: tuple[Tensor, Tensor] | None = None

    def __call__(self, ids: Tensor, positions: Tensor, attend: DecodeAttention) -> Tensor:
        """Hidden states [N, H] of one token a row at positions [axes, N]."""
        hidden = self.decoder.embed_tokens(ids)
        cos, sin = self.angles(hidden, positions)
        for index, layer in enumerate(self.layers):
            hidden = layer.step(hidden, cos, sin, index, attend)
        norm = self.decoder.norm
        return F.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon)

    def angles(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine, [N, 1, d]: from a table where all axes are the same position, as in all responses."""
        if (
            positions.stride(0) != 0
        ):  # not one row expanded over the axes: the last token of a prompt
            return self.turned(hidden, positions)
        last = int(positions[0].max())
        if self.table is None or len(self.table[0]) <= last:
            size = TABLE
            while size <= last:
                size *= 2
            self.table = self.turned(hidden, torch.arange(size).expand(len(positions), -1))
        place = positions[0].to(hidden.device)
        return self.table[0].index_select(0, place), self.table[1].index_select(0, place)

    def turned(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The model's own angles; `rotate_half` is a roll whose first half changes sign."""
        cos, sin = self.decoder.rotary_emb(hidden, positions[:, None].to(hidden.device))
        half = sin.shape[-1] // 2
        return cos[0][:, None], torch.cat([-sin[0][:, :half], sin[0][:, half:]], -1)[:, None]

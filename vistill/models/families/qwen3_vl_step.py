"""One token per row through the Qwen3-VL decoder, in few and large operations.

Rollouts spend most of their time here. The mathematics is that of `packed_states`, arranged for
rows of one token: one product gives queries, keys and values, another gives gate and up, the norm
weights are multiplied into the weights of these products, and rotary angles come from a table.
A tiny model generates 1.5 times as fast. A large model uses its own layers, because the fused
weights are copies. The self-test at load compares both.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistill.models.adapters import is_adapted_layer
from vistill.models.decode_attention import DecodeAttention

#: Largest number of decoder weights that are copied into fused ones (64 MiB of float32).
FUSED_ENTRIES = 1 << 24
#: Positions in the first table of rotary angles. It doubles when a position is beyond its end.
TABLE_POSITIONS = 512


def can_fuse(decoder: nn.Module) -> bool:
    """Whether the layers are the float32 layers that this file supports, small enough to copy."""
    modules = [m for layer in decoder.layers for m in layer.modules()]  # pyright: ignore[reportGeneralTypeIssues]
    linear = [m for m in modules if isinstance(m, nn.Linear)]
    supported = {
        "Linear",
        "Qwen3VLTextRMSNorm",
        "Qwen3VLTextAttention",
        "Qwen3VLTextMLP",
        "Qwen3VLTextDecoderLayer",
    }
    is_supported = all(type(m).__name__ in supported or not list(m.parameters()) for m in modules)
    has_hooks = any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    has_adapters = any(map(is_adapted_layer, modules))  # they would be left out
    is_float32 = all(m.weight.dtype == torch.float32 and m.bias is None for m in linear)
    is_small = sum(m.weight.numel() for m in linear) <= FUSED_ENTRIES
    return is_supported and is_float32 and not (has_hooks or has_adapters) and is_small


class FusedLayer:
    """Weights of one decoder layer, arranged for `step`."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.heads, self.width = (
            attention.q_proj.out_features // attention.head_dim,
            attention.head_dim,
        )
        self.kv_heads = attention.k_proj.out_features // self.width
        attention_norm, mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.eps = attention_norm.weight.new_full((), attention_norm.variance_epsilon)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv = (
            torch.cat([m.weight for m in projections]) * attention_norm.weight
        ).T.contiguous()
        self.gate_up = (
            torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * mlp_norm.weight
        ).T.contiguous()
        self.out, self.down = (
            attention.o_proj.weight.T.contiguous(),
            mlp.down_proj.weight.T.contiguous(),
        )
        queries = (attention.q_norm.weight * attention.scaling).expand(self.heads, -1)
        self.qk_norm = torch.cat([queries, attention.k_norm.weight.expand(self.kv_heads, -1)])
        self.act = mlp.act_fn

    def step(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, index: int, attention: DecodeAttention
    ) -> Tensor:
        """Hidden states [N, H] after the layer."""
        qkv = torch.mm(hidden * inverse_norm(hidden, self.eps), self.qkv)
        qkv = qkv.unflatten(-1, (-1, self.width))
        num_qk = self.heads + self.kv_heads
        qk, value = qkv[:, :num_qk], qkv[:, num_qk:]
        qk = qk * inverse_norm(qk, self.eps) * self.qk_norm
        qk = torch.addcmul(qk * cos, qk.roll(self.width // 2, -1), sin)
        query, key = qk[:, : self.heads], qk[:, self.heads :]
        hidden = torch.addmm(hidden, attention.rows(index, query, key, value), self.out)
        gate, up = torch.mm(hidden * inverse_norm(hidden, self.eps), self.gate_up).chunk(2, -1)
        return torch.addmm(hidden, self.act(gate) * up, self.down)


def inverse_norm(x: Tensor, eps: Tensor) -> Tensor:
    """`1 / sqrt(mean(x^2) + eps)` over the last axis."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()


class FusedDecoder:
    """All layers, from token ids to the hidden states that the head reads."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        with torch.no_grad():
            self.layers = [FusedLayer(layer) for layer in decoder.layers]
        self.table: tuple[Tensor, Tensor] | None = None

    def __call__(self, ids: Tensor, positions: Tensor, attention: DecodeAttention) -> Tensor:
        """Hidden states [N, H] of one token per row, at positions [axes, N]."""
        hidden = self.decoder.embed_tokens(ids)
        cos, sin = self.angles(hidden, positions, attention.last_position)
        for index, layer in enumerate(self.layers):
            hidden = layer.step(hidden, cos, sin, index, attention)
        norm = self.decoder.norm
        return F.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon)

    def angles(self, hidden: Tensor, positions: Tensor, last: int) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine, [N, 1, d].

        In a response all axes have the same position, so the values come from a table. The last
        token of a prompt can have different positions on its axes.

        Args:
            hidden: states, for their type and device.
            positions: of the tokens, [axes, N].
            last: the largest position.
        """
        is_expanded = positions.stride(0) == 0  # one row of positions for all axes
        if not is_expanded:
            return self.compute_angles(hidden, positions)
        if self.table is None or len(self.table[0]) <= last:
            size = TABLE_POSITIONS
            while size <= last:
                size *= 2
            self.table = self.compute_angles(hidden, torch.arange(size).expand(len(positions), -1))
        index = positions[0].to(hidden.device)
        return self.table[0].index_select(0, index), self.table[1].index_select(0, index)

    def compute_angles(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The model's own angles. `rotate_half` is a roll whose first half changes sign."""
        cos, sin = self.decoder.rotary_emb(hidden, positions[:, None].to(hidden.device))
        half = sin.shape[-1] // 2
        return cos[0][:, None], torch.cat([-sin[0][:, :half], sin[0][:, half:]], -1)[:, None]

"""Decoder layers of transformers: run one up to its attention, add to hidden states, which attention it has."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vistill.models.sharing import Attention


def with_added(hidden: Tensor, seen: Tensor, level: Tensor) -> Tensor:
    """Hidden states with something added at the image tokens."""
    hidden = hidden.clone()
    hidden[seen] = hidden[seen] + level.to(hidden.dtype)
    return hidden


def keys_only(layer: Any, hidden: Tensor, attend: Attention, options: Mapping[str, Any]) -> None:
    """Run a decoder layer up to its attention, which keeps keys and values.

    The layer is called, so that its hooks fire (FSDP gathers its weights there), and the keys and
    values are its output, so that hooks on the output see where gradient comes back.
    """

    def forward(hidden: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        layer.self_attn(layer.input_layernorm(hidden), attention_mask=None, **options)
        assert attend.kept is not None
        return attend.kept.keys[attend.last_layer], attend.kept.values[attend.last_layer]

    own = layer.__dict__.get("forward")
    layer.forward = forward
    try:
        nn.Module.__call__(layer, hidden, attend=attend.__call__, **options)
    finally:
        if own is None:
            del layer.forward
        else:
            layer.forward = own


def plainly_causal(config: Any) -> bool:
    """Whether every layer of a decoder attends to all earlier tokens and nothing else."""
    kinds = getattr(config, "layer_types", None)
    windowed = (
        any(kind != "full_attention" for kind in kinds)
        if kinds
        else getattr(config, "sliding_window", None) is not None
        and getattr(config, "use_sliding_window", True)
    )
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return not (windowed or capped or getattr(config, "use_bidirectional_attention", None))

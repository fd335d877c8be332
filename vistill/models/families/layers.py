"""Helpers for modules of transformers: decoder layers, their attention, and signatures.

`check_signature` guards against arguments that a function would accept and ignore.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import __version__ as transformers_version

from vistill.errors import ModelError
from vistill.models.checkpointing import checkpoints, run_layer
from vistill.models.sharing import Attention

#: Modules inside a vision tower that give its states the size of the decoder (Qwen, GLM).
PROJECTORS = ("merger", "deepstack_merger_list", "downsample")


def add_at_image_tokens(hidden: Tensor, is_image: Tensor, level: Tensor) -> Tensor:
    """Hidden states plus `level` [I, H] at the image tokens, which `is_image` marks."""
    hidden = hidden.clone()
    hidden[is_image] = hidden[is_image] + level.to(hidden.dtype)
    return hidden


def run_to_attention(
    layer: Any, hidden: Tensor, attention: Attention, options: Mapping[str, Any]
) -> None:
    """Run a decoder layer up to its attention, which stores keys and values.

    The layer module is called, so its hooks run (FSDP gathers its weights in one). The keys and
    values are its output, so hooks on the output see the gradient come back.
    """

    def attend(hidden: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        layer.self_attn(layer.input_layernorm(hidden), attention_mask=None, **options)
        cache, last = attention.new_cache, attention.last_layer
        assert cache is not None
        return cache.keys[last], cache.values[last]

    def forward(hidden: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        if checkpoints(layer) and layer.training:
            return run_layer(layer, partial(attend, **options), hidden)
        return attend(hidden, **options)

    # Written to __dict__: the compiler fails where an attribute is set and deleted.
    own = {name: layer.__dict__[name] for name in ("forward",) if name in layer.__dict__}
    layer.__dict__["forward"] = forward
    try:
        nn.Module.__call__(layer, hidden, attend=attention.__call__, **options)
    finally:
        del layer.__dict__["forward"]
        layer.__dict__.update(own)


def is_fully_causal(config: Any) -> bool:
    """Whether every layer of a decoder attends to all earlier tokens and to nothing else."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        has_window = any(kind != "full_attention" for kind in layer_types)
    else:
        has_window = getattr(config, "sliding_window", None) is not None and getattr(
            config, "use_sliding_window", True
        )
    has_softcap = getattr(config, "attn_logit_softcapping", None) is not None
    is_bidirectional = getattr(config, "use_bidirectional_attention", None)
    return not (has_window or has_softcap or is_bidirectional)


def check_signature(function: Callable[..., Any], names: Iterable[str]) -> None:
    """Raise M110 if a function does not name an argument. `**kwargs` would ignore it silently."""
    parameters = inspect.signature(function).parameters
    missing = [name for name in names if name not in parameters]
    if missing:
        where = getattr(function, "__qualname__", str(function))
        raise ModelError(
            "M110",
            f"{where} of transformers {transformers_version} has no argument {missing[0]!r}",
            where=where,
            why="it would accept and ignore the argument, and the model would not see its images",
            fix="pip install 'transformers>=5.19'",
        )


def check_number(num_states: int, num_tokens: int) -> None:
    """Raise ValueError if the vision tower does not give one state per image token."""
    if num_states != num_tokens:
        raise ValueError(
            f"the vision tower gives {num_states} states for {num_tokens} image tokens"
        )


def base_model(model: Any) -> Any:
    """The model below the head."""
    return getattr(model, model.base_model_prefix)


def weights_except(module: nn.Module, *left_out: Any) -> list[nn.Module | nn.Parameter]:
    """The children of a module and its own weights, without some children."""
    children = [child for child in module.children() if all(child is not m for m in left_out)]
    return [*children, *module.parameters(recurse=False)]


def tower_weights(base: Any) -> list[nn.Module | nn.Parameter]:
    """The weights of a base model's vision tower, without those that project to the decoder."""
    tower = base.get_encoder(modality="image")
    if tower is base:
        return []
    return weights_except(tower, *(getattr(tower, name, None) for name in PROJECTORS))

"""Gradient checkpointing: a layer keeps its input only, and is computed again in the backward pass.

transformers' layers say themselves whether they checkpoint (`GradientCheckpointingLayer`): decoder
layers and the blocks of vision towers. A layer does so while its model is in training mode and
something in it or before it is trained. The gradient is the same to the bit.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from vistill.errors import ConfigError

Observer = Callable[[Callable[[], Any], list[Tensor]], None]
"""Called for each layer that is read, with a function that computes it again, and the tensors that
the layer gets."""

_observers: list[Observer] = []


def checkpointing_problem(vlm: Any) -> str | None:
    """Why the layers of a model cannot be computed again, or None if they can."""
    model, layers = vlm.model, list(vlm.family.decoder(vlm.model).layers)
    if not getattr(model, "supports_gradient_checkpointing", False):
        return f"{type(model).__name__} of transformers does not support it"
    if not all(isinstance(layer, GradientCheckpointingLayer) for layer in layers):
        return f"{type(layers[0]).__name__} of transformers keeps its activations"
    return None


def can_checkpoint(vlm: Any) -> bool:
    """Whether the layers of a model can be computed again in the backward pass."""
    return checkpointing_problem(vlm) is None


def set_checkpointing(vlm: Any, is_enabled: bool) -> None:
    """Turn gradient checkpointing of a model on or off.

    Raises:
        ConfigError: C112, the model cannot.
    """
    problem = checkpointing_problem(vlm) if is_enabled else None
    if problem is not None:
        raise checkpointing_error(vlm.family.describe(), vlm.source, problem)
    for layer in vlm.model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.gradient_checkpointing = is_enabled
            run: Any = partial(run_layer, layer)
            layer._gradient_checkpointing_func = run


def checkpointing_error(family: str, source: str, why: str) -> ConfigError:
    """C112."""
    return ConfigError(
        "C112",
        f"the activations of {family} cannot be computed again",
        where=source,
        why=why,
        fix="train.gradient_checkpointing=false",
    )


def is_checkpointing(model: nn.Module) -> bool:
    """Whether a layer of the model is computed again in the backward pass."""
    return any(map(checkpoints, model.modules()))


def checkpoints(layer: nn.Module) -> bool:
    """Whether a layer is computed again in the backward pass, in training mode."""
    return isinstance(layer, GradientCheckpointingLayer) and bool(layer.gradient_checkpointing)


def run_layer(layer: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
    """The result of a layer, whose activations are not kept if it has any for the backward pass.

    Args:
        layer: whose weights the function uses.
        function: computes the layer.
        *inputs: of the function.
    """
    options: dict[str, Any] = getattr(function, "keywords", {})
    prompt_cache = getattr(getattr(options.get("attend"), "__self__", None), "prompt_cache", None)
    keys = prompt_cache.tensors() if prompt_cache is not None else []
    tensors = [*tensors_in([*inputs, *options.values()]), *layer.parameters(), *keys]
    if not is_grad_enabled() or not any(x.requires_grad for x in tensors):
        return function(*inputs)
    result = checkpoint(function, *inputs, use_reentrant=False)
    for observe in _observers:
        observe(lambda: function(*inputs), tensors_in([*inputs, *options.values()]))
    return result


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among some values and in tuples of them."""
    flat = [x for value in values for x in (value if isinstance(value, tuple) else (value,))]
    return [x for x in flat if isinstance(x, Tensor)]


@contextmanager
def observing_layers(observe: Observer) -> Iterator[None]:
    """Inside, every layer that checkpoints is given to the observer after it was read."""
    _observers.append(observe)
    try:
        yield
    finally:
        _observers.remove(observe)

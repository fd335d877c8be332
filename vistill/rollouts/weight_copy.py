"""A copy of a model in bf16, with which the engine writes.

Decoding reads every weight once per token, so its time follows the bytes of the weights and of the
cache. The copy also has no autocast to pay for, and adapters are merged into it.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vistill.errors import ConfigError
from vistill.models.adapters import has_adapters, is_adapted_layer, merged_weight
from vistill.models.loading import VLM
from vistill.models.packed import is_unmodified
from vistill.models.quantization import is_quantized


@dataclass
class CopiedWeight:
    """A weight of the copy, and what it is computed from."""

    target: nn.Parameter
    sources: tuple[Tensor, ...]
    value: Callable[[], Tensor]
    """The present value, in any precision."""
    shape: torch.Size
    state: tuple[tuple[int, int], ...] = ()
    """Address and version of each source when the weight was copied."""

    def refresh(self) -> bool:
        """Copy the value if a source is trained or has changed. Say whether it was copied.

        A write through `.data` does not change the version, so trained weights are always copied.
        """
        state = tuple((x.data_ptr(), x._version) for x in self.sources)
        is_trained = any(x.requires_grad for x in self.sources)
        if self.target.numel() and state == self.state and not is_trained:
            return False
        if not self.target.numel():
            self.target.data = self.target.new_empty(self.shape)
        self.target.data.copy_(self.value())
        self.state = state
        return True


class WeightCopy:
    """A model in bf16 that follows another one. Frozen weights that are bf16 already are shared."""

    def __init__(self, vlm: VLM) -> None:
        reason = why_not_copied(vlm)
        assert reason is None, reason
        self.weights: list[CopiedWeight] = []
        with torch.no_grad():
            model = self.copy_model(vlm.model)
        self.vlm = replace(vlm, model=model, packed=None).freeze()

    def copy_model(self, model: Any) -> Any:
        """The model's modules with weights of their own, and without adapters."""
        memo: dict[int, object] = {}
        layers: list[Any] = [m for m in model.modules() if is_adapted_layer(m)]
        for layer in layers:
            base = layer.get_base_layer().weight
            memo[id(base)] = self.add(base, partial(merged_weight, layer), layer)
            memo |= {id(p): None for n, p in layer.named_parameters() if ".lora_" in f".{n}"}
        for parameter in model.parameters():
            if id(parameter) in memo:
                continue
            is_shared = parameter.dtype == torch.bfloat16 and not parameter.requires_grad
            memo[id(parameter)] = parameter if is_shared else self.add(parameter)
        copied = copy.deepcopy(model, memo)
        wrapped: list[tuple[str, Any]] = list(copied.named_modules())
        for name, module in wrapped:
            if is_adapted_layer(module):
                parent, _, child = name.rpartition(".")
                setattr(copied.get_submodule(parent), child, module.get_base_layer())
        if has_adapters(copied):
            del copied.peft_config
        return copied

    def add(
        self,
        source: nn.Parameter,
        value: Callable[[], Tensor] | None = None,
        layer: nn.Module | None = None,
    ) -> nn.Parameter:
        """A weight of the copy for one of the model; `layer` has adapters to be merged into it."""
        empty = torch.empty(0, dtype=torch.bfloat16, device=source.device)
        target = nn.Parameter(empty, requires_grad=False)
        sources = (source,) if layer is None else tuple(layer.parameters())
        get = source.detach if value is None else value
        self.weights.append(CopiedWeight(target, sources, get, source.shape))
        return target

    @torch.no_grad()
    def refresh(self) -> int:
        """Copy what has changed. Return how many weights were copied."""
        return sum(weight.refresh() for weight in self.weights)

    def free(self) -> None:
        """Free the memory of the copied weights. `refresh` brings them back."""
        for weight in self.weights:
            weight.target.data = weight.target.new_empty(0)

    @property
    def num_bytes(self) -> int:
        """Bytes that the copy holds beyond the model itself."""
        return sum(weight.target.nbytes for weight in self.weights)


def why_not_copied(vlm: VLM) -> str | None:
    """Why a model cannot be copied to bf16, or None if it can."""
    if is_quantized(vlm.model):
        return "its quantised weights cannot be merged with adapters"
    if vlm.packed is None or not is_unmodified(vlm.packed) or vlm.offload is not None:
        return "its weights are sharded, compiled or in host memory"
    return None


def writes_with_copy(vlm: VLM, setting: str) -> bool:
    """Whether an engine writes with a copy of the model (`rollout.weights`).

    Raises:
        ConfigError: C101, a copy is requested and impossible.
    """
    weights = [p for p in vlm.model.parameters() if p.is_floating_point()]
    is_half_already = all(p.dtype == torch.bfloat16 for p in weights)
    is_wanted = vlm.device.type == "cuda" and vlm.step_dtype is torch.bfloat16
    if setting == "own" or is_half_already or (setting == "auto" and not is_wanted):
        return False
    reason = why_not_copied(vlm)
    if reason is None:
        return True
    if setting == "auto":
        return False
    raise ConfigError(
        "C101",
        f"rollout.weights = bf16, but {vlm.source} cannot be copied to bf16",
        why=reason,
        fix="rollout.weights=auto",
    )

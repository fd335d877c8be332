"""Weights on their way to vLLM: their bytes, their digest, and what must be true of an update.

Both sides import this file. Nothing is overwritten before every check passed.
"""

from collections.abc import Mapping
from typing import TypeAlias

import torch
import xxhash
from torch import Tensor

#: Precision and shape of every weight of a model, by its name.
WeightSpec: TypeAlias = "dict[str, tuple[str, tuple[int, ...]]]"
#: Precisions in which weights are sent.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: Bytes for activations and captured graphs of vLLM on a GPU. An estimate, never measured.
MARGIN = 2 << 30


def spec_of(weights: Mapping[str, Tensor]) -> WeightSpec:
    """Precision and shape of each weight."""
    return {
        name: (str(x.dtype).removeprefix("torch."), tuple(x.shape)) for name, x in weights.items()
    }


def update_problem(weights: Mapping[str, Tensor], spec: WeightSpec) -> str | None:
    """Why weights cannot replace those of a model, or None: names, shapes, precision, numbers."""
    missing, unknown = sorted(spec.keys() - weights.keys()), sorted(weights.keys() - spec.keys())
    if missing:
        return f"{missing[0]} is missing ({len(missing)} of {len(spec)} weights)"
    if unknown:
        return f"the model has no weight {unknown[0]} ({len(unknown)} unknown in all)"
    given = spec_of(weights)
    for name, (dtype, shape) in spec.items():
        if given[name] != (dtype, shape):
            return f"{name} is {given[name][0]} {list(given[name][1])}, not {dtype} {list(shape)}"
    broken = [name for name, x in weights.items() if not is_finite(x)]
    return f"{broken[0]} is not finite ({len(broken)} weights)" if broken else None


def is_finite(tensor: Tensor) -> bool:
    """Whether every number is finite: the extremes carry NaN. `isfinite` takes 16 times as long."""
    return tensor.numel() == 0 or all(bool(x.isfinite()) for x in tensor.aminmax())


def memory_share(weights: int, cache: int, total: int) -> float:
    """(weights + cache + margin) / total, at most 1: the share of a card that vLLM asks for.

    vLLM refuses to start unless so much is free; its own default is 0.92 of the card, but the
    student and the teacher are there already.

    Args:
        weights: bytes of the model's weights.
        cache: bytes for keys and values.
        total: bytes of the card.
    """
    return min(1.0, (weights + cache + MARGIN) / total)


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor of the CPU."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes and bytes, by which two sides agree on what they hold."""
    digest = xxhash.xxh3_128()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()

"""Weights on their way to vLLM: their bytes, their digest, and what must be true of an update.

Both sides import this file. Nothing is overwritten before every check passed.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
import xxhash
from torch import Tensor

#: Precision and shape of every weight of a model, by its name.
WeightSpec: TypeAlias = "dict[str, tuple[str, tuple[int, ...]]]"
#: Precisions in which weights are sent.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
    broken = [name for name, x in weights.items() if not bool(x.isfinite().all())]
    return f"{broken[0]} is not finite ({len(broken)} weights)" if broken else None


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor of the CPU."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def read_tensors(
    described: Iterable[Sequence[object]], blocks: Sequence[bytearray]
) -> dict[str, Tensor]:
    """Weights from their bytes (ValueError if they do not fit)."""
    weights = {}
    for (name, dtype, shape), block in zip(described, blocks, strict=True):
        flat = torch.frombuffer(block, dtype=DTYPES[str(dtype)])
        weights[str(name)] = flat.reshape(shape)  # pyright: ignore[reportArgumentType,reportCallIssue]
    return weights


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes and bytes, by which two sides agree on what they hold."""
    digest = xxhash.xxh3_128()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()

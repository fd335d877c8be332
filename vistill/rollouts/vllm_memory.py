"""Memory that a run and its vLLM process both see, for weights: they are written once, into it.

It has no name and no file, so it is gone when neither process uses it, also after a crash. Both
sides import this file. Linux only, as vLLM is.
"""

import math
import mmap
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Self

import torch
from torch import Tensor

from vistill.rollouts.vllm_messages import Received
from vistill.rollouts.vllm_update import DTYPES, WeightSpec, spec_of

#: Each weight starts at a multiple of so many bytes.
ALIGNMENT = 64


class SharedBlock(AbstractContextManager["SharedBlock"]):
    """A block of memory, and the file descriptor by which another process gets it.

    Closing it closes the descriptor. The memory stays while something uses it.
    """

    def __init__(self, size: int) -> None:
        self.descriptor = os.memfd_create("vistill-weights")
        try:
            os.ftruncate(self.descriptor, max(size, 1))
            self.memory = mmap.mmap(self.descriptor, max(size, 1))
        except BaseException:
            os.close(self.descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)


def places_of(spec: WeightSpec) -> tuple[dict[str, tuple[int, int]], int]:
    """First byte and number of bytes of each weight in a block, and the bytes of the block."""
    places, start = {}, 0
    for name, (dtype, shape) in spec.items():
        size = DTYPES[dtype].itemsize * math.prod(shape)
        places[name] = (start, size)
        start += math.ceil(size / ALIGNMENT) * ALIGNMENT
    return places, start


def tensors_in(memory: Received, spec: WeightSpec) -> dict[str, Tensor]:
    """The weights in a block; they share its memory (ValueError if it has another size)."""
    places, size = places_of(spec)
    if len(memory) != max(size, 1):
        raise ValueError(f"a block of {len(memory):,} bytes for weights of {size:,}")
    flat = torch.frombuffer(memory, dtype=torch.uint8)
    return {
        name: flat[start : start + size].view(DTYPES[dtype]).reshape(shape)
        for (name, (dtype, shape)), (start, size) in zip(spec.items(), places.values(), strict=True)
    }


@torch.no_grad()
def share(
    weights: Mapping[str, Tensor], dtype: str | None = None
) -> tuple[SharedBlock, dict[str, Tensor]]:
    """Copy weights from any device into a new block, in another precision if one is given."""
    spec = {name: (dtype or kind, shape) for name, (kind, shape) in spec_of(weights).items()}
    block = SharedBlock(places_of(spec)[1])
    try:
        shared = tensors_in(block.memory, spec)
        for name, target in shared.items():
            target.copy_(weights[name])
    except BaseException:
        block.close()
        raise
    return block, shared

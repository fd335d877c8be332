"""Running sums whose additions have a fixed order on every device."""

import torch
from jaxtyping import Float
from torch import Tensor

#: Devices on which a deterministic run adds by doubling.
DOUBLING = {"cuda"}


def running_sum(x: Float[Tensor, "*rows N"]) -> Float[Tensor, "*rows N"]:
    """The cumulative sum over the last axis.

    torch has no deterministic kernel for it on a CUDA device. In a deterministic run there the sum
    is computed by doubling.
    """
    if x.device.type in DOUBLING and torch.are_deterministic_algorithms_enabled():
        return sum_by_doubling(x)
    return x.cumsum(-1)


def sum_by_doubling(x: Float[Tensor, "*rows N"]) -> Float[Tensor, "*rows N"]:
    """The cumulative sum in log2(N) additions of shifted rows (Hillis and Steele 1986)."""
    shift = 1
    while shift < x.shape[-1]:
        x = torch.cat([x[..., :shift], x[..., shift:] + x[..., :-shift]], -1)
        shift *= 2
    return x

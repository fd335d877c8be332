"""Torch's attention on a CUDA device: without cuDNN.

On an H100 torch prefers cuDNN's kernels. They build a plan for every new shape, which takes about a
second, and the lengths of rollouts change from step to step. Their masked gradients do not repeat
bitwise. The other kernels need neither: flash attention takes calls without a mask,
memory-efficient attention takes calls with one if keys and queries have equally many heads.

On a CPU nothing here changes a call.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

#: Whether torch may choose cuDNN's kernels on a CUDA device. True: every call is torch's own
#: choice, with grouped heads.
ALLOW_CUDNN = False
#: Memory-efficient attention reads rows of a mask that start at multiples of this many entries. It
#: copies any other mask, in every layer.
MASK_MULTIPLE = 8


class Exclusion:
    """How many calls exclude cuDNN's kernels now. The switch is one for all threads."""

    lock = threading.Lock()
    calls = 0
    was_enabled = True


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """Attention [N, heads, L, d]; causal if there is no mask. Keys can have fewer heads.

    Args:
        query: [N, heads, L, d].
        key: [N, groups, S, d], where groups divides heads.
        value: as key.
        mask: 0 or -inf, [N or 1, 1, L, S].
        scaling: factor of the scores; None means `d ** -0.5`.
    """
    if mask is not None and avoids_cudnn(query):
        key, value = (repeat_heads(x, query.shape[1]) for x in (key, value))
    with kernels_for(query):
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            mask,
            scale=scaling,
            is_causal=mask is None,
            enable_gqa=query.shape[1] != key.shape[1],
        )


def attention_dtype(query: Tensor) -> torch.dtype:
    """The precision of an attention call. Autocast casts its inputs, a mask among them."""
    device = query.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return query.dtype


def avoids_cudnn(x: Tensor) -> bool:
    """Whether cuDNN's kernels are excluded for a tensor."""
    return x.is_cuda and not ALLOW_CUDNN


@contextmanager
def kernels_for(query: Tensor) -> Iterator[None]:
    """Exclude cuDNN's kernels inside the block, for a tensor on a CUDA device."""
    if not avoids_cudnn(query) or torch.compiler.is_compiling():
        yield
        return
    with Exclusion.lock:
        if Exclusion.calls == 0:
            Exclusion.was_enabled = torch.backends.cuda.cudnn_sdp_enabled()
            torch.backends.cuda.enable_cudnn_sdp(False)
        Exclusion.calls += 1
    try:
        yield
    finally:
        with Exclusion.lock:
            Exclusion.calls -= 1
            if Exclusion.calls == 0:
                torch.backends.cuda.enable_cudnn_sdp(Exclusion.was_enabled)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """[N, groups, S, d] to [N, heads, S, d]: each entry serves `heads / groups` queries."""
    times = heads // x.shape[1]
    return x if times == 1 else x.repeat_interleave(times, 1, output_size=heads)


def aligned_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask in a precision. On a CUDA device its rows start at multiples of `MASK_MULTIPLE`."""
    return with_aligned_rows(mask.to(dtype)) if avoids_cudnn(mask) else mask.to(dtype)


def with_aligned_rows(mask: Tensor) -> Tensor:
    """The same values, in rows that start at multiples of `MASK_MULTIPLE` entries."""
    length = mask.shape[-1]
    return F.pad(mask, (0, -length % MASK_MULTIPLE))[..., :length]

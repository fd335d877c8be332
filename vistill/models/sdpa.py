"""Torch's attention on a CUDA device: without cuDNN, and with gradients that repeat bitwise.

On an H100 torch prefers cuDNN's kernels. They build a plan for every new shape, which takes about a
second, and the lengths of rollouts change from step to step. Their masked gradients do not repeat
bitwise. The other kernels need neither: flash attention takes calls without a mask,
memory-efficient attention takes calls with one if keys and queries have equally many heads.

On a CPU nothing here changes a call.
"""

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
#: Steps from an output of attention to its node in the autograd graph: transpose, reshape, ...
MAX_GRAPH_STEPS = 6


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
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            mask,
            scale=scaling,
            is_causal=mask is None,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    return with_repeatable_gradient(out)


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
    restore_mode()
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


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


# Gradients that repeat bitwise


class _Mode:
    """Whether the backward pass of an attention call has changed torch's deterministic mode."""

    is_changed = False


def with_repeatable_gradient(out: Tensor) -> Tensor:
    """Make the backward pass of an attention output repeat bitwise in deterministic mode.

    Flash and memory-efficient attention have such a backward pass, but they only take it if the
    mode is an error mode. A run sets the mode that warns, because other operations have none. So
    the mode changes for the time of this one operation.
    """
    is_warning = (
        torch.are_deterministic_algorithms_enabled()
        and torch.is_deterministic_algorithms_warn_only_enabled()
    )
    if out.is_cuda and is_warning and not torch.compiler.is_compiling():
        node = attention_node(out)
        if node is not None:
            run_in_error_mode(node)
    return out


def attention_node(out: Tensor) -> torch.autograd.graph.Node | None:
    """The fused attention from which a tensor was reshaped, or None."""
    node = out.grad_fn
    for _ in range(MAX_GRAPH_STEPS):
        if node is None or "ScaledDotProduct" in node.name():
            return node
        node = node.next_functions[0][0] if node.next_functions else None
    return None


def run_in_error_mode(node: torch.autograd.graph.Node) -> None:
    """Run one node of the backward pass in the deterministic mode that raises errors."""

    def before(grad_outputs: tuple[Tensor, ...]) -> None:
        torch.use_deterministic_algorithms(True, warn_only=False)
        _Mode.is_changed = True

    def after(grad_inputs: tuple[Tensor, ...], grad_outputs: tuple[Tensor, ...]) -> None:
        restore_mode()

    node.register_prehook(before)
    node.register_hook(after)


def restore_mode() -> None:
    """Restore the mode that warns.

    A backward pass that fails (out of memory) does not come to its end, so that the next call of
    attention restores it.
    """
    if _Mode.is_changed:
        torch.use_deterministic_algorithms(True, warn_only=True)
        _Mode.is_changed = False

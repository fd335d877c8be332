"""Parts of vistill that the GPU benchmark measures alone, and settings that it forces both ways."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from vistill.functional import heads
from vistill.models import sdpa
from vistill.models.flex import plan_flex
from vistill.models.sharing import Segment
from vistill.rollouts.counter_noise import CounterSampler, uniform_at
from vistill.rollouts.keyed_noise import draw_gumbel, row_threads
from vistill.training.determinism import deterministic_kernels


def noise_of_rows(rows: int, vocabulary: int, device: torch.device) -> dict[str, Callable]:
    """Return functions that draw the noise of one token per row, and copy it to the device."""
    generators = [torch.Generator().manual_seed(row) for row in range(rows)]
    is_pinned = device.type == "cuda"

    def in_threads() -> torch.Tensor:
        return draw_gumbel(generators, 1, vocabulary, row_threads(), is_pinned)

    noise = in_threads()[0]
    counter = CounterSampler(range(rows), 1.0, 0.95, [], vocabulary)
    ids = torch.arange(rows * 256, device=device).view(rows, 256) % vocabulary
    return {
        "drawn_alone": partial(draw_gumbel, generators, 1, vocabulary),
        "drawn_in_threads": in_threads,
        "copied": lambda: noise.to(device, copy=True),
        "by_counter_on_a_nucleus_of_256": lambda: counter.gumbel(ids),
    }


def noise_difference(device: torch.device) -> float:
    """Largest difference between uniform numbers by counter on this device and on the CPU."""
    seeds, index = torch.arange(64) * 12345, torch.arange(4096)[None]
    here = uniform_at(seeds.to(device), index.to(device)).cpu()
    return float((here - uniform_at(seeds, index)).abs().max())


@contextmanager
def aligned_rows(device: torch.device, multiple: int) -> Iterator[None]:
    """Start rows of logits at multiples of this many entries inside the block."""
    before = dict(heads.ROW_MULTIPLE)
    heads.ROW_MULTIPLE[device.type] = multiple
    try:
        yield
    finally:
        heads.ROW_MULTIPLE.update(before)


@contextmanager
def cudnn_allowed(is_allowed: bool) -> Iterator[None]:
    """Let torch choose cuDNN's attention inside the block, or not."""
    before, sdpa.ALLOW_CUDNN = sdpa.ALLOW_CUDNN, is_allowed
    try:
        yield
    finally:
        sdpa.ALLOW_CUDNN = before


def deterministic_run(device):
    """Use the kernels of a run with `train.deterministic`, the default."""
    return deterministic_kernels(True, device)


def attend_without_cudnn(q, k, v, mask):
    """Attend as vistill does without cuDNN, whatever its default is."""
    with cudnn_allowed(False):
        mask = None if mask is None else sdpa.aligned_mask(mask, q.dtype)
        return sdpa.attend(q, k, v, mask, None)


def flex_attention_of(q, k, v) -> Callable[[], None]:
    """Return both passes of flex attention, for the same responses as one packed row."""
    rows, _, length, _ = q.shape
    prompt = k.shape[2] - length
    segments = [Segment(i * length, length, i * prompt, prompt) for i in range(rows)]
    attention = plan_flex(segments, rows * prompt, q.device)
    order = [x.transpose(0, 1) for x in (q, k, v)]

    def pack(x, start):
        return x[:, :, start:].flatten(1, 2)

    q = order[0].flatten(1, 2)[None].detach().requires_grad_()
    k, v = (
        torch.cat([x[:, :, :prompt].flatten(1, 2), pack(x, prompt)], 1)[None]
        .detach()
        .requires_grad_()
        for x in order[1:]
    )

    def run() -> None:
        out = attention.attend(q, k, v, None)
        torch.autograd.grad(out.float().sum(), (q, k, v))

    return run

"""Attention without cuDNN: masks, heads and the deterministic mode that a CUDA device gets."""

import pytest
import torch
from torch.nn import functional as F

from vistill.models import sdpa
from vistill.models.sharing import Segment, plan_attention


def inputs(heads=4, groups=2, queries=5, keys=11):
    g = torch.Generator().manual_seed(0)

    def draw(number, length):
        x = torch.randn(3, number, length, 8, generator=g, dtype=torch.float64)
        return x.requires_grad_()

    mask = torch.zeros(3, 1, queries, keys, dtype=torch.float64)
    mask = mask.masked_fill(torch.rand(mask.shape, generator=g) < 0.3, -torch.inf)
    mask[..., 0] = 0
    return draw(heads, queries), draw(groups, keys), draw(groups, keys), mask


@pytest.fixture
def _as_on_cuda(monkeypatch):
    """Treat tensors of the CPU as those of a CUDA device."""
    monkeypatch.setattr(sdpa, "avoids_cudnn", lambda x: not sdpa.ALLOW_CUDNN)


def gradients_of(out, leaves):
    return torch.autograd.grad((out * torch.arange(out.numel()).view_as(out)).sum(), leaves)


@pytest.mark.usefixtures("_as_on_cuda")
@pytest.mark.parametrize("is_masked", [True, False])
def test_repeated_heads_and_aligned_masks_change_no_number(is_masked):
    q, k, v, mask = inputs() if is_masked else (*inputs(keys=5)[:3], None)
    expected = F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=not is_masked, enable_gqa=True
    )
    given = None if mask is None else sdpa.aligned_mask(mask, torch.float64)
    out = sdpa.attend(q, k, v, given, None)
    assert float((out - expected).detach().abs().max()) < 1e-14
    for a, b in zip(gradients_of(out, (q, k, v)), gradients_of(expected, (q, k, v)), strict=True):
        assert float((a - b).abs().max()) < 1e-10


@pytest.mark.usefixtures("_as_on_cuda")
def test_masked_calls_have_as_many_keys_heads_as_queries_and_no_cudnn(monkeypatch):
    calls, original = [], F.scaled_dot_product_attention

    def record(q, k, v, mask, **options):
        enabled = torch.backends.cuda.cudnn_sdp_enabled()
        calls.append((k.shape[1], options["enable_gqa"], enabled))
        return original(q, k, v, mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    sdpa.attend(*inputs(), None)
    sdpa.attend(*inputs(keys=5)[:3], None, None)
    monkeypatch.setattr(sdpa, "ALLOW_CUDNN", True)  # the other choice, which needs a GPU to matter
    sdpa.attend(*inputs(), None)
    assert calls == [(4, False, False), (2, True, False), (2, True, before)]
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


@pytest.mark.parametrize("length", [1, 7, 8, 21])
def test_rows_of_a_mask_start_at_multiples(length):
    mask = torch.randn(2, 1, 3, length)
    aligned = sdpa.with_aligned_rows(mask)
    assert torch.equal(aligned, mask)
    assert all(n % sdpa.MASK_MULTIPLE == 0 for n in aligned.stride()[:-1])
    assert aligned.stride(-1) == 1


def test_all_layers_read_one_mask():
    segments = [Segment(0, 5, 0, 9), Segment(5, 3, 0, 9)]
    (block,) = plan_attention(segments, 9, torch.device("cpu")).blocks
    first = block.mask_as(torch.bfloat16)
    assert first.dtype == torch.bfloat16
    assert block.mask_as(torch.bfloat16) is first
    assert torch.equal(block.mask_as(torch.float32), block.mask)
    (causal,) = plan_attention([Segment(0, 5)], 0, torch.device("cpu")).blocks
    assert causal.mask_as(torch.float32) is None


def mode():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


@pytest.mark.usefixtures("_as_on_cuda")
def test_cudnn_stays_excluded_until_the_last_of_two_threads_has_ended():
    """The first thread to end switched it on again for the other one."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    query = inputs()[0]
    with sdpa.kernels_for(query):
        first = sdpa.kernels_for(query)
        first.__enter__()
        first.__exit__(None, None, None)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
    first, second = sdpa.kernels_for(query), sdpa.kernels_for(query)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    second.__exit__(None, None, None)
    assert torch.backends.cuda.cudnn_sdp_enabled() == before

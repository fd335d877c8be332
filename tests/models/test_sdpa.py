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


class Node(torch.autograd.Function):
    """Records the deterministic mode of its backward pass, and fails on request."""

    modes: list[tuple[bool, bool]]
    fails = False

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        Node.modes.append(mode())
        if Node.fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return grad * 2


@pytest.fixture
def _deterministic(monkeypatch):
    before = mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    monkeypatch.setattr(Node, "modes", [], raising=False)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    assert not sdpa._Mode.is_changed


@pytest.mark.usefixtures("_deterministic")
def test_only_the_backward_pass_of_attention_runs_in_error_mode():
    x = torch.ones(2, requires_grad=True)
    inner = Node.apply(x)
    outer = Node.apply(inner)
    sdpa.run_in_error_mode(inner.grad_fn)
    outer.sum().backward()
    assert Node.modes == [(True, True), (True, False)]
    assert mode() == (True, True)


@pytest.mark.usefixtures("_deterministic", "_as_on_cuda")
def test_the_next_call_restores_the_mode_after_a_failed_backward_pass(monkeypatch):
    monkeypatch.setattr(Node, "fails", True)
    out = Node.apply(torch.ones(2, requires_grad=True))
    sdpa.run_in_error_mode(out.grad_fn)
    with pytest.raises(torch.OutOfMemoryError):
        out.sum().backward()
    sdpa.attend(*inputs(), None)
    assert mode() == (True, True)


@pytest.mark.usefixtures("_deterministic")
def test_the_node_of_attention_is_reached_through_reshapes():
    """Under the name that torch gives it, and not for an output without gradient."""
    x = torch.randn(1, 2, 8, 16, requires_grad=True)
    out = F.scaled_dot_product_attention(x, x, x).transpose(1, 2).reshape(8, -1)
    assert sdpa.attention_node(out) is not None
    assert "ScaledDotProduct" in sdpa.attention_node(out).name()
    assert sdpa.attention_node(x * 2) is None
    assert sdpa.attention_node(x.detach()) is None

"""Rows of logits that start at multiples of a width: the same numbers, products and memory."""

from dataclasses import replace

import pytest
import torch
from doubles import small_blocks
from test_rows import HEADS, RULES, N, V, agree, close, gradients, make, plain
from test_rows import kernels as kernels  # fixtures of the neighbouring file
from test_rows import pieces as pieces
from tiers import few
from torch.utils._python_dispatch import TorchDispatchMode

from vistill.functional import heads, row_chunks
from vistill.functional.divergences import reverse_kl
from vistill.functional.heads import Head, row_width
from vistill.functional.rows import States, log_prob_from_hidden, per_row

MULTIPLE = 16
WIDTH = 48  # 37 entries, up to the next multiple


@pytest.fixture(autouse=True)
def _aligned(monkeypatch):
    """Align rows on a CPU, as on a CUDA device."""
    monkeypatch.setattr(heads, "ROW_MULTIPLE", {"cpu": MULTIPLE})


def beyond(weight, rows=60):
    """A weight with more rows than the vocabulary. The values of those rows must not matter."""
    more = torch.full((rows - len(weight), weight.shape[1]), 1e3, dtype=weight.dtype)
    return torch.cat([weight.detach(), more])


def with_more_rows(head, rows=60):
    return replace(head, uncut=beyond(head.weight, rows))


class Products(TorchDispatchMode):
    """Records sizes and strides of the operands of every matrix product."""

    def __init__(self):
        super().__init__()
        self.operands = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            tensors = [x for x in (*args, kwargs.get("out")) if isinstance(x, torch.Tensor)]
            self.operands.append([(tuple(x.shape), x.stride()) for x in tensors])
        return func(*args, **kwargs)


@pytest.mark.parametrize("is_longer", few([True, False], 0), ids=["uncut", "cut"])
@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("name", list(RULES))
def test_values_and_gradients_equal_those_of_all_logits(name, head, is_longer, kernels, pieces):
    rule, num = RULES[name]
    hidden, weight, bias, others, options, weights = make(1, num, HEADS[head])
    leaves = (hidden, weight, bias)
    expected = plain(rule, hidden, weight, bias, others, options)
    own = Head(weight, bias, **options, kernels=kernels)
    if is_longer:
        own = with_more_rows(own)
        others = [States(s.hidden, with_more_rows(s.head, 50)) for s in others]
    values = per_row(rule, hidden, own, others, weights)
    close(values, expected, 1e-12)
    agree(
        gradients((weights * values).sum(), leaves),
        gradients((weights * expected).sum(), leaves),
    )


@pytest.mark.parametrize("is_longer", [True, False], ids=["uncut", "cut"])
def test_log_probabilities_equal_log_softmax(is_longer, kernels, pieces):
    hidden, weight, _, _, _, weights = make(2)
    ids = torch.arange(N) % V
    head = Head(weight, kernels=kernels)
    head = with_more_rows(head) if is_longer else head
    expected = torch.log_softmax(Head(weight).logits(hidden), -1).gather(-1, ids[:, None])[:, 0]
    with torch.no_grad():
        close(log_prob_from_hidden(hidden, head, ids), expected, 1e-12)
    values = log_prob_from_hidden(hidden, head, ids, weights)
    agree(
        gradients((weights * values).sum(), (hidden, weight)),
        gradients((weights * expected).sum(), (hidden, weight)),
    )


@pytest.mark.parametrize("is_longer", [True, False], ids=["uncut", "cut"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_every_product_of_the_loss_has_aligned_rows(is_longer, dtype):
    """With rows beyond the vocabulary the sizes are aligned too, not only the distance of rows."""
    hidden, weight, _, others, _, weights = make(3, dtype=dtype)
    hidden, weight = (x.detach().requires_grad_() for x in (hidden, weight))
    own, other = Head(weight), others[0].head
    if is_longer:
        own, other = with_more_rows(own), with_more_rows(other)
    with Products() as products:
        values = per_row(reverse_kl, hidden, own, [States(others[0].hidden, other)], weights)
        (weights * values).sum().backward()
    assert len(products.operands) == 4
    strides, sizes = set(), set()
    for operands in products.operands:
        for shape, stride in operands:
            sizes |= {n for n in shape if n >= V}
            if stride[1] == 1 and shape[1] >= V:
                strides.add(stride[0])
    assert sizes == ({WIDTH} if is_longer else {V})
    # Without a buffer to write to, the CPU's bf16 product has rows of its own.
    assert strides <= ({WIDTH} if is_longer or dtype is torch.float64 else {WIDTH, V})
    assert weight.grad.shape == weight.shape


def test_logits_without_gradient_have_aligned_rows_and_equal_values():
    hidden, weight, _, _, _, _ = make(4)
    head = with_more_rows(Head(weight))
    with torch.no_grad(), Products() as products:
        logits = head.logits(hidden)
    assert logits.shape == (N, V)
    assert logits.stride() == (WIDTH, 1)
    assert len(products.operands) == 1
    close(logits, Head(weight).logits(hidden), 1e-12)
    assert head.logits(hidden).requires_grad


def test_buffers_count_the_width_of_their_rows(monkeypatch):
    hidden, weight, _, others, _, _ = make(5)
    loss = row_chunks.LogitsLoss(Head(weight), tuple(others), ())
    small_blocks(monkeypatch, chunk=2 * WIDTH * 8, block=WIDTH)
    assert loss.chunk_rows(N) == 2
    assert row_width(V, hidden.device) == WIDTH
    assert row_width(WIDTH, hidden.device) == WIDTH


def test_a_model_without_finite_rows_beyond_the_vocabulary_uses_none(student):
    vocabulary = len(student.model.lm_head.weight) - 5
    width = row_width(vocabulary, student.device)
    assert vocabulary < width
    head = student.head(vocabulary)
    assert head.uncut is None or len(head.product_weight) in (vocabulary, width)
    rows = student.model.lm_head.weight
    with torch.no_grad():
        before = rows[vocabulary:].clone()
        rows[vocabulary:] = torch.inf
        try:
            assert student.head(vocabulary).uncut is None
        finally:
            rows[vocabulary:] = before

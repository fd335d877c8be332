"""The head in bf16 or TF32: errors are bounded and measured, and fp32 stays exact."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vistill.errors import ConfigError
from vistill.functional.divergences import reverse_kl
from vistill.functional.heads import Head
from vistill.functional.rows import States, log_prob_from_hidden, per_row
from vistill.models.backends import HEAD_BOUND, head_error, head_failure, with_head_precision
from vistill.models.loading import VLM

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _clear_cached_results():
    head_failure.cache_clear()
    yield
    head_failure.cache_clear()


def inputs(dtype=torch.float32):
    """States and heads of a student and a teacher with logits as peaked as those of a model."""
    g = torch.Generator().manual_seed(3)
    hidden, other = (torch.randn(24, 64, generator=g, dtype=dtype) for _ in range(2))
    weights = [torch.randn(5000, 64, generator=g, dtype=dtype) * 0.4 for _ in range(2)]
    return hidden.requires_grad_(), other, weights[0].requires_grad_(), weights[1]


def loss_and_gradients(precision, dtype=torch.float32):
    hidden, other, weight, theirs = (x.to(dtype).detach() for x in inputs())
    hidden.requires_grad_()
    weight.requires_grad_()
    scale = torch.linspace(0.5, 1.5, len(hidden), dtype=dtype)
    head, teacher = Head(weight, precision=precision), Head(theirs, precision=precision)
    values = per_row(reverse_kl, hidden, head, [States(other, teacher)], scale)
    gradients = torch.autograd.grad((values * scale).sum(), (hidden, weight))
    return values.detach(), *gradients


def test_the_error_of_bf16_is_bounded_and_that_of_fp32_is_rounding():
    """Measured: 2e-6 of the largest entry in fp32, 7e-3 in bf16."""
    assert head_error("fp32", CPU) < 2e-6
    assert 1e-4 < head_error("bf16", CPU) <= HEAD_BOUND["bf16"]
    exact = loss_and_gradients("fp32", torch.float64)
    for precision, bound in (("fp32", 1e-5), ("bf16", HEAD_BOUND["bf16"])):
        for ours, theirs in zip(loss_and_gradients(precision), exact, strict=True):
            assert ours.dtype == torch.float32
            assert float((ours - theirs).abs().max() / theirs.abs().max()) <= bound


def test_sums_of_bf16_operands_are_float32():
    """The product equals the float64 product of the rounded operands to float32 rounding."""
    hidden, _, weight, _ = inputs()
    head = Head(weight.detach(), precision="bf16")
    product = head.project(hidden.detach(), torch.empty(24, 5000))
    rounded = hidden.detach().bfloat16().double() @ weight.detach().bfloat16().double().T
    assert float((product - rounded).abs().max() / rounded.abs().max()) < 1e-6
    assert float((product - hidden.detach() @ weight.detach().T).abs().max()) > 1e-3


def test_log_probabilities_of_a_rounded_head_are_those_of_a_head_with_rounded_weights():
    hidden, _, weight, _ = (x.detach() for x in inputs())
    ids = torch.arange(24) * 200
    value = log_prob_from_hidden(hidden, Head(weight, precision="bf16"), ids)
    expected = torch.log_softmax(hidden.bfloat16().double() @ weight.bfloat16().double().T, -1)
    torch.testing.assert_close(value.double(), expected.gather(-1, ids[:, None])[:, 0], atol=2e-5,
                               rtol=0)  # fmt: skip


class Recorded(TorchDispatchMode):
    """Records operators with the shape of their first tensor; `after` sees each result."""

    def __init__(self, after=lambda name, out: None):
        super().__init__()
        self.after, self.calls = after, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        shape = tuple(args[0].shape) if args and isinstance(args[0], torch.Tensor) else ()
        dtype = out.dtype if isinstance(out, torch.Tensor) else None
        self.calls.append((function.name(), shape, dtype))
        self.after(function.name(), out)
        return out


def test_the_weight_is_rounded_once_for_all_chunks():
    """As bf16 it takes half of the memory of the head; a copy per chunk would take time."""
    rows, vocabulary = 900, 50_000  # three chunks
    hidden, other = torch.randn(rows, 8), torch.randn(rows, 8)
    heads = [Head(torch.randn(vocabulary, 8), precision="bf16") for _ in range(2)]
    with Recorded() as recorded:
        per_row(reverse_kl, hidden.requires_grad_(), heads[0], [States(other, heads[1])])
    copies = [(shape, dtype) for name, shape, dtype in recorded.calls if "_to_copy" in name]
    assert copies.count(((vocabulary, 8), torch.bfloat16)) == 2, "once for each head"
    assert len([name for name, *_ in recorded.calls if name.startswith("aten::mm")]) >= 6


class OnCuda(VLM):
    """A model that says it is on a GPU."""

    device = CUDA


def test_on_a_cpu_auto_is_fp32_and_tf32_is_refused(student):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for requested, precision in (("auto", "fp32"), ("fp32", "fp32"), ("bf16", "bf16")):
            vlm = with_head_precision(student, requested, torch.bfloat16)
            assert vlm.head_precision == vlm.head(vlm.vocabulary_size).precision == precision
        with pytest.raises(ConfigError, match="C101"):
            with_head_precision(student, "tf32", torch.bfloat16)


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, "bf16"), (torch.float32, "fp32")])
def test_on_a_gpu_auto_is_the_precision_of_a_step(student, dtype, expected):
    vlm = OnCuda(**vars(student))
    chosen = with_head_precision(vlm, "auto", dtype, lambda precision, device: 0.0)
    assert chosen.head_precision == expected


def test_a_device_that_adds_in_bf16_gets_fp32_with_a_warning(student):
    """A product that is rounded is such a device; auto warns, a request is refused."""

    def round_product(name, out):
        if name.startswith("aten::mm") and out.dtype == torch.float32:
            out.copy_(out.bfloat16())

    with Recorded(round_product):
        error = head_error("bf16", CPU)
    assert error > HEAD_BOUND["bf16"]
    vlm = OnCuda(**vars(student))
    with pytest.warns(UserWarning, match="in fp32, because its error in bf16 is"):
        chosen = with_head_precision(vlm, "auto", torch.bfloat16, lambda precision, device: error)
    assert chosen.head_precision == "fp32"
    with pytest.raises(ConfigError, match="C101"):
        with_head_precision(vlm, "bf16", torch.bfloat16, lambda precision, device: error)


def test_tf32_is_allowed_inside_the_products_of_the_head_only():
    seen = []

    def note(name, out):
        if name.startswith("aten::mm"):
            seen.append(torch.backends.cuda.matmul.allow_tf32)

    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for outside in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = outside
            for precision in ("fp32", "tf32"):
                head = Head(torch.randn(40, 8), precision=precision)
                with Recorded(note):
                    head.project(torch.randn(2, 8), torch.empty(2, 40))
                assert torch.backends.cuda.matmul.allow_tf32 == outside
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert seen == [False, True, True, True]


def test_a_head_whose_weight_is_bf16_is_not_rounded_again():
    _, _, weight, _ = inputs()
    head = Head(weight.detach().bfloat16(), precision="bf16")
    assert head.operand_weight() is head.weight
    assert replace(head, precision="fp32").operand_weight() is head.weight

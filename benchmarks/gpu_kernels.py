"""GPU benchmark items that need no model: attention backends, the loss on hidden states (G1)."""

import importlib.util
import time
from collections.abc import Callable

import torch
from gpu_runner import GIB, Bench, Skip, allocated_gib, difference, timed, wait
from gpu_setup import (
    STUDENT,
    TEACHER,
    TOY,
    TOY_TEACHER,
    LossInputs,
    loss_inputs,
    loss_of_rows,
    why_no_triton,
)
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

#: Largest relative difference by precision of the products: of values from float64; of gradients
#: that are summed over tokens, from float64 or between two ways to compute the same one.
BOUND = {torch.bfloat16: 0.02, torch.float32: 1e-5}
GRADIENT_BOUND = {torch.bfloat16: 0.05, torch.float32: 1e-5}
#: Attention is one operation: float32 products on a GPU may sum in another order.
ATTENTION_BOUND = {torch.bfloat16: 0.02, torch.float32: 1e-4}
BACKENDS = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")


def shapes_of(bench: Bench):
    """Return the shapes of student and teacher."""
    return (TOY, TOY_TEACHER) if bench.tiny else (STUDENT, TEACHER)


# Attention


def attention(bench: Bench) -> None:
    """Measure backends with a mask and grouped heads: time with backward, repeatability."""
    for dtype in dict.fromkeys((bench.half, torch.float32)):
        for masked in (True, False):
            with bench.part(f"{str(dtype)[6:]} {'mask' if masked else 'causal'}"):
                measure_attention(bench, dtype, masked)
    with bench.part("lengths never seen before"):
        number = 2 if bench.tiny else 10
        new = [attention_inputs(bench, bench.half, True, longer=i + 1) for i in range(number)]
        wait(bench.device)
        start = time.perf_counter()
        for inputs in new:
            attend(*inputs)
        wait(bench.device)
        bench.values["seconds_each"] = (time.perf_counter() - start) / number


def attention_inputs(bench: Bench, dtype: torch.dtype, masked: bool, longer: int = 0):
    """Make queries of a part of the responses, and keys of their prompt and of themselves.

    The number of heads is the student's.
    """
    queries, keys = (16, 24) if bench.tiny else (1024, 1774)
    queries, keys = queries + longer, (keys if masked else queries) + longer

    def random_tensor(heads, length):
        return torch.randn(
            4, heads, length, 128, device=bench.device, dtype=dtype, requires_grad=True
        )

    mask = torch.zeros(1, 1, queries, keys, device=bench.device, dtype=dtype) if masked else None
    return random_tensor(16, queries), random_tensor(8, keys), random_tensor(8, keys), mask


def attend(q, k, v, mask):
    """Compute the output and the gradients of q, k and v."""
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=True)
    return out.detach(), torch.autograd.grad(out.float().sum(), (q, k, v))


def measure_attention(bench: Bench, dtype: torch.dtype, masked: bool) -> None:
    """Measure torch's choice and each backend, each against the math backend in float64."""
    inputs = attention_inputs(bench, dtype, masked)
    first_row = [None if x is None else x[:1].double() for x in inputs]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        q, k, v, mask = first_row
        exact = F.scaled_dot_product_attention(q, k, v, mask, is_causal=not masked, enable_gqa=True)
    bench.values["auto"] = timed(lambda: attend(*inputs), bench.device)
    bench.check(
        "auto_from_float64", difference(attend(*inputs)[0][:1], exact), ATTENTION_BOUND[dtype]
    )
    first, second = attend(*inputs)[1], attend(*inputs)[1]
    bench.values["auto_repeats_bitwise"] = all(
        torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )
    for name in BACKENDS:
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                output = attend(*inputs)[0]
                bench.values[name] = timed(lambda: attend(*inputs), bench.device)
        except RuntimeError as error:  # an unsupported backend is a result, not a failure
            bench.values[name] = f"refused: {str(error).splitlines()[0]}"[:120]
            continue
        bench.check(f"{name}_from_float64", difference(output[:1], exact), ATTENTION_BOUND[dtype])


# The loss on hidden states


def loss_torch(bench: Bench) -> None:
    """Measure G1 without Triton."""
    measure_loss(bench, "torch")


def loss_triton(bench: Bench) -> None:
    """Measure G1 with Triton's kernels."""
    if importlib.util.find_spec("triton") is None:
        raise Skip("Triton is not installed")
    if bench.device.type != "cuda":
        raise Skip("Triton needs a CUDA device")
    reason = why_no_triton(bench.device)
    if reason is not None:
        raise RuntimeError(f"Triton's kernels are not used: {reason}")
    measure_loss(bench, "triton")


def loss_rows(bench: Bench) -> int:
    """Return the number of response tokens for the loss."""
    return 128 if bench.tiny else 8192


def measure_loss(bench: Bench, kernels: str) -> None:
    """Measure G1: difference from float64 on a few rows, time over the bare products, memory."""
    rows = loss_rows(bench)
    inputs = loss_inputs(shapes_of(bench), rows, bench.device, bench.half)
    with bench.part("against float64"):
        check_loss(bench, inputs, kernels)
    with bench.part("time"):
        ours = timed(lambda: loss_of_rows(inputs, kernels), bench.device, 5)
        floor = timed(loss_floor(inputs), bench.device, 5)
        vocabulary = len(inputs.student_head)
        text = f"bare products, N={rows:,}, V={vocabulary:,}, {bench.half}, kernels {kernels}"
        bench.values |= {"loss": ours, "products": floor}
        bench.row(f"G1_loss_time_over_floor_{kernels}", ours["best"] / floor["best"], "ratio", text)
    with bench.part("memory"):
        before = allocated_gib(bench.device)
        gradients = sum(x.numel() * x.element_size() for x in loss_of_rows(inputs, kernels)) / GIB
        peak = torch.cuda.max_memory_allocated(bench.device) / GIB if before is not None else None
        bench.values["gib_beyond_inputs_and_gradients"] = (
            None if peak is None else peak - before - gradients
        )


def check_loss(bench: Bench, inputs: LossInputs, kernels: str) -> None:
    """Compare values and both gradients of a few rows with float64."""
    few = inputs.to(bench.half, 64)
    bounds = {"values": BOUND, "gradient_of_states": BOUND, "gradient_of_head": GRADIENT_BOUND}
    exact = loss_of_rows(few.to(torch.float64), "torch")
    for name, value, expected in zip(bounds, loss_of_rows(few, kernels), exact, strict=True):
        bench.check(name, difference(value, expected), bounds[name][bench.half])


def loss_floor(inputs: LossInputs) -> Callable[[], None]:
    """Return a function with only the products that reverse KL with a trained head needs."""
    logits = inputs.student.new_empty(512, len(inputs.student_head))
    gradient = torch.zeros_like(inputs.student_head)

    def products() -> None:
        for s, t in zip(inputs.student.split(512), inputs.teacher.split(512), strict=True):
            a = logits[: len(s)]
            torch.mm(s, inputs.student_head.T, out=a)
            torch.mm(t, inputs.teacher_head.T, out=a)
            torch.mm(a, inputs.student_head)
            torch.addmm(gradient, a.T, s, out=gradient)

    return products


def loss_precisions(bench: Bench) -> None:
    """Measure the loss with a head in float32, TF32 or half, cut to the tokenizer or not."""
    shape, device = shapes_of(bench)[0], bench.device
    kernels = "triton" if device.type == "cuda" and why_no_triton(device) is None else "torch"
    inputs = loss_inputs(shapes_of(bench), loss_rows(bench), device, bench.half)
    before = torch.backends.cuda.matmul.allow_tf32
    for head, tf32 in dict.fromkeys(
        ((torch.float32, False), (torch.float32, True), (bench.half, False))
    ):
        for vocabulary in (shape.vocabulary, shape.tokens):
            precision = f"{str(head)[6:]}{' tf32' if tf32 else ''}"
            with bench.part(f"head {precision}, V={vocabulary:,}, kernels {kernels}"):
                cut = inputs.cut(vocabulary).to(bench.half, head=head)
                few = cut.to(bench.half, 64, head=head)
                exact = loss_of_rows(few.to(torch.float64), "torch")
                torch.backends.cuda.matmul.allow_tf32 = tf32
                try:
                    results = loss_of_rows(few, kernels)
                    names = ("values", "gradient_of_states", "gradient_of_head")
                    bench.values["from_float64"] = {
                        name: difference(a, b)
                        for name, a, b in zip(names, results, exact, strict=True)
                    }
                    bench.values |= timed(lambda c=cut: loss_of_rows(c, kernels), device)
                finally:
                    torch.backends.cuda.matmul.allow_tf32 = before

"""GPU benchmark items of the loss on hidden states (G1), which need no model."""

import importlib.util
from collections.abc import Callable

import torch
from gpu_runner import GIB, Bench, Skip, allocated_gib, difference, timed
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
from gpu_switches import aligned_rows

#: Largest relative difference by precision of the products: of values from float64; of gradients
#: that are summed over tokens, from float64 or between two ways to compute the same one.
BOUND = {torch.bfloat16: 0.02, torch.float32: 1e-5}
GRADIENT_BOUND = {torch.bfloat16: 0.05, torch.float32: 1e-5}
#: Attention is one operation: float32 products on a GPU may sum in another order.
ATTENTION_BOUND = {torch.bfloat16: 0.02, torch.float32: 1e-4}


def shapes_of(bench: Bench):
    """Return the shapes of student and teacher."""
    return (TOY, TOY_TEACHER) if bench.tiny else (STUDENT, TEACHER)


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
    """Measure the loss with a head in float32, TF32 or half, cut to the tokenizer or not.

    A head in half is cut in three ways: rows of odd length; rows at aligned addresses; and products
    of aligned sizes too, with the model's rows beyond the vocabulary.
    """
    shape, device = shapes_of(bench)[0], bench.device
    kernels = "triton" if device.type == "cuda" and why_no_triton(device) is None else "torch"
    inputs = loss_inputs(shapes_of(bench), loss_rows(bench), device, bench.half)
    whole, sizes = (shape.vocabulary, 64, False), (shape.tokens, 64, True)
    odd, rows = (shape.tokens, 1, False), (shape.tokens, 64, False)
    for head, tf32, cases in (
        (bench.half, False, (whole, odd, rows, sizes)),
        (torch.float32, False, (whole, odd, sizes)),
        (torch.float32, True, (whole, odd, sizes)),
    ):
        for vocabulary, multiple, keeps_uncut in cases:
            alignment = {1: "odd rows"}.get(
                multiple, "aligned sizes" if keeps_uncut else "aligned rows"
            )
            precision = f"{str(head)[6:]}{' tf32' if tf32 else ''}"
            with (
                bench.part(f"head {precision}, V={vocabulary:,}, {alignment}, kernels {kernels}"),
                aligned_rows(device, multiple),
            ):
                cut = inputs.cut(vocabulary, keeps_uncut).to(bench.half, head=head)
                measure_precision(bench, cut, head, tf32, kernels)


def measure_precision(
    bench: Bench, cut: LossInputs, head: torch.dtype, tf32: bool, kernels: str
) -> None:
    """Measure one precision: difference from float64 on a few rows, and time."""
    before = torch.backends.cuda.matmul.allow_tf32
    few = cut.to(bench.half, 64, head=head)
    exact = loss_of_rows(few.to(torch.float64), "torch")
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        results = loss_of_rows(few, kernels)
        names = ("values", "gradient_of_states", "gradient_of_head")
        bench.values["from_float64"] = {
            name: difference(a, b) for name, a, b in zip(names, results, exact, strict=True)
        }
        bench.values |= timed(lambda: loss_of_rows(cut, kernels), bench.device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before

"""GPU benchmark item `attention`: ways to let siblings attend to their prompt and to themselves."""

import time
from collections.abc import Callable

import torch
from gpu_kernels import ATTENTION_BOUND, GRADIENT_BOUND
from gpu_runner import Bench, difference, timed, wait
from gpu_switches import attend_without_cudnn, deterministic_run, flex_attention_of
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
#: Kernels of torch with their log-sum-exp, by device: forward, backward, position of the sum.
FLASH = {
    "cuda": (
        torch.ops.aten._scaled_dot_product_flash_attention,
        torch.ops.aten._scaled_dot_product_flash_attention_backward,
    ),
    "cpu": (
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward,
    ),
}
Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]
Way = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def attention(bench: Bench) -> None:
    """Measure ways to attend with a mask and grouped heads: time, errors, repeatability, shapes."""
    for dtype in dict.fromkeys((bench.half, torch.float32)):
        for masked in (True, False):
            with bench.part(f"{str(dtype)[6:]} {'mask' if masked else 'causal'}"):
                measure_attention(bench, dtype, masked)
    with bench.part("lengths never seen before, seconds each"):
        for name, number in (("torch's choice", 3), ("vistill", 10), ("flash twice", 10)):
            bench.values[name] = seconds_of_new_lengths(bench, ways(True)[name], number)
    with bench.part("flex"):
        measure_flex(bench)


def attention_inputs(bench: Bench, dtype: torch.dtype, masked: bool, longer: int = 0) -> Inputs:
    """Make queries of responses, and keys of their prompt and of themselves.

    The number of heads is the student's. The mask shows the prompt and earlier own tokens.
    """
    queries, keys = (16, 27) if bench.tiny else (1024, 1774)
    queries, keys = queries + longer, (keys if masked else queries) + longer
    g = torch.Generator(bench.device).manual_seed(longer)

    def random_tensor(heads, length):
        x = torch.randn(4, heads, length, 128, generator=g, device=bench.device)
        return x.to(dtype).requires_grad_()

    mask = None
    if masked:
        ones = torch.ones(queries, keys, dtype=torch.bool, device=bench.device)
        hidden = ones.triu(keys - queries + 1)
        mask = torch.zeros(1, 1, queries, keys, device=bench.device, dtype=dtype)
        mask = mask.masked_fill(hidden, -torch.inf)
    return random_tensor(16, queries), random_tensor(8, keys), random_tensor(8, keys), mask


def ways(masked: bool) -> dict[str, Way]:
    """Return the ways to compute attention, by name."""
    single = {f"{name}, grouped": with_backend(name, torchs_choice) for name in BACKENDS}
    repeated = {
        f"{name}, heads repeated": with_backend(name, heads_repeated) for name in BACKENDS if masked
    }
    twice = {"flash twice": flash_twice} if masked else {}
    return {
        "torch's choice": torchs_choice,
        "vistill": attend_without_cudnn,
        **single,
        **repeated,
        **twice,
    }


def torchs_choice(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with grouped heads and the backend that torch takes."""
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=True)


def heads_repeated(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with as many heads of keys as of queries; the mask is not aligned."""
    times = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)


def with_backend(name: str, way: Way) -> Way:
    """Return a way with one backend only."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        with sdpa_kernel(getattr(SDPBackend, name)):
            return way(q, k, v, mask)

    return attend


class FlashTwice(torch.autograd.Function):
    """Unmasked attention to the prompt and causal attention to itself, joined by log-sum-exp.

    The backward pass of either part gets the joined output and sum: then it computes its share of
    the gradient of the whole.
    """

    @staticmethod
    def forward(ctx, q, k, v):
        run, prompt = FLASH[q.device.type][0], k.shape[2] - q.shape[2]
        parts = [
            run(q, k[:, :, :prompt], v[:, :, :prompt], 0.0, False),
            run(q, k[:, :, prompt:], v[:, :, prompt:], 0.0, True),
        ]
        total = torch.logaddexp(parts[0][1], parts[1][1])
        out = sum(p[0] * (p[1] - total).exp()[..., None] for p in parts).to(q.dtype)
        ctx.save_for_backward(q, k, v, out, total)
        ctx.rest = [p[2:8] for p in parts]
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, total = ctx.saved_tensors
        run, prompt, grads = FLASH[q.device.type][1], k.shape[2] - q.shape[2], []
        for part, is_causal, rest in (
            (slice(None, prompt), False, ctx.rest[0]),
            (slice(prompt, None), True, ctx.rest[1]),
        ):
            own = k[:, :, part], v[:, :, part]
            if q.is_cuda:  # cumulated lengths, largest lengths, state of the dropout
                cum_q, cum_k, max_q, max_k, seed, offset = rest
                last = cum_q, cum_k, max_q, max_k, 0.0, is_causal, seed, offset
            else:
                last = 0.0, is_causal
            grads.append(run(grad, q, *own, out, total, *last))
        return (
            grads[0][0] + grads[1][0],
            torch.cat([g[1] for g in grads], 2),
            torch.cat([g[2] for g in grads], 2),
        )


def flash_twice(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend by two calls of flash attention without a mask."""
    times = q.shape[1] // k.shape[1]
    return FlashTwice.apply(q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1))


def run_way(way: Way, inputs: Inputs) -> list[Tensor]:
    """Compute the output and the gradients of q, k and v."""
    out = way(*inputs)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)
    return [out.detach(), *torch.autograd.grad((out.float() * weights).sum(), inputs[:3])]


def exact_values(inputs: Inputs) -> list[Tensor]:
    """Compute them in float64 for the first row."""
    first = [None if x is None else x[:1].detach().double() for x in inputs]
    leaves = [x.requires_grad_() for x in first[:3]]
    out = with_backend("MATH", torchs_choice)(*leaves, first[3])
    count = out.numel() * len(inputs[0])
    weights = torch.linspace(-1, 1, count, device=out.device)[: out.numel()].view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights.double()).sum(), leaves)]


def measure_attention(bench: Bench, dtype: torch.dtype, masked: bool) -> None:
    """Measure every way: seconds of both passes, errors, whether gradients repeat bitwise."""
    inputs = attention_inputs(bench, dtype, masked)
    exact = exact_values(inputs)
    table = bench.values
    for name, way in ways(masked).items():
        bench.values = table[name] = {}
        try:
            measure_way(bench, way, inputs, exact, dtype)
        except (RuntimeError, NotImplementedError) as error:
            table[name] = f"refused: {str(error).splitlines()[0]}"[:120]
            if name in ("torch's choice", "vistill"):
                bench.problems.append(f"{name}: {table[name]}")
        finally:
            bench.values = table


def measure_way(
    bench: Bench, way: Way, inputs: Inputs, exact: list[Tensor], dtype: torch.dtype
) -> None:
    """Measure one way."""
    results = run_way(way, inputs)
    bench.values |= timed(lambda: run_way(way, inputs), bench.device)
    names = ("output", "q", "k", "v")
    errors = {name: difference(x[:1], y) for name, x, y in zip(names, results, exact, strict=True)}
    bench.check("output_from_float64", errors.pop("output"), ATTENTION_BOUND[dtype])
    bound = max(GRADIENT_BOUND[dtype], ATTENTION_BOUND[dtype])
    bench.check("gradient_from_float64", max(errors.values()), bound)
    bench.values["repeats_bitwise"] = repeats(way, inputs)
    with deterministic_run(bench.device):
        bench.values["repeats_bitwise_in_a_run"] = repeats(way, inputs)
        bench.values["best_in_a_run"] = timed(lambda: run_way(way, inputs), bench.device)["best"]


def repeats(way: Way, inputs: Inputs) -> bool:
    """Return whether four passes give equal bits."""
    first = run_way(way, inputs)
    return all(
        torch.equal(a, b)
        for _ in range(3)
        for a, b in zip(first, run_way(way, inputs), strict=True)
    )


def seconds_of_new_lengths(bench: Bench, way: Way, number: int) -> float:
    """Return the seconds of both passes at lengths that the process has not seen."""
    number = 2 if bench.tiny else number
    new = [attention_inputs(bench, bench.half, True, longer=i + 1) for i in range(number)]
    wait(bench.device)
    start = time.perf_counter()
    for inputs in new:
        run_way(way, inputs)
    wait(bench.device)
    return (time.perf_counter() - start) / number


def measure_flex(bench: Bench) -> None:
    """Measure flex attention of the same responses as one packed row, and at new lengths."""
    if bench.device.type != "cuda":
        bench.values["skipped"] = "torch has no backward pass of flex attention on a CPU"
        return
    for longer in range(4):
        q, k, v, _ = attention_inputs(bench, bench.half, True, longer)
        run = flex_attention_of(q, k, v)
        wait(bench.device)
        start = time.perf_counter()
        run()
        wait(bench.device)
        bench.values[f"length {longer}, first"] = time.perf_counter() - start
    bench.values |= timed(run, bench.device)

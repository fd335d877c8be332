"""The items of the GPU benchmark: each measures one thing and can run without the others.

Order: items that need no model (`gpu_kernels.py`), then the goals G2 and G3, then the others by
interest.
"""

import math
import os
import tempfile
import time
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from gpu_attention import attention
from gpu_kernels import (
    GRADIENT_BOUND,
    loss_precisions,
    loss_torch,
    loss_triton,
    shapes_of,
)
from gpu_runner import GIB, Bench, Item, peak_gib, timed, wait
from gpu_runs import checkpoint, lora_step, memory, resume
from gpu_setup import (
    Sizes,
    build_model,
    build_optimizer,
    build_step,
    count_work,
    encode_prompts,
    file_hash,
    make_rollouts,
    matrix_rate,
    transformers_step,
)
from gpu_switches import cudnn_allowed, deterministic_run, noise_difference, noise_of_rows

# Models


def models(bench: Bench) -> None:
    """Build teacher and student with random weights; both must pass their self-test."""
    shapes = dict(zip(("student", "teacher"), shapes_of(bench), strict=True))
    for name, dtype in (("teacher", bench.half), ("student", torch.float32)):
        with bench.part(name):
            start = time.perf_counter()
            side = 64 if bench.tiny else 768
            vlm = build_model(shapes[name], side, bench.device, dtype, bench.attention)
            bench.models[name] = vlm.freeze() if name == "teacher" else vlm
            parameters = sum(p.numel() for p in vlm.model.parameters())
            bench.values |= {
                "seconds": time.perf_counter() - start,
                "parameters": parameters,
                "weights_gib": parameters * dtype.itemsize / GIB,
                "kernels": vlm.kernels,
                "attention": vlm.attention,
                "shares_prompts": vlm.shares_prompts,
            }
            if not vlm.shares_prompts:
                bench.problems.append(f"the {name} failed its self-test and does not share prompts")


def gradient_of(vlm) -> list[torch.Tensor]:
    """Return the gradients of a model; the next step replaces them."""
    return [p.grad for p in vlm.model.parameters() if p.grad is not None]


def gradient_difference(ours: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Return the difference relative to our norm, without the constant factor of the two losses."""
    pairs = [(a.double(), b.double()) for a, b in zip(ours, other, strict=True)]
    scale = sum(float((a * b).sum()) for a, b in pairs) / sum(
        float((b * b).sum()) for _, b in pairs
    )
    error = sum(float(((a - scale * b) ** 2).sum()) for a, b in pairs)
    return (error / sum(float((a * a).sum()) for a, _ in pairs)) ** 0.5


# Training


def training(bench: Bench) -> None:
    """Measure G2 and G3: a VA-OPD step over OPD with one row per rollout; rate of products."""
    student, teacher = bench.models["student"], bench.models["teacher"]
    sizes = Sizes(2, 2, 8) if bench.tiny else Sizes(4, 4, 768, 8192, 4096)
    with bench.part("gradients, shared against one row per rollout"):
        small = Sizes(1, sizes.siblings, min(64, sizes.tokens))
        build_step(student, teacher, "opd", small)()
        ours = gradient_of(student)
        build_step(student, teacher, "opd", small, separate=True)()
        bench.check(
            "difference",
            gradient_difference(ours, gradient_of(student)),
            GRADIENT_BOUND[bench.half],
        )
        del ours
    text = f"{sizes}, attention {student.attention}"
    rows = math.nan
    with bench.part("opd, one row per rollout"):
        bench.values |= timed(
            build_step(student, teacher, "opd", sizes, separate=True), bench.device, 2
        )
        rows = bench.values["best"]
    with bench.part("va_opd, prompts shared"):
        va_step = build_step(student, teacher, "va_opd", sizes)
        bench.values |= timed(va_step, bench.device, 2)
        ours = bench.values["best"]
        bench.row("va_step_seconds", ours, "s", text)
        if (peak := peak_gib(bench.device)) is not None:
            bench.row("va_step_peak_mib", 1024 * peak, "MiB", text)
        with count_work() as work:
            va_step()
        rate = matrix_rate(bench.device, bench.half)
        one = f"one large product: {rate / 1e12:.3g} TFLOP/s; {text}"
        bench.row("G3_matrix_rate_over_peak", work["flops"] / ours / rate, "share", one)
        if math.isfinite(rows):
            bench.row(
                "G2_va_step_over_rows_opd", ours / rows, "ratio", f"row-per-rollout OPD; {text}"
            )


def step(bench: Bench) -> None:
    """Measure steps after the rollouts: seconds per phase with clipping and AdamW, and memory."""
    student, teacher = bench.models["student"], bench.models["teacher"]
    optimizer = build_optimizer(student)
    cases = (
        ("va_opd", Sizes(4, 4, 512)),
        ("opd", Sizes(4, 4, 2048)),
    )
    if bench.tiny:
        cases = (("va_opd", Sizes(2, 2, 8)), ("opd", Sizes(2, 2, 16)))
    for method, sizes in cases:
        with bench.part(f"{method} {sizes}"):
            gradient = build_step(student, teacher, method, sizes)
            for name in ("first", "second"):
                phases = gradient()
                start = time.perf_counter()
                torch.nn.utils.clip_grad_norm_(student.model.parameters(), 1.0)
                optimizer.step()
                wait(bench.device)
                phases["update"] = time.perf_counter() - start
                bench.values[name] = {**phases, "total": sum(phases.values())}
    optimizer = None  # frees its memory
    student.model.zero_grad()
    # With cuDNN one step is enough: it builds plans for about twenty seconds.
    for name, is_allowed, number in (("without cuDNN", False, 2), ("torch's choice", True, 1)):
        with bench.part(f"va_opd at new lengths, attention {name}"), cudnn_allowed(is_allowed):
            bench.values["seconds"] = seconds_at_new_lengths(bench, number, 10 * number)
    with bench.part("va_opd in a deterministic run"), deterministic_run(bench.device):
        sums = []
        sizes = Sizes(2, 2, 8) if bench.tiny else Sizes(4, 4, 512, spread=64)
        gradient = build_step(student, teacher, "va_opd", sizes)
        for _ in range(3):
            bench.values["phases"] = gradient()
            sums.append(gradient_sums(student))
        bench.values["gradient_repeats_bitwise"] = sums[0] == sums[1] == sums[2]


def seconds_at_new_lengths(bench: Bench, number: int, seed: int) -> list[float]:
    """Return the seconds of steps whose responses have lengths that did not occur before."""
    sizes, seconds = Sizes(2, 2, 8, spread=3) if bench.tiny else Sizes(4, 4, 512, spread=128), []
    for i in range(number):
        sizes = replace(sizes, seed=seed + i)
        gradient = build_step(bench.models["student"], bench.models["teacher"], "va_opd", sizes)
        seconds.append(sum(gradient().values()))
    return seconds


def gradient_sums(vlm) -> list[int]:
    """Return one number per gradient that depends on its bits."""
    return [
        int(p.grad.view(torch.int32).sum(dtype=torch.int64))
        for p in vlm.model.parameters()
        if p.grad is not None
    ]


# Rollouts


def rollouts(bench: Bench) -> None:
    """Measure tokens per second by engine, precision and sampling; time to encode a prompt."""
    student = bench.models["student"]
    sizes = Sizes(2, 2, 8) if bench.tiny else Sizes(16, 4, 48)
    with bench.part("encode"):
        start, number = time.perf_counter(), 2 if bench.tiny else 8
        encode_prompts(student, number, seed=1)
        bench.values["ms_per_prompt"] = 1e3 * (time.perf_counter() - start) / number
    with bench.part("noise of one token per row, ms"):
        tokens, rows = student.vocabulary_size, sizes.prompts * sizes.siblings
        for name, function in noise_of_rows(rows, tokens, bench.device).items():
            bench.values[name] = 1e3 * timed(function, bench.device)["best"]
        bench.check("uniform_numbers_differ_from_cpu", noise_difference(bench.device), 0.0)
    bf16 = bench.half is torch.bfloat16
    bench.values["half"] = str(bench.half)[6:]  # float32 on a CPU
    measure = partial(measure_rollouts, bench, sizes=sizes)
    measure("shared, weights float32, sampled", temperature=0.7)
    measure("shared, weights float32, greedy")
    measure("shared, weights float32 under autocast, greedy", half=bf16)
    student.model.to(bench.half)
    try:
        measure("shared, weights half, sampled", temperature=0.7)
        measure("shared, weights half, sampled by counter", temperature=0.7, noise="counter")
        ours = measure("shared, weights half, greedy")
        theirs = measure("generate, weights half, greedy", engine="generate")
    finally:
        student.model.float()
    if ours and theirs:
        pairs = [
            a == b for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=False)
        ]
        bench.values["share_of_equal_tokens_shared_and_generate"] = sum(pairs) / len(pairs)


def measure_rollouts(
    bench: Bench, name: str, sizes: Sizes, engine="shared", **mode: Any
) -> list[tuple[int, ...]] | None:
    """Measure one mode of `make_rollouts`; return the responses, or None if it failed."""
    ids = None
    with bench.part(name):
        student = bench.models["student"]
        mode = {"temperature": 0.0} | mode
        make_rollouts(student, Sizes(1, 1, 2), engine, **mode)()
        generate = make_rollouts(student, sizes, engine, **mode)
        wait(bench.device)
        start = time.perf_counter()
        ids = generate()
        wait(bench.device)
        seconds = time.perf_counter() - start
        lengths = [len(x) for x in ids]
        bench.values |= {
            "rows": len(ids),
            "tokens": sum(lengths),
            "tokens_per_second": sum(lengths) / seconds,
            "ms_per_decoded_position": 1e3 * seconds / max(lengths),
        }
    return ids


def decoding(bench: Bench) -> None:
    """Measure tokens per second with the weights of a run: float32, a bf16 copy, a CUDA graph."""
    sizes = Sizes(2, 2, 8) if bench.tiny else Sizes(16, 4, 128)
    request = encode_prompts(bench.models["student"], 1)[0]
    bench.values |= {"prompt_tokens": len(request.prompt.ids), "sizes": str(sizes)}
    responses = {}
    for engine in ("shared", "copy", "graph"):
        name = f"{engine}, sampled by counter"
        mode = {"engine": engine, "temperature": 0.7, "noise": "counter"}
        responses[engine] = measure_rollouts(bench, name, sizes, **mode)
    if responses["copy"] and responses["graph"]:
        pairs = [
            a == b
            for x, y in zip(responses["copy"], responses["graph"], strict=True)
            for a, b in zip(x, y, strict=False)
        ]
        bench.values["share_of_equal_tokens_copy_and_graph"] = sum(pairs) / len(pairs)


# Compared with transformers alone; saving; profile


def transformers_only(bench: Bench) -> None:
    """Compare OPD of one prompt with transformers alone; both have the same gradient."""
    student, teacher = bench.models["student"], bench.models["teacher"]
    sizes = Sizes(1, 2, 8) if bench.tiny else Sizes(1, 4, 512)
    gradients = []
    for name, function in (
        ("transformers", transformers_step(student, teacher, sizes)),
        ("vistill", build_step(student, teacher, "opd", sizes)),
    ):
        with bench.part(f"{name}, opd {sizes}"):
            bench.values |= timed(function, bench.device, 2)
            gradients.append(gradient_of(student))
    if len(gradients) == 2:
        bench.check(
            "gradient_difference", gradient_difference(*gradients), GRADIENT_BOUND[bench.half]
        )


def saving(bench: Bench) -> None:
    """Measure the student's weights: to the host, to disk, hashed.

    A checkpoint contains three times as much.
    """
    from safetensors.torch import save_file

    weights = bench.models["student"].model.state_dict()
    weights.pop("lm_head.weight", None)  # tied: the same tensor as the embedding
    start = time.perf_counter()
    host = {name: x.detach().cpu().contiguous() for name, x in weights.items()}
    bench.values["to_host_seconds"] = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        start = time.perf_counter()
        save_file(host, path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        bench.values["write_seconds"] = time.perf_counter() - start
        start = time.perf_counter()
        file_hash(path)
        bench.values["hash_seconds"] = time.perf_counter() - start
        bench.values["gigabytes"] = path.stat().st_size / 1e9


def profile(bench: Bench) -> None:
    """Find the operations in which an OPD step spends most of its time."""
    from torch.profiler import ProfilerActivity, profile

    cuda = bench.device.type == "cuda"
    sizes = Sizes(2, 2, 8) if bench.tiny else Sizes(2, 4, 512)
    opd_step = build_step(bench.models["student"], bench.models["teacher"], "opd", sizes)
    opd_step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as recording:
        opd_step()
        wait(bench.device)
    microseconds = attrgetter("self_device_time_total" if cuda else "self_cpu_time_total")
    events = sorted(recording.key_averages(), key=microseconds, reverse=True)
    bench.values["milliseconds"] = {
        event.key[:60]: microseconds(event) / 1e3 for event in events[:15]
    }
    bench.values["calls"] = {event.key[:60]: event.count for event in events[:15]}


BOTH = ("student", "teacher")
ITEMS = (
    Item("attention", 70, attention),
    Item("loss_torch", 40, loss_torch),
    Item("loss_triton", 60, loss_triton),
    Item("loss_precisions", 40, loss_precisions),
    Item("models", 90, models),
    Item("memory", 40, memory, BOTH),
    Item("lora_step", 40, lora_step, BOTH),
    Item("resume", 40, resume),
    Item("training", 90, training, BOTH),
    Item("step", 85, step, BOTH),
    Item("rollouts", 55, rollouts, BOTH[:1]),
    Item("decoding", 40, decoding, BOTH[:1]),
    Item("plain", 40, transformers_only, BOTH),
    Item("saving", 40, saving, BOTH[:1]),
    Item("checkpoint", 80, checkpoint, BOTH[:1]),
    Item("profile", 40, profile, BOTH),
)

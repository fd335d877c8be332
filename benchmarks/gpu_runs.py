"""Items of the GPU benchmark on what a run does around its step: memory, LoRA, saves, resume."""

import math
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from gpu_kernels import shapes_of
from gpu_run_setup import (
    Saver,
    can_checkpoint,
    checkpointing,
    clip_and_update,
    lora_student,
    num_trained,
    planned_step,
    train_tiny,
)
from gpu_runner import GIB, Bench, Skip, peak_gib, wait
from gpu_setup import Sizes, build_model, build_optimizer, build_step

#: Largest difference between counted and measured peak, relative to the counted one.
PEAK_BOUND = 0.15


def memory(bench: Bench) -> None:
    """Compare the peak of a step with the one that `vistill plan` counts."""
    kinds = ["", *(["checkpointed"] if can_checkpoint() else [])]
    for kind in kinds:
        with bench.part(f"va_opd, {kind}" if kind else "va_opd"):
            measure_step(bench, bench.models["student"], kind)


def lora_step(bench: Bench) -> None:
    """Measure a step that trains adapters on frozen weights in half precision, and its peak."""
    if find_spec("peft") is None:
        raise Skip("peft is not installed")
    with bench.part("va_opd, lora"):
        shape, _ = shapes_of(bench)
        side = 64 if bench.tiny else 768
        student = build_model(shape, side, bench.device, bench.half, bench.attention)
        student = lora_student(student)
        bench.values["trained_parameters"] = num_trained(student)
        full = bench.models["student"].model
        others = sum(p.nbytes for p in full.parameters())  # in memory, not part of this step
        measure_step(bench, student, "lora", others)


def measure_step(bench: Bench, student, kind: str, others: int = 0) -> None:
    """Measure two VA-OPD steps with the split of the plan; the second has moments from the start.

    Args:
        bench: context of the item.
        student: the model that is trained.
        kind: `lora` for a student with adapters, `checkpointed` for layers that are computed again
            in the backward pass, else empty.
        others: bytes on the device that are not part of the step.
    """
    teacher, sizes = bench.models["teacher"], Sizes(2, 2, 8) if bench.tiny else Sizes(4, 4, 512)
    cut, planned = planned_step(student, teacher, sizes, kind)
    bench.values |= {
        "sizes": str(sizes),
        "micro_batch_tokens": cut.micro_batch_tokens,
        "part_tokens": cut.part_tokens,
        "planned_peak_gib": planned / GIB,
    }
    optimizer = build_optimizer(student)
    with checkpointing(student, kind == "checkpointed"):
        gradient = build_step(student, teacher, "va_opd", cut)
        for name in ("first", "second"):
            phases = gradient()
            start = time.perf_counter()
            clip_and_update(student, optimizer)
            wait(bench.device)
            phases["update"] = time.perf_counter() - start
            bench.values[name] = {**phases, "total": sum(phases.values())}
    measured = peak_gib(bench.device)
    if measured is not None:
        share = (measured - others / GIB) * GIB / planned
        reference = f"measured over counted by vistill plan; va_opd {sizes}"
        bench.row(
            "_".join(["peak_over_plan", *([kind] if kind else [])]), share, "ratio", reference
        )
        bench.check("difference_from_plan", abs(share - 1), PEAK_BOUND)
    student.model.zero_grad()


def checkpoint(bench: Bench) -> None:
    """Measure two checkpoints in the background: what the loop waits for, over the whole."""
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(bench.models["student"], Path(folder))
        try:
            blocked = whole = math.nan
            for name in ("first, allocates buffers", "second"):
                start = time.perf_counter()
                saver.begin()
                blocked = time.perf_counter() - start
                saver.finish()
                whole = time.perf_counter() - start
                bench.values[name] = {"blocking_seconds": blocked, "whole_seconds": whole}
            bench.values |= saver.facts
            size = f"{bench.values['gigabytes']:.1f} GB, weights and moments of the vision part"
            bench.row("checkpoint_blocking_over_whole", blocked / whole, "ratio", size)
        finally:
            saver.close()


def resume(bench: Bench) -> None:
    """Stop a run of four steps after two, resume it, and compare every bit with a whole run."""
    with tempfile.TemporaryDirectory() as folder:
        whole = train_tiny(Path(folder) / "whole", bench.device, (None,))
        resumed = train_tiny(Path(folder) / "resumed", bench.device, (2, None))
    for key, expected in whole.items():
        bench.values[f"same_{key}"] = resumed[key] == expected
        if resumed[key] != expected:
            bench.problems.append(f"the {key} of the resumed run differ")

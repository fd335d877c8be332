"""GPUs and memory profiles that a plan knows. Needs no torch.

Memory and peaks are the vendors' data sheets (dense bf16, no sparsity). Shares of the peak are
assumptions, except where `measured` says what was measured (docs/performance.md).
"""

from dataclasses import dataclass

from vistill.errors import ConfigError, closest

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    memory_gib: float
    """Memory that torch reports, less than the name says."""
    peak_tflops: float
    """Dense bf16 products."""
    bandwidth: float
    """Bytes per second of the memory."""
    reading_share: float
    """Share of the peak that readings without gradient reach."""
    learning_share: float
    """The same for readings with gradient and their backward passes."""
    measured: str = ""


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("B200", 178.4, 2250, 8.0e12, 0.15, 0.04),
        Gpu("H200", 139.8, 989, 4.8e12, 0.30, 0.08),
        Gpu("H100", 79.2, 989, 3.35e12, 0.30, 0.08, "measured at 4x4x512 and 4x4x2048, 2026-11-27"),
        Gpu("A100", 79.3, 312, 2.0e12, 0.45, 0.20),
        Gpu("A100-40", 39.4, 312, 1.55e12, 0.45, 0.20),
        Gpu("A6000", 47.5, 155, 0.77e12, 0.45, 0.30),
        Gpu("L40S", 44.4, 362, 0.86e12, 0.35, 0.20),
        Gpu("5090", 31.4, 210, 1.79e12, 0.45, 0.30),
        Gpu("4090", 23.5, 165, 1.01e12, 0.45, 0.30),
        Gpu("3090", 23.6, 71, 0.94e12, 0.50, 0.40),
    )
}
DEFAULT_GPU = "H100"


@dataclass(frozen=True)
class Profile:
    """Settings for a size of memory. None of them changes a response or the update."""

    gpu: str
    settings: tuple[str, ...]


PROFILES = {
    "24gb": Profile(
        "4090",
        ("train.offload_teacher=true", "rollout.rows_per_call=4", "eval.rows_per_call=4"),
    ),
    "48gb": Profile(
        "L40S",
        ("train.offload_teacher=true", "rollout.rows_per_call=8", "eval.rows_per_call=8"),
    ),
    "80gb": Profile("H100", ("rollout.rows_per_call=32", "eval.rows_per_call=32")),
}


def find_gpu(name: str) -> Gpu:
    """The GPU of that name, in any case, with or without its vendor (C132)."""
    word = name.upper().replace("NVIDIA", "").replace("RTX", "").replace("GEFORCE", "").strip(" -")
    if word in GPUS:
        return GPUS[word]
    raise unknown_name_error("GPU", "--gpu", name, list(GPUS), DEFAULT_GPU)


def find_profile(name: str) -> Profile:
    """The profile of that name (C132)."""
    if name.lower() in PROFILES:
        return PROFILES[name.lower()]
    raise unknown_name_error("profile", "--profile", name, list(PROFILES), "80gb")


def unknown_name_error(
    kind: str, option: str, name: str, names: list[str], default: str
) -> ConfigError:
    """C132 for a word that the plan does not know."""
    near = closest(name, names)
    return ConfigError(
        "C132",
        f'the plan knows no {kind} "{name}"',
        why=f"it knows: {', '.join(names)}",
        fix=f"{option} {near[0] if near else default}",
    )

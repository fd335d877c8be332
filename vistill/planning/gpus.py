"""GPUs and memory profiles that a plan knows. Needs no torch.

The GPUs are in `gpus.json`. Memory and peaks are those of the vendors' data sheets (dense bf16, no
sparsity). Shares of the peak are assumptions, except where `measured` says what was measured
(docs/performance.md).
"""

import json
from dataclasses import dataclass
from pathlib import Path

from vistill.errors import ConfigError, closest


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
    entry["name"]: Gpu(**entry)
    for entry in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
}
DEFAULT_GPU = "H100"


@dataclass(frozen=True)
class Profile:
    """Settings for a size of memory. None of them changes a response or the update."""

    gpu: str
    settings: tuple[str, ...]


#: Settings that take time to save memory.
CAREFUL = ("train.offload_teacher=true", "train.gradient_checkpointing=true")
PROFILES = {
    "24gb": Profile(
        "4090",
        (*CAREFUL, "rollout.rows_per_call=4", "eval.rows_per_call=4"),
    ),
    "48gb": Profile(
        "L40S",
        (*CAREFUL, "rollout.rows_per_call=8", "eval.rows_per_call=8"),
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
    """C132 for a name that is not known."""
    near = closest(name, names)
    return ConfigError(
        "C132",
        f'there is no {kind} "{name}" in the list',
        why=f"the list has: {', '.join(names)}",
        fix=f"{option} {near[0] if near else default}",
    )

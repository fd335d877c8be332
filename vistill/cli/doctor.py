"""`vistill doctor`: what this machine has."""

import importlib.metadata
import os
import platform
import shutil
from typing import Any

REQUIRED = (
    "vistill",
    "torch",
    "transformers",
    "safetensors",
    "pillow",
    "pydantic",
    "jsonschema",
    "math-verify",
)
OPTIONAL = {
    "triton": 'pip install "vistill[triton]"',
    "datasets": 'pip install "vistill[data]"',
    "trl": 'pip install "vistill[oracle]"',
}


def inspect_installation() -> dict[str, Any]:
    """Versions, devices, disk, memory."""
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "packages": {name: installed_version(name) for name in REQUIRED},
        "extras": {name: installed_version(name) for name in OPTIONAL},
        "devices": devices(),
        "disk_free_gb": round(shutil.disk_usage(".").free / 1e9, 1),
        "torchvision_beside_cpu_torch": installed_version("torchvision") is not None
        and "+cpu" in (installed_version("torch") or ""),
    }


def installed_version(name: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices() -> list[str]:
    """CUDA devices by name and memory, or the CPU."""
    try:
        import torch
    except ImportError:
        return []
    count = torch.cuda.device_count()
    names = [torch.cuda.get_device_properties(i) for i in range(count)]
    return [f"{p.name} {p.total_memory / 1e9:.0f} GB" for p in names] or ["cpu"]


def is_healthy(facts: dict[str, Any]) -> bool:
    """Whether everything required is there."""
    return all(facts["packages"].values()) and bool(facts["devices"]) and facts["disk_free_gb"] > 1


def format_table(facts: dict[str, Any]) -> str:
    """One line a fact."""
    lines = [f"python {facts['python']}   {facts['cores']} cores   {', '.join(facts['devices'])}"]
    lines.append(
        "   ".join(f"{name} {version or 'MISSING'}" for name, version in facts["packages"].items())
    )
    for name, version in facts["extras"].items():
        lines.append(f"{name} {version or '(optional: ' + OPTIONAL[name] + ')'}")
    lines.append(f"disk {facts['disk_free_gb']} GB free here")
    if facts["torchvision_beside_cpu_torch"]:
        lines.append(
            "hint: torchvision beside a CPU torch often breaks `import transformers`; vistill does not need it"
        )
    lines.append("ok" if is_healthy(facts) else "not ok: something required is missing")
    return "\n".join(lines)

"""`vistill doctor`: packages, devices, disk and memory of this machine."""

import importlib.metadata
import os
import platform
import shutil
from typing import Any

from vistill.rollouts.vllm_checks import MAKE, VARIABLE, VERSION, installed_vllm

REQUIRED = ("vistill", "torch", "transformers", "safetensors", "pillow", "math-verify")
OPTIONAL = {
    "triton": 'pip install "vistill[triton]"',
    "datasets": 'pip install "vistill[data]"',
    "trl": 'pip install "vistill[oracle]"',
}


def inspect_installation() -> dict[str, Any]:
    """Collect versions, devices and free disk space."""
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "packages": {name: installed_version(name) for name in REQUIRED},
        "extras": {name: installed_version(name) for name in OPTIONAL},
        "vllm": installed_vllm(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None,
        "vllm_python": os.environ.get(VARIABLE),
        "devices": devices(),
        "disk_free_gb": round(shutil.disk_usage(".").free / 1e9, 1),
        "torchvision_with_cpu_torch": installed_version("torchvision") is not None
        and "+cpu" in (installed_version("torch") or ""),
    }


def installed_version(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices() -> list[str]:
    """The CUDA devices with name and memory, or the CPU."""
    try:
        import torch
    except ImportError:
        return []
    count = torch.cuda.device_count()
    names = [torch.cuda.get_device_properties(i) for i in range(count)]
    return [f"{p.name} {p.total_memory / 1e9:.0f} GB" for p in names] or ["cpu"]


def is_healthy(facts: dict[str, Any]) -> bool:
    """Whether all requirements are met."""
    return all(facts["packages"].values()) and bool(facts["devices"]) and facts["disk_free_gb"] > 1


def format_table(facts: dict[str, Any]) -> str:
    """Format the facts as lines."""
    lines = [f"python {facts['python']}   {facts['cores']} cores   {', '.join(facts['devices'])}"]
    lines.append(
        "   ".join(f"{name} {version or 'MISSING'}" for name, version in facts["packages"].items())
    )
    for name, version in facts["extras"].items():
        lines.append(f"{name} {version or '(optional: ' + OPTIONAL[name] + ')'}")
    lines.append(vllm_line(facts))
    lines.append(f"disk {facts['disk_free_gb']} GB free in this folder")
    if facts["torchvision_with_cpu_torch"]:
        lines.append(
            "hint: torchvision with a CPU build of torch often breaks `import transformers`;"
            " vistill does not need it"
        )
    lines.append("ok" if is_healthy(facts) else "not ok: a requirement is missing")
    return "\n".join(lines)


def vllm_line(facts: dict[str, Any]) -> str:
    """The environment of vLLM, which is none of this Python's packages."""
    if not facts["vllm_python"]:
        return f"vllm (optional: {MAKE}; then {VARIABLE}=PATH)"
    version = facts["vllm"]
    if version is None:
        return f"vllm BROKEN: {facts['vllm_python']} cannot be run"
    is_tested = version.rpartition(".")[0] == VERSION
    return f"vllm {version} in {facts['vllm_python']}" + (
        "" if is_tested else f"   rollout.engine=vllm needs {VERSION}"
    )

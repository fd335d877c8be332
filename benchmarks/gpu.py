"""Measure vistill on a CUDA device, at the shapes of Qwen3-VL 8B -> 2B with random weights.

Run `python benchmarks/gpu.py`. The items (`gpu_items.py`) are independent: results are written
after each, and an error in one does not stop the next. It takes ten minutes at most. Exit status 0:
every item ran, or was skipped for a reason that the results contain; 1: an item failed. `--tiny`
runs the same code at toy sizes on a CPU and measures nothing. docs/performance.md says how to run
it without a network.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
PINS = Path(__file__).with_name("gpu-requirements.txt")
OUT = Path(__file__).parent / "results" / "gpu.json"
BUDGET = 500.0
NO_DEVICE = "no CUDA device here: nothing was measured. --tiny runs the same code at toy sizes."


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if missing := missing_packages():
        raise SystemExit(
            f"{sys.executable} lacks what vistill needs: {', '.join(missing)}.\n"
            "`make gpu-wheels` collects all but torch, NumPy and Triton; docs/performance.md says "
            "how to install them without a network."
        )
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as a deterministic run needs it
    if args.tiny:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads only wait for each other
    sys.path.insert(0, str(REPO))  # this checkout, not an installed vistill
    import torch

    if not args.tiny and not torch.cuda.is_available():
        raise SystemExit(NO_DEVICE)
    from gpu_items import ITEMS
    from gpu_runner import Bench, run_items

    bench = Bench(args.tiny, torch.device("cpu" if args.tiny else "cuda"), args.attention)
    facts = {**about(args), **device_facts(torch, bench.device)}
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    good = run_items(select_items(ITEMS, args.items), bench, args.budget, args.out, facts)
    for row in bench.rows:
        value = f"{row['value']:>10.4g} {row['unit']:<6}"
        print(f"{row['name']:<32} {value} reference: {row['reference']}")
    print(f"{'toy sizes on a CPU: no measurement; ' if args.tiny else ''}written to {args.out}")
    return 0 if good else 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tiny", action="store_true", help="toy sizes, on any machine: shows that the script runs"
    )
    parser.add_argument(
        "--items", type=lambda text: text.split(","), metavar="NAME,...", help="only these items"
    )
    parser.add_argument("--attention", choices=("blocks", "flex"), default="blocks")
    parser.add_argument(
        "--budget", type=float, default=BUDGET, metavar="SECONDS", help="default: %(default)s"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args(arguments)


def select_items(items, names):
    """Return the named items in their usual order, and those that build the models they need."""
    if names is None:
        return items
    unknown = [name for name in names if name not in {item.name for item in items}]
    if unknown:
        raise SystemExit(
            f"no item {', '.join(unknown)}; there are: {', '.join(item.name for item in items)}"
        )
    if any(item.needs for item in items if item.name in names):
        names = [*names, "models"]
    return [item for item in items if item.name in names]


# Requirements and facts


def missing_packages() -> list[str]:
    """Return the packages that vistill needs and that are missing or too old."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    missing = []
    for requirement in project["dependencies"]:
        name, minimum = re.fullmatch(r"([\w.-]+?)[>=]=([\d.]+).*", requirement).groups()
        version = version_of(name)
        if version is None or version_numbers(version) < version_numbers(minimum):
            missing.append(requirement if version is None else f"{requirement} (here: {version})")
    return missing


def version_numbers(version: str) -> list[int]:
    """Return the numbers of a version: 2.13.0+cpu gives [2, 13, 0]."""
    return [int(n) for n in re.findall(r"\d+", version.split("+")[0])]


def version_of(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def pinned_versions() -> dict[str, str]:
    """Return the packages of gpu-requirements.txt with their versions."""
    lines = [line.split("#")[0].strip() for line in PINS.read_text(encoding="utf-8").splitlines()]
    return dict(line.split("==") for line in lines if line)


def about(args: argparse.Namespace) -> dict:
    """Return versions, commit, date and command."""
    import gpu_setup

    return {
        "items": args.items or "all",
        "attention": args.attention,
        **versions(args.budget, gpu_setup.VERSION),
    }


def versions(budget: float, vistill: str) -> dict:
    """Return date, budget, versions and commit."""
    other = {
        n: f"{v}, tested: {tested}"
        for n, tested in pinned_versions().items()
        if (v := version_of(n)) not in (None, tested)
    }
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "budget_seconds": budget,
        "vistill": vistill,
        "commit": output_of(
            "git", "-C", str(REPO), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"
        ),
        "python": platform.python_version(),
        "torch": version_of("torch"),
        "transformers": version_of("transformers"),
        "triton": version_of("triton"),
        "not_the_tested_version": other,
    }


def device_facts(torch, device) -> dict:
    """Return the facts about the device and its driver."""
    if device.type != "cuda":
        return {"device": "toy sizes on a CPU: no measurement", "threads": torch.get_num_threads()}
    facts = torch.cuda.get_device_properties(device)
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "device": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "total_memory_gib": facts.total_memory / 2**30,
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def output_of(*command: str) -> str | None:
    """Return the first line that a program prints; None if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.strip().splitlines() or [None])[0] if done.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())

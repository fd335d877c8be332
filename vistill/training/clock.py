"""Seconds per phase of a step, and on request the operations and memory of each phase.

None of these values is part of the bit-exact log.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vistill.flops_counter import counting

#: Side of the square matrices whose product measures how fast the device multiplies.
PROBE_SIDE = {"cpu": 1024, "cuda": 8192}
#: Timed products; the fastest counts.
PROBE_REPEATS = 3


@dataclass
class Clock:
    """Seconds per phase of the current step; never part of `metrics.jsonl`."""

    seconds: dict[str, float] = field(default_factory=dict)
    outside_steps: dict[str, float] = field(default_factory=dict)
    """Seconds of the process outside the steps: evaluations, checkpoints, canary."""

    @contextmanager
    def observe(self, phase: str) -> Iterator[None]:
        """Add the time of a block to a phase."""
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    @contextmanager
    def time_outside_steps(self, what: str) -> Iterator[None]:
        """Time work that is not part of a step."""
        start = time.perf_counter()
        yield
        self.outside_steps[what] = self.outside_steps.get(what, 0.0) + time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Return the phases so far and start again from zero."""
        seconds, self.seconds = self.seconds, {}
        return seconds

    def take_counts(self) -> dict[str, dict[str, float]]:
        """Return the counts of each phase and start again; a clock without profile has none."""
        return {}


@dataclass
class Profile(Clock):
    """A clock that also counts tokens, patches, head rows, operations and peak memory."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rate: float = 0.0
    """Operations per second of a bare matrix product on this device."""
    counts: dict[str, dict[str, float]] = field(default_factory=dict)
    """Counts of each phase of the current step."""

    @contextmanager
    def observe(self, phase: str) -> Iterator[None]:
        """Time a block and count its operations."""
        reset_peak(self.device)
        with counting() as counted, super().observe(phase):
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        totals = self.counts.setdefault(phase, {"peak_mib": 0.0})
        for name, amount in counted.items():
            totals[name] = totals.get(name, 0.0) + amount
        totals["peak_mib"] = max(totals["peak_mib"], peak_mib(self.device))

    def take_counts(self) -> dict[str, dict[str, float]]:
        """Return the counts of each phase and start again.

        `floor_seconds` is the time that the matrix products alone would take: `flops / rate`.
        """
        counts, self.counts = self.counts, {}
        for totals in counts.values():
            totals["floor_seconds"] = totals.get("flops", 0.0) / self.rate
        return counts


def measure_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a bare matrix product, best of a few."""
    side = PROBE_SIDE.get(device.type, 1024)
    a, b, out = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(3))
    best = float("inf")
    for _ in range(1 + PROBE_REPEATS):  # the first one warms up
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * side**3 / best


def peak_mib(device: torch.device) -> float:
    """Peak memory in MiB since the last reset: of the CUDA device, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reset_peak(device: torch.device) -> None:
    """Reset the peak; where the system cannot, it stays the peak of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

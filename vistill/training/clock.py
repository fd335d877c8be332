"""Seconds per phase of a step, and on request what each phase was made of. Outside bit identity."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vistill.flops_counter import counting

#: Side of the square matrices whose product tells how fast the machine multiplies, by device; and how often.
PROBE_SIDE, PROBE_REPEATS = {"cpu": 1024, "cuda": 8192}, 3


@dataclass
class Clock:
    """Seconds per phase of the current step; never part of `metrics.jsonl`."""

    seconds: dict[str, float] = field(default_factory=dict)
    beside: dict[str, float] = field(default_factory=dict)
    """Seconds of what is not part of a step, over the whole process: evaluations, checkpoints."""

    @contextmanager
    def observe(self, phase: str) -> Iterator[None]:
        """Add the time of a block to a phase."""
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    @contextmanager
    def aside(self, what: str) -> Iterator[None]:
        """Time something that is not part of a step."""
        start = time.perf_counter()
        yield
        self.beside[what] = self.beside.get(what, 0.0) + time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """The phases so far, and start again."""
        taken, self.seconds = self.seconds, {}
        return taken

    def take_work(self) -> dict[str, dict[str, float]]:
        """What each phase was made of, where that is counted."""
        return {}


@dataclass
class Profile(Clock):
    """A clock that also counts tokens, patches, head rows, operations and peak memory of each phase."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rate: float = 0.0
    """Operations a second of a bare matrix product here; the products alone would take `flops / rate`."""
    work: dict[str, dict[str, float]] = field(default_factory=dict)

    @contextmanager
    def observe(self, phase: str) -> Iterator[None]:
        """Time a block and count what is done in it."""
        forget_peak(self.device)
        with counting() as counted, super().observe(phase):
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        totals = self.work.setdefault(phase, {"peak_mib": 0.0})
        for name, amount in counted.items():
            totals[name] = totals.get(name, 0.0) + amount
        totals["peak_mib"] = max(totals["peak_mib"], peak_mib(self.device))

    def take_work(self) -> dict[str, dict[str, float]]:
        """What each phase was made of, with the seconds its matrix products alone would take; and start again."""
        taken, self.work = self.work, {}
        for totals in taken.values():
            totals["floor_seconds"] = totals.get("flops", 0.0) / self.rate
        return taken


def measured_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a bare matrix product, best of a few."""
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
    """Peak memory since it was last forgotten: of the CUDA device, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak(device: torch.device) -> None:
    """Start the peak afresh where the system can; elsewhere it stays that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

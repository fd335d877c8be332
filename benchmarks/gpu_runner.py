"""Run the items of the GPU benchmark in order; an error in one does not stop the next.

The results are written after every item. This file does not import vistill.
"""

import gc
import json
import math
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

GIB = 2**30
#: Number of different warnings that are stored per item.
WARNINGS = 8


class Skip(Exception):  # noqa: N818  not an error
    """Raised by an item that cannot run here."""


class OutOfTime(BaseException):
    """The budget ran out within an item. It is not an Exception, so no handler catches it."""


@dataclass
class Bench:
    """The context of an item: device, models built so far, results."""

    tiny: bool
    device: torch.device
    attention: str = "blocks"
    models: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Named figures that the documentation quotes."""
    values: dict[str, Any] = field(default_factory=dict)
    """Results of the current item, or of its current part."""
    problems: list[str] = field(default_factory=list)
    """Errors and failed checks of the current item."""

    @property
    def half(self) -> torch.dtype:
        """Precision of the teacher and of products: bf16 on a GPU, float32 on a CPU."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def check(self, name: str, value: float, bound: float) -> None:
        """Record a value with its bound; a value beyond it marks the item as failed."""
        self.values[name] = {"value": value, "bound": bound}
        if not value <= bound:  # NaN too
            self.problems.append(f"{name} is {value:.4g}, the bound is {bound:.4g}")

    def row(self, name: str, value: float, unit: str, reference: str) -> None:
        """Record a named figure."""
        self.values[name] = value
        self.rows.append({"name": name, "value": value, "unit": unit, "reference": reference})

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Run a part of an item with separate results: an error ends the part, not the item."""
        outside, self.values = self.values, {}
        outside[name] = self.values
        reset_peak(self.device)
        try:
            yield
        except Exception as error:  # noqa: BLE001  recorded; the next part is independent
            self.values.update(describe(error))
            self.problems.append(f"{name}: {one_line(error)}")
            self.free(error)
        finally:
            self.values["peak_gib"] = peak_gib(self.device)
            self.values = outside

    def free(self, error: BaseException | None = None) -> None:
        """Free the memory of an item and of the frames of its error."""
        if error is not None:
            traceback.clear_frames(error.__traceback__)
        for vlm in self.models.values():
            vlm.model.zero_grad(set_to_none=True)
        gc.collect()
        if self.device.type == "cuda":
            with suppress(RuntimeError):  # after a failed kernel every call fails; items record it
                torch.cuda.empty_cache()


@dataclass(frozen=True)
class Item:
    """A part of the benchmark that can run alone."""

    name: str
    seconds: float
    """A generous estimate at real sizes: an item starts only if this much time is left."""
    run: Callable[[Bench], None]
    needs: tuple[str, ...] = ()
    """Models that must have been built."""


def run_items(
    items: Sequence[Item], bench: Bench, budget: float, out: Path, about: dict[str, Any]
) -> bool:
    """Run the items that fit into `budget` seconds from now; return True if nothing failed."""
    deadline = time.monotonic() + budget
    records: dict[str, dict[str, Any]] = {item.name: {"status": "waiting"} for item in items}

    def save():
        write_results(out, {"about": about, "rows": bench.rows, "items": records})

    for item in items:
        left = deadline - time.monotonic()
        missing = [name for name in item.needs if name not in bench.models]
        estimate = 0.0 if bench.tiny else item.seconds
        if left <= estimate:
            records[item.name] = skipped(
                f"needs about {estimate:.0f} s, {max(0.0, left):.0f} s are left"
            )
        elif missing:
            records[item.name] = skipped(
                f"needs the {' and the '.join(missing)}, which could not be built"
            )
        else:
            records[item.name] = {"status": "running"}
            save()  # if the process is killed, the file names the running item
            records[item.name] = run_item(item, bench, left)
        save()
        print(summary(item.name, records[item.name]), flush=True)
    return all(record["status"] != "failed" for record in records.values())


def run_item(item: Item, bench: Bench, seconds: float) -> dict[str, Any]:
    """Run one item; return its status, seconds, peak memory, warnings and values."""
    bench.values, bench.problems = {}, []
    record: dict[str, Any] = {"status": "ok"}
    values, start = bench.values, time.monotonic()
    reset_peak(bench.device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            with time_limit(seconds):
                item.run(bench)
        except Skip as reason:
            record = skipped(str(reason))
        except OutOfTime:
            record = skipped(f"stopped after {time.monotonic() - start:.0f} s: the budget is spent")
        except Exception as error:  # noqa: BLE001  recorded; the next item is independent
            record = {"status": "failed", **describe(error)}
            bench.problems.append(one_line(error))
            bench.free(error)
    if bench.problems:
        record |= {"status": "failed", "error": "; ".join(bench.problems)}
    record |= {
        "seconds": time.monotonic() - start,
        "peak_gib": peak_gib(bench.device),
        "values": values,
    }
    messages = list(
        dict.fromkeys(
            str(w.message).strip().splitlines()[0] for w in caught if str(w.message).strip()
        )
    )
    if messages:
        record["warnings"] = [text[:300] for text in messages[:WARNINGS]]
    bench.values = {}
    bench.free()
    return record


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime after some seconds, between Python instructions, if the system can."""
    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def stop(*_: object) -> None:
        raise OutOfTime

    start, handler = time.monotonic(), signal.signal(signal.SIGALRM, stop)
    pending, _ = signal.setitimer(signal.ITIMER_REAL, max(0.001, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if pending:  # restart a timer that was set before, such as pytest's
            signal.setitimer(signal.ITIMER_REAL, max(0.001, pending - (time.monotonic() - start)))


def skipped(reason: str) -> dict[str, Any]:
    """Return the record of an item that did not run, or not to its end."""
    return {"status": "skipped", "reason": reason}


def one_line(error: BaseException) -> str:
    """Return type and first line of an error."""
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}"[:300]


def describe(error: BaseException) -> dict[str, Any]:
    """Return an error for the results: message and the end of its traceback."""
    frames = traceback.format_exception(error)
    return {"error": one_line(error), "traceback": "".join(frames).splitlines()[-12:]}


def summary(name: str, record: dict[str, Any]) -> str:
    """Return one or two lines about an item, for the terminal."""
    head = f"{name}: {record['status']}"
    if "seconds" in record:
        head += f", {record['seconds']:.1f} s, peak {record['peak_gib'] or 0:.1f} GiB"
    reason = record.get("error") or record.get("reason")
    values = json.dumps(readable(record.get("values", {})))
    return "\n  ".join(
        [head, *([reason] if reason else []), *([values[:1500]] if values != "{}" else [])]
    )


# Results


def readable(value: Any) -> Any:
    """Round to four significant digits; a value that is not finite becomes a word."""
    if isinstance(value, dict):
        return {str(k): readable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [readable(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    return value


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Replace the file in one step: a reader never sees half of the results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(readable(results), indent=1, allow_nan=False) + "\n"
    partial = path.with_name(path.name + ".part")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


# Measuring


def wait(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(function: Callable[[], Any], device: torch.device, repeats: int = 3) -> dict[str, float]:
    """Return the seconds of the first call, which warms up, and of the best of `repeats` more."""
    seconds = []
    for _ in range(1 + repeats):
        wait(device)
        start = time.perf_counter()
        function()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "best": min(seconds[1:])}


class PhaseClock:
    """Measures seconds between calls of `lap`, each after the device is idle."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, {}
        self.start = self.now()

    def now(self) -> float:
        """Wait until the device is idle; return the time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def lap(self, phase: str) -> None:
        """End a phase."""
        now = self.now()
        self.seconds[phase], self.start = now - self.start, now


def reset_peak(device: torch.device) -> None:
    """Reset the peak of allocated memory."""
    if device.type == "cuda":
        with suppress(RuntimeError):
            torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float | None:
    """Return the peak of allocated memory since `reset_peak`; None on a CPU."""
    if device.type != "cuda":
        return None
    with suppress(RuntimeError):
        return torch.cuda.max_memory_allocated(device) / GIB
    return None


def allocated_gib(device: torch.device) -> float | None:
    """Return the memory that is allocated now; None on a CPU."""
    return torch.cuda.memory_allocated(device) / GIB if device.type == "cuda" else None


def difference(value: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest entry."""
    exact = exact.double()
    return float((value.double() - exact).abs().max() / exact.abs().max())

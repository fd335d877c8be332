"""The cost of a run: seconds per phase, and with `profile=true` the work of each phase."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vistill.report.run_data import RunData, read_run

COLUMNS = ("prompt_tokens", "response_tokens", "patches", "head_rows")
HEADINGS = (
    "s/step",
    "share",
    "of floor",
    "prompt tok",
    "response tok",
    "patches",
    "head rows",
    "GFLOP",
    "peak MiB",
)


@dataclass(frozen=True)
class Phase:
    """One phase of the step, means over the profiled steps."""

    name: str
    seconds: float
    share: float
    """Share of the step's seconds."""
    floor: float
    """Seconds of its matrix products alone, at the measured FLOP rate."""
    work: dict[str, float] = field(default_factory=dict)

    def cells(self) -> list[str]:
        """Text cells, one per heading; empty if a phase has no such work."""
        counts = [f"{self.work[name]:,.0f}" if self.work.get(name) else "" for name in COLUMNS]
        of_floor = f"{self.floor / self.seconds:.0%}" if self.floor and self.seconds else ""
        flops = f"{self.work['flops'] / 1e9:,.1f}" if self.work.get("flops") else ""
        return [
            f"{self.seconds:.3f}",
            f"{self.share:.0%}",
            of_floor,
            *counts,
            flops,
            f"{self.work['peak_mib']:,.0f}",
        ]


@dataclass(frozen=True)
class ProfileTable:
    """The profile of a run: one row per phase."""

    name: str
    steps: tuple[int, int]
    """First and last profiled step. The first step of the run is a warm-up: left out if there are
    others."""
    rate: float
    """Floating-point operations per second of a single matrix product on this machine."""
    phases: list[Phase]
    """Sorted by time, the sum last."""
    outside_seconds: dict[str, float]
    """Seconds outside the steps, in the last process."""

    def sentence(self) -> str:
        """The summary line."""
        total, first, last = self.phases[-1], *self.steps
        steps = f"steps {first} to {last}" if last > first else f"step {first}"
        share = total.floor / total.seconds if total.seconds else 0.0
        return (
            f"profile of {self.name}, {steps}: {total.seconds:.3f} s per step; "
            f"matrix products alone: {total.floor:.3f} s "
            f"at the measured {self.rate / 1e9:,.0f} GFLOP/s ({share:.0%})"
        )

    def outside(self) -> str:
        """The seconds outside the steps; empty without a measurement."""
        return ", ".join(
            f"{name} {seconds:.1f} s" for name, seconds in self.outside_seconds.items()
        )

    def text(self) -> str:
        """The table for a terminal."""
        rows = [["", *HEADINGS], *([p.name, *p.cells()] for p in self.phases)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                [
                    row[0].ljust(widths[0]),
                    *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
                ]
            )
            for row in rows
        ]
        after = [f"outside the steps: {self.outside()}"] if self.outside_seconds else []
        return "\n".join([self.sentence(), *(line.rstrip() for line in lines), *after])


def make_profile(run: RunData) -> ProfileTable | None:
    """The profile of a run; None without `profile=true`."""
    records = [r for r in run.timing if "work" in r]
    records = records[1:] if len(records) > 1 else records
    if not records:
        return None
    names = dict.fromkeys(name for r in records for name in r["seconds"])
    total_seconds = sum(value for r in records for value in r["seconds"].values())
    phases = [average_phase(name, records, total_seconds) for name in names]
    total = average_phase(None, records, total_seconds)
    steps = (int(records[0]["step"]), int(records[-1]["step"]))
    phases.sort(key=lambda p: -p.seconds)
    return ProfileTable(
        run.name,
        steps,
        float(run.profile.get("rate", 0.0)),
        [*phases, total],
        run.profile.get("outside_seconds", run.profile.get("beside", {})),  # its older key
    )


def average_phase(
    name: str | None, records: Sequence[dict[str, Any]], total_seconds: float
) -> Phase:
    """Means of one phase, or of all phases together."""

    def select(table: dict[str, Any]) -> list[Any]:
        return [v for k, v in table.items() if name in (None, k)]

    seconds = sum(v for r in records for v in select(r["seconds"]))
    work: dict[str, float] = {}
    for totals in (t for r in records for t in select(r["work"])):
        for key, value in totals.items():
            work[key] = (
                max(work.get(key, 0.0), value) if key == "peak_mib" else work.get(key, 0.0) + value
            )
    mean = {
        key: value if key == "peak_mib" else value / len(records) for key, value in work.items()
    }
    return Phase(
        name or "step",
        seconds / len(records),
        seconds / total_seconds if total_seconds else 0.0,
        mean.pop("floor_seconds", 0.0),
        mean,
    )


def profile_text(path: Path) -> str:
    """The profile of a run folder for a terminal; empty if there is none."""
    table = make_profile(read_run(path))
    return table.text() if table else ""


def run_cost(run: RunData) -> dict[str, Any]:
    """Seconds per phase and tokens."""
    seconds = run.seconds()
    tokens = sum(float(r.get("rollout/tokens", 0)) for r in run.metrics)
    steps = max(1, len(run.timing))
    total = sum(seconds.values())
    return {
        "run": run.name,
        "steps": len(run.metrics),
        "tokens": int(tokens),
        "seconds": total,
        "per_step": total / steps,
        "peak": run.peak_mib(),
        "phases": sorted(seconds.items(), key=lambda kv: -kv[1]),
    }

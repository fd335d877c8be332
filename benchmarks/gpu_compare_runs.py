"""Processes with a deadline, and what finished and unfinished runs of a comparison show."""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from vistill.display.live_line import join_parts
from vistill.runs.folder import RunFolder
from vistill.runs.storage import read_lines
from vistill.studies.arms import Arm
from vistill.studies.compare_table import mean_figures
from vistill.studies.processes import POLL_SECONDS, ArmProcess, last_record

#: Seconds between two lines about what runs now.
SHOW_SECONDS = 20.0
#: Accuracies of an evaluation: at T = 1, and greedy.
ACCURACIES = {"sampled": "accuracy", "greedy": "greedy_accuracy"}
Curve = Mapping[int, Mapping[str, float]]
"""Step -> accuracies of its evaluation."""


@dataclass(frozen=True)
class Outcome:
    """How the process of an arm ended."""

    status: str = "not started"
    """`not started`, `running`, `finished`, `failed`, or `stopped` at the deadline."""
    seconds: float = 0.0
    peak_mib: float = 0.0
    """Peak of host memory."""
    why: str = ""
    """The error of a failed process, with its last lines of output."""


def run_until(
    arms: Sequence[Arm],
    at_once: int,
    deadline: float,
    is_enough: Callable[[], bool] = lambda: False,
    report: Callable[[Mapping[str, Outcome]], None] = lambda _: None,
) -> dict[str, Outcome]:
    """Run arms side by side until all have ended, the deadline has come, or it is enough.

    An arm that fails does not stop the others. Whatever runs at the end is killed.

    Args:
        arms: the arms with their commands, in the order in which they start.
        at_once: number of processes at the same time.
        deadline: on the clock `time.monotonic`.
        is_enough: whether the rest may be stopped; asked between polls.
        report: called from time to time with what is known so far.

    Returns:
        By name of an arm how it ended.
    """
    outcomes = {arm.name: Outcome() for arm in arms}
    waiting, running, shown = list(arms), [], time.monotonic()
    try:
        while (waiting or running) and time.monotonic() < deadline and not is_enough():
            while waiting and len(running) < at_once:
                running.append(ArmProcess(waiting.pop(0)))
                outcomes[running[-1].arm.name] = Outcome("running")
            time.sleep(POLL_SECONDS)
            running = [process for process in running if not has_ended(process, outcomes)]
            if time.monotonic() - shown > SHOW_SECONDS:
                shown = time.monotonic()
                print(f"   {join_parts([p for r in running for p in r.parts()])}", flush=True)
                try_to(report, outcomes)
    finally:
        for process in running:
            kill(process)
            ended = process.code == 0  # between the last poll and now
            outcomes[process.arm.name] = Outcome("finished" if ended else "stopped", *process.cost)
    return outcomes


def try_to(report: Callable[[Mapping[str, Outcome]], None], outcomes: dict[str, Outcome]) -> None:
    """Report while the arms run. An error is printed: it must not end them."""
    try:
        report(outcomes)
    except Exception as error:  # noqa: BLE001  the report at the end raises it
        print(f"   not reported: {type(error).__name__}: {error}", flush=True)


def has_ended(process: ArmProcess, outcomes: dict[str, Outcome]) -> bool:
    """Whether a process has ended by itself; if so, note how."""
    if not process.has_ended():
        return False
    status, why = "finished", ""
    if process.code != 0:
        status, why = "failed", f"{process.error()}\n{process.last_lines(20)}"
    outcomes[process.arm.name] = Outcome(status, *process.cost, why)
    print(f"   {process.arm.name}: {status}, {process.cost.wall_seconds:.0f} s", flush=True)
    if why:
        print(f"   {why}", flush=True)
    return True


def kill(process: ArmProcess) -> None:
    """End a process of ours and its own children at once: its logs hold what it measured."""
    with suppress(ProcessLookupError):
        os.killpg(process.process.pid, signal.SIGKILL)
    while not process.has_ended():
        time.sleep(0.02)


# Results of runs


def curve_of(arm: Arm) -> dict[int, dict[str, float]]:
    """The accuracies of each evaluation of a run so far."""
    return {
        record["step"]: {name: record[key] for name, key in ACCURACIES.items() if key in record}
        for record in read_lines(RunFolder(arm.folder).evaluations)
    }


def describe_run(arm: Arm, outcome: Outcome) -> dict[str, Any]:
    """What a run measured: accuracies, seconds, updates and the method's figures."""
    folder, curve = RunFolder(arm.folder), curve_of(arm)
    steps, timing = sorted(curve), list(read_lines(folder.timing))
    return {
        **asdict(outcome),
        "updates": last_record(folder.metrics).get("step", 0),
        "before": curve.get(0),
        "after": curve[steps[-1]] if steps else None,
        "after_step": steps[-1] if steps else None,
        "curve": [{"step": step, **curve[step]} for step in steps],
        "compute": sum(
            phase.get("flops", 0.0) / 1e12 for r in timing for phase in r.get("work", {}).values()
        ),
        "seconds_per_update": mean_seconds(timing),
        "peak_mib_of_updates": max((r["peak_mib"] for r in timing), default=None),
        "figures": mean_figures(list(read_lines(folder.metrics))),
    }


def mean_seconds(timing: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean seconds of each phase of an update, without the first one, which warms up."""
    later = [record["seconds"] for record in timing[1:] or timing]
    phases = dict.fromkeys(phase for record in later for phase in record)
    return {phase: fmean([record.get(phase, 0.0) for record in later]) for phase in phases}


def common_step(curves: Sequence[Curve]) -> int | None:
    """The last step after 0 that all these runs have evaluated; None if there is none."""
    steps = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    return max(steps - {0}, default=None)


def compare_runs(
    curves: Mapping[tuple[str, int], Curve], arms: Sequence[str], last: int
) -> list[dict[str, Any]]:
    """Each later arm minus each earlier one, seed by seed, at the last step that all arms reached.

    Args:
        curves: by arm and seed the evaluations of a run.
        arms: in order.
        last: the step of a finished run's last evaluation.

    Returns:
        One record per pair of arms. A seed whose arms did not all reach `last` is `unfinished`;
        a seed without a common step is left out and named in `seeds_without_a_step`.
    """
    seeds = sorted({seed for _, seed in curves})
    by_seed = {s: {a: curves.get((a, s), {}) for a in arms} for s in seeds}
    steps = {seed: common_step(list(of_arm.values())) for seed, of_arm in by_seed.items()}
    records = []
    for place, arm in enumerate(arms):
        for base in reversed(arms[:place]):
            rows = [
                difference(by_seed[seed][arm], by_seed[seed][base], step)
                | {"seed": seed, "step": step, "unfinished": step < last}
                for seed, step in steps.items()
                if step is not None
            ]
            records.append({"arm": arm, "minus": base, **summary(rows), "seeds": rows})
            records[-1]["seeds_without_a_step"] = [s for s, step in steps.items() if step is None]
    return records


def difference(ours: Curve, theirs: Curve, step: int) -> dict[str, float]:
    """Our accuracies minus theirs at a step."""
    both = ours[step].keys() & theirs[step].keys()
    return {name: ours[step][name] - theirs[step][name] for name in ACCURACIES if name in both}


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean difference over seeds and number of seeds in which it is positive, by accuracy."""
    answer: dict[str, Any] = {"unfinished": any(row["unfinished"] for row in rows)}
    for name in ACCURACIES:
        values = [row[name] for row in rows if name in row]
        answer[f"mean_{name}"] = fmean(values) if values else None
        answer[f"ahead_{name}"] = sum(value > 0 for value in values)
    return answer


def unmatched_seeds(curves: Mapping[tuple[str, int], Curve]) -> list[int]:
    """Seeds whose arms did not start from the same accuracies."""
    starts: dict[int, list[Mapping[str, float]]] = {}
    for (_, seed), curve in curves.items():
        if 0 in curve:
            starts.setdefault(seed, []).append(curve[0])
    return [seed for seed, values in starts.items() if any(v != values[0] for v in values)]

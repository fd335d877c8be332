"""Several models on the same benchmarks: paired differences to the first, the matrix, CSV."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vistill.evaluation.benchmarks.benchmark import Benchmark, ScoredReply
from vistill.evaluation.benchmarks.catalogue import BENCHMARKS, SUITES, Suite
from vistill.evaluation.benchmarks.lm_judge import with_kept_verdicts
from vistill.evaluation.benchmarks.pairs import Difference, interval_of, paired_results
from vistill.evaluation.benchmarks.results import (
    is_partial,
    missing_lines,
    protocol_line,
)
from vistill.evaluation.benchmarks.sample_log import NOT_COMPARED, read_header, read_samples

#: Facts of a log that say which model answered, not how it was asked.
OF_MODEL = (*NOT_COMPARED, "log", "version", "weights", "task", "protocol")
DIFFERENCE_COLUMNS = (
    "model", "baseline", "task", "protocol", "mode", "category", "metric", "difference", "low",
    "high", "value", "baseline_value", "units", "clusters", "rows", "mismatched",
)  # fmt: skip


def compare_models(
    results: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Collection[str]] | None = None
) -> dict[str, Any]:
    """The results of several models, with the paired differences of each to the first one.

    Args:
        results: of each model by name, as `run_benchmarks` returns them; their logs are read.
        rows: by benchmark the ids of the rows that were asked; without it all that logs have.
    """
    names = list(results)
    first = results[names[0]]
    pairs: dict[str, Any] = {}
    for name in names[1:]:
        tasks: dict[str, Any] = {}
        draws: dict[str, dict[str, dict[str, Difference]]] = {}
        for task in results[name]["tasks"]:
            if task in first["tasks"]:
                sides = [results[name]["tasks"][task], first["tasks"][task]]
                logs = [Path(one["log"]) for one in sides]
                judges = [one.get("judge", {}).get("model", "") for one in sides]
                chosen = None if rows is None else rows.get(task)
                tasks[task], draws[task] = compare_logs(task, logs[0], logs[1], chosen, judges)
                if sides[0]["rule"] != sides[1]["rule"]:
                    own = [one["rule"] for one in sides]
                    tasks[task]["settings_differ"][f"rule of {task}"] = own
        compared = {}
        if "suite" in results[name] and "suite" in first:
            suite = SUITES[results[name]["suite"]["name"]]
            compared = compare_suite(suite, results[name], first, draws)
        pairs[name] = {"tasks": tasks, "suite": compared}
    return {
        "baseline": names[0],
        "order": names,
        "protocol": first["protocol"],
        "changed": first["changed"],
        "data": first["data"],
        "missing": first["missing"],
        "models": dict(results),
        "pairs": pairs,
    }


def compare_logs(
    task: str,
    log: Path,
    baseline: Path,
    rows: Collection[str] | None,
    judges: Sequence[str] = ("", ""),
) -> tuple[dict[str, Any], dict[str, dict[str, Difference]]]:
    """The differences of one benchmark by mode, on the rows and samples that both logs have.

    A row that was asked in other words or with another picture is counted in `mismatched`.

    Args:
        task: the benchmark.
        log: of the model.
        baseline: of the first model.
        rows: that count; None takes all.
        judges: models whose kept verdicts count on each side; empty takes those of the log.
    """
    benchmark = BENCHMARKS[task]
    contents, others = contents_of(log), contents_of(baseline)
    common = contents.keys() & others.keys()
    same = {row for row in common if contents[row] == others[row]}
    chosen = same if rows is None else same & set(rows)
    headers = read_header(log), read_header(baseline)
    counts = [(header.get("asked") or {}).get("samples", {}) for header in headers]
    modes: dict[str, Any] = {}
    draws: dict[str, dict[str, Difference]] = {}
    for mode in (mode for mode in counts[0] if mode in counts[1]):
        count = min(counts[0][mode], counts[1][mode])
        left = replies_of(log, benchmark, (mode, count), chosen, judges[0])
        right = replies_of(baseline, benchmark, (mode, count), chosen, judges[1])
        if left and right:
            modes[mode], draws[mode] = paired_results(benchmark, left, right)
    mismatched = len(common) - len(same)
    differ = {
        name: [header.get(name) for header in headers]
        for name in headers[0]
        if name not in OF_MODEL and headers[0][name] != headers[1].get(name)
    }
    return {"modes": modes, "mismatched": mismatched, "settings_differ": differ}, draws


def contents_of(log: Path) -> dict[str, str]:
    """By row what was asked: the hash of question and pictures."""
    return {sample.row.id: sample.content for sample in read_samples(log)}


def replies_of(
    log: Path,
    benchmark: Benchmark,
    part: tuple[str, int],
    rows: Collection[str],
    judge: str = "",
) -> list[ScoredReply]:
    """The first samples of rows in one mode, given with their number."""
    mode, count = part
    samples = (
        sample
        for sample in read_samples(log, benchmark.rules)
        if sample.mode == mode and sample.sample < count and sample.row.id in rows
    )
    return [one.scored() for one in with_kept_verdicts(samples, benchmark, log, judge)]


def compare_suite(
    suite: Suite,
    results: Mapping[str, Any],
    first: Mapping[str, Any],
    draws: Mapping[str, Mapping[str, Mapping[str, Difference]]],
) -> dict[str, dict[str, dict[str, float]]]:
    """By mode the differences of the averages of a suite; none over a part or a PARTIAL result."""
    compared: dict[str, dict[str, dict[str, float]]] = {}
    for mode, facts in results["suite"]["modes"].items():
        other = first["suite"]["modes"].get(mode, {"averages": {}})
        for name, titles in suite.averages.items():
            values = facts["averages"].get(name), other["averages"].get(name)
            if values[0] is None or values[1] is None:
                continue
            parts = [
                draws[column.benchmark][mode][column.metric_name()]
                for column in suite.columns
                if column.title in titles
            ]
            value = float(np.mean([part.value for part in parts]))
            drawn = np.mean([part.draws for part in parts], axis=0)
            low, high = interval_of(value, drawn, min(part.clusters for part in parts))
            sides = {"first": values[0], "second": values[1]}
            own = {"value": value, "low": low, "high": high, **sides}
            compared.setdefault(mode, {})[name] = own
    return compared


def difference_rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per difference, with values of `DIFFERENCE_COLUMNS`."""
    for name, pair in results["pairs"].items():
        sides = {"model": name, "baseline": results["baseline"], "protocol": results["protocol"]}
        for task, compared in pair["tasks"].items():
            for mode, facts in compared["modes"].items():
                parts = {"": facts["metrics"]} | facts["categories"]
                for category, values in parts.items():
                    for metric, one in values.items():
                        yield {
                            **sides, "task": task, "mode": mode, "category": category,
                            "metric": metric, **named_difference(one), "rows": facts["rows"],
                            "mismatched": compared["mismatched"],
                        }  # fmt: skip


def named_difference(one: Mapping[str, float]) -> dict[str, float]:
    """A difference under the names of the columns."""
    renamed = {"value": "difference", "first": "value", "second": "baseline_value"}
    return {renamed.get(name, name): value for name, value in one.items()}


def matrix_rows(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Benchmark, metric and mode of every line of the matrix: the headlines, in order."""
    tasks = dict.fromkeys(task for one in results["models"].values() for task in one["tasks"])
    for task in tasks:
        present = [one["tasks"][task] for one in results["models"].values() if task in one["tasks"]]
        for mode in dict.fromkeys(mode for one in present for mode in one["modes"]):
            yield task, BENCHMARKS[task].headline, mode


def matrix_table(results: Mapping[str, Any]) -> str:
    """Benchmarks by models as text: the headline of each, and differences to the first model."""
    names, first = list(results["models"]), results["baseline"]
    lines = [f"{'protocol':<10} {protocol_line(results)}", f"{'data':<10} {results['data']}", ""]
    head = ["", *names, *(f"{name} - {first}" for name in names[1:])]
    body = [[row_label(results, *row), *cells(results, *row)] for row in matrix_rows(results)]
    body += list(average_rows(results))
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    for row in [head, *body]:
        aligned = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *aligned]).rstrip())
    lines.append("")
    lines.append("percent, and differences in points with their 95 % interval, on the same rows")
    return "\n".join([*lines, *note_lines(results), *missing_lines(results)])


def row_label(results: Mapping[str, Any], task: str, metric: str, mode: str) -> str:
    """`We-Math mean, avg@8`."""
    present = (one["tasks"].get(task, {}) for one in results["models"].values())
    labels = [one["modes"][mode]["label"] for one in present if mode in one.get("modes", {})]
    return f"{BENCHMARKS[task].title} {metric}, {labels[0]}"


def cells(results: Mapping[str, Any], task: str, metric: str, mode: str) -> list[str]:
    """The values of the models, and the differences."""
    values = []
    for one in results["models"].values():
        facts = one["tasks"].get(task, {}).get("modes", {}).get(mode, {})
        score = facts.get("metrics", {}).get(metric)
        mark = " PARTIAL" if task in one["tasks"] and is_partial(one["tasks"][task]) else ""
        values.append("-" if score is None else f"{100 * score['value']:.1f}{mark}")
    for pair in results["pairs"].values():
        compared = pair["tasks"].get(task, {}).get("modes", {}).get(mode, {})
        values.append(points(compared.get("metrics", {}).get(metric)))
    return values


def average_rows(results: Mapping[str, Any]) -> Iterator[list[str]]:
    """The averages of a suite; `-` over a part."""
    suites = [one.get("suite", {"modes": {}}) for one in results["models"].values()]
    for mode, facts in suites[0]["modes"].items():
        for name in facts["averages"]:
            own = [suite["modes"].get(mode, facts)["averages"][name] for suite in suites]
            values = ["-" if value is None else f"{100 * value:.1f}" for value in own]
            compared = (pair["suite"].get(mode, {}) for pair in results["pairs"].values())
            yield [f"{name}, {mode}", *values, *(points(one.get(name)) for one in compared)]


def points(one: Mapping[str, float] | None) -> str:
    """`+3.1 [-0.2, +6.4]`: a difference in percentage points."""
    if one is None:
        return "-"
    low, high = 100 * one["low"], 100 * one["high"]
    return f"{100 * one['value']:+.1f} [{low:+.1f}, {high:+.1f}]"


def note_lines(results: Mapping[str, Any]) -> list[str]:
    """What limits the comparison: parts of benchmarks, rows asked otherwise, other settings."""
    notes: list[str] = []
    tasks = [task for one in results["models"].values() for task in one["tasks"].items()]
    subsets = dict.fromkeys(name for name, task in tasks if task["subset"])
    if subsets:
        notes.append(f"subset: ours: {', '.join(subsets)}")
    for name, pair in results["pairs"].items():
        for task, compared in pair["tasks"].items():
            if compared["mismatched"]:
                count = f"{compared['mismatched']:,} rows of {task}"
                notes.append(f"{count} were asked otherwise of {name} and are not compared")
        differ = {k: v for one in pair["tasks"].values() for k, v in one["settings_differ"].items()}
        for fact, (own, first) in differ.items():
            notes.append(f"{name} was asked with {fact} {own}, {results['baseline']} with {first}")
    return notes


def names_of(targets: Sequence[str]) -> list[str]:
    """A short name for each model, for folders and tables: the shortest ends that differ.

    `runs/a/student` and `runs/b/student` are `a-student` and `b-student`.
    """
    parts = [[part for part in target.replace(":", "-").split("/") if part not in ("", ".", "..")]
             for target in targets]  # fmt: skip
    longest = max(map(len, parts))
    for length in range(1, longest + 1):
        names = ["-".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return ["-".join(part) for part in parts]

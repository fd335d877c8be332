"""The results of benchmarks as plain values, as a table and as CSV."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from vistill.evaluation.benchmarks.benchmark import Benchmark, BenchmarkRow, ScoredReply
from vistill.evaluation.benchmarks.catalogue import BENCHMARKS, Suite
from vistill.evaluation.benchmarks.protocols import GREEDY
from vistill.evaluation.benchmarks.sample_log import Sample
from vistill.evaluation.benchmarks.scores import score_benchmark

#: Categories with more values, or with longer names, are written to the files and not printed.
MOST_PRINTED, LONGEST_PRINTED = 20, 32
CSV_COLUMNS: tuple[str, ...] = (
    "task", "protocol", "mode", "category", "metric", "value", "low", "high", "units", "clusters",
    "subset", "partial", "rule",
)  # fmt: skip


def task_results(
    benchmark: Benchmark,
    samples: Iterable[Sample],
    counts: Mapping[str, int],
    rule: str = "",
    asked: int = 0,
) -> dict[str, Any]:
    """The scores of the samples of one benchmark, by mode; texts are not kept.

    Args:
        benchmark: its metrics.
        samples: read once, one at a time.
        counts: by mode the samples of each row; others are left out.
        rule: what judged them, if it is not the benchmark's own rule.
        asked: rows that were to be asked; by default those that have a sample.
    """
    replies: dict[str, list[ScoredReply]] = {mode: [] for mode in counts}
    seconds = dict.fromkeys(counts, 0.0)
    rows: dict[str, BenchmarkRow] = {}
    for sample in samples:
        if sample.mode in counts and sample.sample < counts[sample.mode]:
            row = rows.setdefault(sample.row.id, replace(sample.row, question=""))
            replies[sample.mode].append(replace(sample.scored(), row=row))
            seconds[sample.mode] += sample.seconds
    counted = sum(map(benchmark.is_counted, rows.values()))
    modes = {
        mode: {
            "label": "greedy" if mode == GREEDY else f"avg@{counts[mode]}",
            **score_benchmark(benchmark, part),
            "seconds": seconds[mode] / max(1, len(part)),
        }
        for mode, part in replies.items()
        if part
    }
    return {
        "title": benchmark.title,
        "rows": counted,
        "other_rows": len(rows) - counted,
        "whole": benchmark.rows,
        "missing_replies": sum(
            max(asked, len(rows)) * counts[mode] - len(part) for mode, part in replies.items()
        ),
        "rule": rule or ", ".join(benchmark.rules),
        "headline": benchmark.headline,
        "licence": benchmark.licence,
        "subset": "" if counted >= benchmark.rows else "ours",
        "failed": [],
        "modes": modes,
    }


def is_partial(task: Mapping[str, Any]) -> bool:
    """Whether rows failed or replies are missing."""
    return bool(task["failed"] or task["missing_replies"])


def suite_results(suite: Suite, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a suite by mode, and its averages.

    An average is None if a column is not measured, or if its benchmark is partial.
    """
    partial = {name for name, task in tasks.items() if is_partial(task)}
    whole = {c.title for c in suite.columns if c.benchmark not in partial}
    modes: dict[str, dict[str, Any]] = {}
    for mode in dict.fromkeys(mode for task in tasks.values() for mode in task["modes"]):
        columns: dict[str, float | None] = {}
        for column in suite.columns:
            facts = tasks.get(column.benchmark, {}).get("modes", {}).get(mode, {})
            score = facts.get("metrics", {}).get(column.metric_name())
            columns[column.title] = None if score is None else score["value"]
        averages: dict[str, float | None] = {}
        for name, titles in suite.averages.items():
            values = [value for title in titles if (value := columns[title]) is not None]
            is_whole = len(values) == len(titles) and whole.issuperset(titles)
            averages[name] = sum(values) / len(values) if is_whole else None
        modes[mode] = {"columns": columns, "averages": averages}
    return {"name": suite.name, "modes": modes}


def results_table(results: Mapping[str, Any]) -> str:
    """All results as text."""
    lines = [f"{'model':<10} {results['model']}", f"{'protocol':<10} {protocol_line(results)}"]
    if results.get("data"):
        lines.append(f"{'data':<10} {results['data']}")
    for name, task in results["tasks"].items():
        lines += ["", *task_lines(BENCHMARKS[name], task)]
    lines += suite_lines(results)
    return "\n".join(lines)


def protocol_line(results: Mapping[str, Any]) -> str:
    """The protocol, and what a user changed in it."""
    changed = ", ".join(f"{name} {value}" for name, value in results["changed"].items())
    return results["protocol"] + (f"   changed: {changed}" if changed else "")


def task_lines(benchmark: Benchmark, task: Mapping[str, Any]) -> list[str]:
    """One benchmark: its rows, every metric with its interval, shares, and categories."""
    marks = [f"subset: {task['subset']}"] if task["subset"] else []
    marks += [f"PARTIAL: {len(task['failed']):,} rows failed"] if task["failed"] else []
    missing = task["missing_replies"]
    marks += [f"PARTIAL: {missing:,} replies are missing"] if missing else []
    marks += [f"failed: {count:,} {code}" for code, count in task.get("failures", {}).items()]
    whole = f"{task['rows']:,} of {benchmark.rows:,} rows"
    whole += f" and {task['other_rows']:,} others" if task.get("other_rows") else ""
    head = [f"{task['title']}   {'   '.join([whole, *marks])}   rule: {task['rule']}"]
    for mode in task["modes"].values():
        head.append(f"  {mode['label']}")
        metrics = mode["metrics"]
        order = sorted(metrics, key=lambda name: name != benchmark.headline)
        head += [score_line(name, metrics[name], 4) for name in order]
        unparsed, cut = 100 * mode["unparsed_share"], 100 * mode["truncated_share"]
        facts = f"unparsed {unparsed:.1f} %, truncated {cut:.1f} %, {mode['tokens']:,.0f} tokens"
        seconds = f", {mode['seconds']:.2f} s" if mode.get("seconds") is not None else ""
        head.append(f"    {facts}{seconds} per response")
        for fact, values in mode["categories"].items():
            if len(values) <= MOST_PRINTED and max(map(len, values)) <= LONGEST_PRINTED:
                head.append(f"    by {fact}")
                head += [score_line(name, score, 6) for name, score in values.items()]
    return head


def score_line(name: str, score: Mapping[str, float], indent: int) -> str:
    """A value in percent, its interval and its denominator."""
    low, high = 100 * score["low"], 100 * score["high"]
    text = f"{' ' * indent}{name}"
    band = f"95 % [{low:5.1f}, {high:5.1f}]"
    groups = f"{score['clusters']:,} group{'' if score['clusters'] == 1 else 's'}"
    clusters = "" if score["clusters"] == score["units"] else f" in {groups}"
    return f"{text:<38} {100 * score['value']:5.1f}   {band}   on {score['units']:,}{clusters}"


def suite_lines(results: Mapping[str, Any]) -> list[str]:
    """The row of a suite as the paper's table has it; an average over a part is not printed."""
    suite = results.get("suite")
    lines: list[str] = []
    if suite:
        for mode in suite["modes"].values():
            values = {**mode["columns"], **mode["averages"]}
            lines.append("")
            for title, value in values.items():
                lines.append(f"{title:<24} {'-' if value is None else f'{100 * value:.1f}'}")
        if any(task["subset"] for task in results["tasks"].values()):
            lines.append("subset: ours: not the rows of the paper's column")
        partial = [name for name, task in results["tasks"].items() if is_partial(task)]
        if partial:
            lines.append(f"PARTIAL: {', '.join(partial)}; no average over them")
    missing = results.get("missing") or {}
    if missing:
        lines += ["", f"not here: {', '.join(missing)}   (docs/benchmarks.md)"]
    return lines


def csv_rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per metric and category, with values of `CSV_COLUMNS`."""
    for name, task in results["tasks"].items():
        common = {
            "task": name,
            "protocol": results["protocol"],
            "subset": task["subset"],
            "partial": is_partial(task),
            "rule": task["rule"],
        }
        for label, mode in task["modes"].items():
            parts = {"": mode["metrics"]} | mode["categories"]
            for category, values in parts.items():
                for metric, score in values.items():
                    own = {"mode": label, "category": category, "metric": metric}
                    yield {**common, **own, **score}

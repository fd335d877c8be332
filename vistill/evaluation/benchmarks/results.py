"""The results of benchmarks as plain values, as a table and as CSV."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vistill.evaluation.benchmarks.benchmark import Benchmark, BenchmarkRow, ScoredReply
from vistill.evaluation.benchmarks.catalogue import BENCHMARKS, Suite
from vistill.evaluation.benchmarks.pairs import paired_results
from vistill.evaluation.benchmarks.protocols import GREEDY, decoding_of, view_of
from vistill.evaluation.benchmarks.reducers import (
    MAJORITY,
    Reducer,
    lacks_answers,
    reduced_scores,
)
from vistill.evaluation.benchmarks.sample_log import Sample
from vistill.evaluation.benchmarks.sample_signals import SIGNAL, SignalMeans, signal_lines
from vistill.evaluation.benchmarks.scores import score_benchmark
from vistill.types import View

#: Categories with more values, or with longer names, are written to the files and not printed.
MOST_PRINTED, LONGEST_PRINTED = 20, 32
CSV_COLUMNS: tuple[str, ...] = (
    "task", "protocol", "mode", "category", "metric", "value", "low", "high", "units", "clusters",
    "subset", "partial", "rule", "reducer", "model",
)  # fmt: skip
#: What a gap is called as a reducer in tables: a difference, not a score.
GAP = "gap"


@dataclass(frozen=True)
class Wanted:
    """What was to be asked, and what else is computed of it."""

    rows: int = 0
    """By default those that have a sample."""
    blind_rows: int | None = None
    """Rows with a picture, of which alone the blind modes are asked; None is all."""
    reducers: tuple[Reducer, ...] = ()

    def num_rows(self, mode: str, present: int) -> int:
        """The rows of a mode."""
        if view_of(mode) != View.FULL and self.blind_rows is not None:
            return self.blind_rows
        return max(self.rows, present)


def task_results(
    benchmark: Benchmark,
    samples: Iterable[Sample],
    counts: Mapping[str, int],
    rule: str = "",
    wanted: Wanted = Wanted(),
) -> dict[str, Any]:
    """The scores of the samples of one benchmark, by mode; texts are not kept.

    A blind mode has its `gap` too: the metrics with the picture minus those without, on its rows.

    Args:
        benchmark: its metrics.
        samples: read once, one at a time.
        counts: by mode the samples of each row; others are left out.
        rule: what judged them, if it is not the benchmark's own rule.
        wanted: rows that were to be asked, and reducers.
    """
    replies: dict[str, list[ScoredReply]] = {mode: [] for mode in counts}
    seconds = dict.fromkeys(counts, 0.0)
    signals = {mode: SignalMeans() for mode in counts}
    rows: dict[str, BenchmarkRow] = {}
    for sample in samples:
        if sample.mode in counts and sample.sample < counts[sample.mode]:
            row = rows.setdefault(sample.row.id, replace(sample.row, question=""))
            replies[sample.mode].append(replace(sample.scored(), row=row))
            seconds[sample.mode] += sample.seconds
            signals[sample.mode].add(row.id, row.cluster, sample.signals)
    counted = sum(map(benchmark.is_counted, rows.values()))
    modes = {
        mode: {
            "label": mode_label(mode, counts[mode]),
            **score_benchmark(benchmark, part),
            "seconds": seconds[mode] / max(1, len(part)),
            **reductions(benchmark, part, counts[mode], wanted.reducers),
            **signals[mode].results(),
        }
        for mode, part in replies.items()
        if part
    }
    for mode in modes:
        full = replies.get(decoding_of(mode), [])
        if view_of(mode) != View.FULL and full:
            modes[mode]["gap"] = paired_results(benchmark, full, replies[mode])[0]
    return {
        "title": benchmark.title,
        "rows": counted,
        "other_rows": len(rows) - counted,
        "whole": benchmark.rows,
        "missing_replies": sum(
            wanted.num_rows(mode, len(rows)) * counts[mode] - len(part)
            for mode, part in replies.items()
        ),
        "rule": rule or ", ".join(benchmark.rules),
        "headline": benchmark.headline,
        "licence": benchmark.licence,
        "subset": "" if counted >= benchmark.rows else "ours",
        "failed": [],
        "modes": modes,
    }


def reductions(
    benchmark: Benchmark, replies: Sequence[ScoredReply], count: int, reducers: Sequence[Reducer]
) -> dict[str, Any]:
    """The values of the reducers, and those that have none with the reason."""
    facts: dict[str, Any] = {"reduced": reduced_scores(benchmark, replies, count, reducers)}
    if any(reducer.kind == MAJORITY for reducer in reducers) and lacks_answers(replies):
        reason = "the judge says right or wrong, and not what a reply answers"
        facts["not_reduced"] = {MAJORITY: reason}
    return facts


def mode_label(mode: str, count: int) -> str:
    """`greedy`, `avg@8`, `avg@8, text_only`."""
    decoding, view = decoding_of(mode), view_of(mode)
    label = "greedy" if decoding == GREEDY else f"avg@{count}"
    return label if view == View.FULL else f"{label}, {view}"


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
        for reducer, scores in mode.get("reduced", {}).items():
            name = benchmark.headline if benchmark.headline in scores else "rows"
            head.append(score_line(f"{reducer} {name}", scores[name], 4))
        head += [f"    {name}: none, {why}" for name, why in mode.get("not_reduced", {}).items()]
        gaps = mode.get("gap", {}).get("metrics", {})
        if benchmark.headline in gaps:
            name = f"gap of {benchmark.headline}"
            head.append(difference_line(name, gaps[benchmark.headline], 4))
        unparsed, cut = 100 * mode["unparsed_share"], 100 * mode["truncated_share"]
        facts = f"unparsed {unparsed:.1f} %, truncated {cut:.1f} %, {mode['tokens']:,.0f} tokens"
        seconds = f", {mode['seconds']:.2f} s" if mode.get("seconds") is not None else ""
        head.append(f"    {facts}{seconds} per response")
        head += signal_lines(mode.get("signals", {}))
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


def difference_line(name: str, one: Mapping[str, float], indent: int) -> str:
    """A difference in percentage points, its interval and its denominator."""
    text, groups = f"{' ' * indent}{name}", one["clusters"]
    band = f"95 % [{100 * one['low']:+5.1f}, {100 * one['high']:+5.1f}]"
    clusters = "" if groups == one["units"] else f" in {groups:,} groups"
    return f"{text:<38} {100 * one['value']:+5.1f}   {band}   on {one['units']:,}{clusters}"


def suite_lines(results: Mapping[str, Any]) -> list[str]:
    """The row of a suite as the paper's table has it; an average over a part is not printed."""
    suite = results.get("suite")
    lines: list[str] = []
    if suite:
        for name, mode in suite["modes"].items():
            values = {**mode["columns"], **mode["averages"]}
            lines += ["", f"{suite['name']}, {name}"]
            for title, value in values.items():
                lines.append(f"{title:<24} {'-' if value is None else f'{100 * value:.1f}'}")
        if any(task["subset"] for task in results["tasks"].values()):
            lines.append("subset: ours: not the rows of the paper's column")
        partial = [name for name, task in results["tasks"].items() if is_partial(task)]
        if partial:
            lines.append(f"PARTIAL: {', '.join(partial)}; no average over them")
    return lines + missing_lines(results)


def missing_lines(results: Mapping[str, Any]) -> list[str]:
    """The benchmarks of a suite that are not here."""
    missing = results.get("missing") or {}
    return ["", f"not here: {', '.join(missing)}   (docs/benchmarks.md)"] if missing else []


def csv_rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per metric and category, with values of `CSV_COLUMNS`; a gap is a difference."""
    for name, task in results["tasks"].items():
        common = {
            "task": name,
            "protocol": results["protocol"],
            "subset": task["subset"],
            "partial": is_partial(task),
            "rule": task["rule"],
            "model": results["model"],
        }
        for label, mode in task["modes"].items():
            own = {**common, "mode": label}
            for reducer, category, values in score_parts(mode):
                for metric, score in values.items():
                    names = {"category": category, "metric": metric, "reducer": reducer}
                    yield {**own, **names, **score}


def score_parts(mode: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Reducer, category and values of everything that a mode reports."""
    yield "mean", "", mode["metrics"]
    for category, values in mode["categories"].items():
        yield "mean", category, values
    for reducer, values in mode.get("reduced", {}).items():
        yield reducer, "", values
    yield SIGNAL, "", mode.get("signals", {}).get("means", {})
    gap = mode.get("gap", {"metrics": {}, "categories": {}})
    yield GAP, "", gap["metrics"]
    for category, values in gap["categories"].items():
        yield GAP, category, values

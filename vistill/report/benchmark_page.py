"""The page of benchmark runs: one offline HTML file with everything that their results say.

The papers' values stand in columns of their own: other weights and other data.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vistill.evaluation.benchmarks.benchmark import Benchmark
from vistill.evaluation.benchmarks.catalogue import BENCHMARKS, SUITES, Suite
from vistill.evaluation.benchmarks.comparing import matrix_rows, note_lines, points, row_label
from vistill.evaluation.benchmarks.protocols import decoding_of, view_of
from vistill.evaluation.benchmarks.results import GAP, is_partial, protocol_line, score_parts
from vistill.evaluation.benchmarks.sample_signals import NAMES, SIGNAL, signal_notes
from vistill.report.page import page_environment
from vistill.types import View

NONE = "–"
#: Decodings that the paper's value `a/b` stands for.
TWO_VALUES: tuple[str, ...] = ("greedy", "sampled")


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper in the columns of our suite."""

    title: str
    source: str
    protocol: str
    """What its values are."""
    rows: Sequence[tuple[str, Mapping[str, Any]]]
    """Label and, by column of the suite, the value as the paper prints it."""


@dataclass(frozen=True)
class Grid:
    """A table of the page."""

    title: str
    head: Sequence[str]
    """The first column is the label."""
    rows: Sequence[Sequence[str]]
    num_ours: int = 0
    """Columns after the label that are ours; those after them are the paper's. 0 is all."""
    caption: str = ""
    notes: Sequence[str] = ()
    source: str = ""
    """Of the paper's columns."""


@dataclass(frozen=True)
class TaskPart:
    """One benchmark on the page."""

    title: str
    facts: Sequence[str]
    grid: Grid
    shares: Grid
    signals: Grid
    categories: Sequence[Grid] = field(default_factory=list)


def as_several(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results of one model or several in the form of several."""
    if "models" in results:  # a file has its keys in the order of the alphabet
        names = results["order"]
        ordered = {name: results["models"][name] for name in names}
        return {**results, "models": ordered,
                "pairs": {name: results["pairs"][name] for name in names[1:]}}  # fmt: skip
    name = str(results["model"]).replace(":", "-").rstrip("/").rpartition("/")[2]
    kept = {key: results[key] for key in ("protocol", "changed", "data", "missing")}
    return {**kept, "baseline": name, "order": [name], "models": {name: dict(results)}, "pairs": {}}


def render_benchmarks(results: Mapping[str, Any], papers: Sequence[PaperTable] = ()) -> str:
    """Render the HTML of the page; text of models and data sets is escaped.

    Args:
        results: of one model (`run_benchmarks`) or several (`compare_models`).
        papers: tables of the paper whose protocol was used.
    """
    several = as_several(results)
    tasks = dict.fromkeys(task for one in several["models"].values() for task in one["tasks"])
    return page_environment().get_template("benchmarks.html.jinja").render(
        results=several,
        protocol=protocol_line(several),
        protocol_source=next(iter(several["models"].values())).get("protocol_source", ""),
        warnings=list(warnings(several)),
        notes=note_lines(several),
        matrix=matrix_grid(several),
        suites=list(suite_grids(several, papers)),
        tasks=[task_part(several, BENCHMARKS[task]) for task in tasks],
    )  # fmt: skip


def warnings(results: Mapping[str, Any]) -> Iterator[str]:
    """What a reader must know before any number."""
    if results["changed"]:
        names = ", ".join(f"{name} {value}" for name, value in results["changed"].items())
        yield f"The protocol {results['protocol']} was changed: {names}"
    for name, one in results["models"].items():
        partial = [task for task, facts in one["tasks"].items() if is_partial(facts)]
        if partial:
            yield f"PARTIAL results of {name}: {', '.join(partial)}"
    if results["missing"]:
        yield f"Not here: {', '.join(results['missing'])}"


def modes_of(results: Mapping[str, Any], task: str) -> list[str]:
    """The modes of a benchmark that any model has."""
    present = (one["tasks"].get(task, {"modes": {}}) for one in results["models"].values())
    return list(dict.fromkeys(mode for facts in present for mode in facts["modes"]))


def mode_facts(one: Mapping[str, Any], task: str, mode: str) -> Mapping[str, Any]:
    """What a model has of a benchmark in a mode; empty if nothing."""
    return one["tasks"].get(task, {}).get("modes", {}).get(mode, {})


def matrix_grid(results: Mapping[str, Any]) -> Grid:
    """The headline of each benchmark by model, and the differences to the first model."""
    names, first = list(results["models"]), results["baseline"]
    head = ["benchmark", *names, *(f"{name} − {first}" for name in names[1:])]
    rows = []
    for task, metric, mode in matrix_rows(results):
        facts = [mode_facts(one, task, mode) for one in results["models"].values()]
        values = [score_text(one.get("metrics", {}).get(metric)) for one in facts]
        values += [
            points(mode_facts(pair, task, mode).get("metrics", {}).get(metric))
            for pair in results["pairs"].values()
        ]
        rows.append([row_label(results, task, metric, mode), *values])
    return Grid("All benchmarks", head, rows)


def score_text(score: Mapping[str, float] | None) -> str:
    """`43.1 [40.2, 46.0] on 515`."""
    if score is None:
        return NONE
    low, high = 100 * score["low"], 100 * score["high"]
    return f"{100 * score['value']:.1f} [{low:.1f}, {high:.1f}] on {score['units']:,}"


def suite_grids(results: Mapping[str, Any], papers: Sequence[PaperTable]) -> Iterator[Grid]:
    """Our values in the columns of the paper, and next to them the paper's, by mode."""
    suite = SUITES.get(results["protocol"])
    if suite is None:
        return
    modes = dict.fromkeys(
        mode for column in suite.columns for mode in modes_of(results, column.benchmark)
    )
    for mode in (mode for mode in modes if view_of(mode) == View.FULL):
        for table in papers:
            yield suite_grid(results, suite, mode, table)


def suite_grid(results: Mapping[str, Any], suite: Suite, mode: str, table: PaperTable) -> Grid:
    """One table of a paper next to our values."""
    names = list(results["models"])
    rows = []
    for column in suite.columns:
        own = [our_value(one, column.benchmark, column.metric_name(), mode)
               for one in results["models"].values()]  # fmt: skip
        rows.append([column.title, *own, *paper_values(table, column.title, mode)])
    for title in suite.averages:
        own = [average_text(one, mode, title) for one in results["models"].values()]
        rows.append([title, *own, *paper_values(table, title, mode)])
    ours = [f"{name}, {decoding_of(mode)}" for name in names]
    labels = [label for label, _ in table.rows]
    notes = ["ours*: rows that are not the paper's (subset: ours)"] if any(
        cell.endswith("*") for row in rows for cell in row[1 : len(names) + 1]
    ) else []  # fmt: skip
    caption = f"Values of the paper: {table.protocol}."
    head = ["column", *ours, *labels]
    return Grid(f"{table.title}, {mode}", head, rows, len(names), caption, notes, table.source)


def our_value(one: Mapping[str, Any], task: str, metric: str, mode: str) -> str:
    """Our value of a column, marked where its rows are not the paper's or are not all here."""
    score = mode_facts(one, task, mode).get("metrics", {}).get(metric)
    if score is None:
        return NONE
    facts = one["tasks"][task]
    mark = " PARTIAL" if is_partial(facts) else ""
    return f"{100 * score['value']:.1f}{mark}{'*' if facts['subset'] else ''}"


def average_text(one: Mapping[str, Any], mode: str, title: str) -> str:
    """Our average of a suite; nothing over a part, marked where a column is."""
    value = one.get("suite", {}).get("modes", {}).get(mode, {}).get("averages", {}).get(title)
    if value is None:
        return NONE
    mark = "*" if any(task["subset"] for task in one["tasks"].values()) else ""
    return f"{100 * value:.1f}{mark}"


def paper_values(table: PaperTable, column: str, mode: str) -> list[str]:
    """The values of a paper's table in one column; of `a/b` the one of the mode."""
    texts = []
    for _, values in table.rows:
        value = values.get(column)
        if "/" in table.protocol:  # Acc@1 / Acc@16; a single value is Acc@1
            pair = dict(zip(TWO_VALUES, str(value).split("/"), strict=False))
            value = pair.get(decoding_of(mode)) if value is not None else None
        texts.append(NONE if value is None else str(value))
    return texts


def task_part(results: Mapping[str, Any], benchmark: Benchmark) -> TaskPart:
    """One benchmark: every metric of every mode by model, shares, and categories."""
    task = benchmark.name
    present = [one["tasks"][task] for one in results["models"].values() if task in one["tasks"]]
    first = present[0]
    others = f" and {first['other_rows']:,} others" if first.get("other_rows") else ""
    facts = [f"{first['rows']:,} of {first['whole']:,} rows{others}", f"rule: {first['rule']}"]
    facts += ["subset: ours"] if first["subset"] else []
    failed = sum(len(one["failed"]) for one in present)
    facts += [f"PARTIAL: {failed:,} rows failed"] if failed else []
    missing = sum(one["missing_replies"] for one in present)
    facts += [f"PARTIAL: {missing:,} replies are missing"] if missing else []
    failures = Counter[str]()
    for one in present:
        failures.update(one.get("failures", {}))
    facts += [f"failed: {count:,} {code}" for code, count in failures.items()]
    facts += [f"licence: {first['licence']}"] + (
        [benchmark.note.rstrip(".")] if benchmark.note else []
    )
    names, base = list(results["models"]), results["baseline"]
    head = ["metric", *names, *(f"{name} − {base}" for name in names[1:])]
    metrics: list[list[str]] = []
    categories: dict[str, list[list[str]]] = {}
    for mode in modes_of(results, task):
        metrics += metric_rows(results, benchmark, mode, "")
        for fact in benchmark.categories:
            rows = metric_rows(results, benchmark, mode, fact)
            if rows:
                categories.setdefault(fact, []).extend(rows)
    parts = [Grid(f"By {fact}", head, rows) for fact, rows in categories.items()]
    grid = Grid("", head, metrics)
    return TaskPart(
        benchmark.title, facts, grid, share_grid(results, task), signal_grid(results, task), parts
    )


def metric_rows(
    results: Mapping[str, Any], benchmark: Benchmark, mode: str, fact: str
) -> list[list[str]]:
    """The rows of a mode: metrics, reduced ones and gaps, or those of one category."""
    models = list(results["models"].values())
    facts = [mode_facts(one, benchmark.name, mode) for one in models]
    label = next(one["label"] for one in facts if one)
    parts = [dict(parts_of(one, fact)) for one in facts]
    keys = dict.fromkeys(key for part in parts for key in part)
    rows = []
    for reducer, name in sorted(keys, key=lambda key: key != ("mean", benchmark.headline)):
        values = [value_text(part.get((reducer, name)), reducer) for part in parts]
        for pair in results["pairs"].values():
            compared = mode_facts(pair, benchmark.name, mode)
            where = compared.get("categories", {}).get(fact, {}) if fact else (
                compared.get("metrics", {})
            )  # fmt: skip
            values.append(points(where.get(name)) if reducer == "mean" else NONE)
        shown = "" if reducer == "mean" else f"{reducer} "
        rows.append([f"{label}: {shown}{name}", *values])
    return rows


def parts_of(
    facts: Mapping[str, Any], fact: str
) -> Iterator[tuple[tuple[str, str], Mapping[str, float]]]:
    """By reducer and metric the scores of a mode; of a category by its values."""
    if not facts:
        return
    if fact:
        gaps = facts.get("gap", {}).get("categories", {}).get(fact, {})
        for reducer, part in (("mean", facts["categories"].get(fact, {})), (GAP, gaps)):
            yield from (((reducer, name), score) for name, score in part.items())
        return
    for reducer, category, values in score_parts(facts):
        if not category and reducer != SIGNAL:
            yield from (((reducer, name), score) for name, score in values.items())


def value_text(score: Mapping[str, float] | None, reducer: str) -> str:
    """A score, or a gap in points."""
    if reducer != GAP or score is None:
        return score_text(score)
    return f"{points(score)} on {score['units']:,}"


def share_grid(results: Mapping[str, Any], task: str) -> Grid:
    """Replies, shares of unparsed and truncated ones, tokens and seconds, by mode and model."""
    head = ["mode", "model", "replies", "unparsed", "truncated", "tokens", "seconds"]
    rows = []
    for mode in modes_of(results, task):
        for name, one in results["models"].items():
            facts = mode_facts(one, task, mode)
            if facts:
                seconds = facts.get("seconds")
                rows.append([
                    facts["label"], name, f"{facts['replies']:,}",
                    f"{100 * facts['unparsed_share']:.1f} %",
                    f"{100 * facts['truncated_share']:.1f} %", f"{facts['tokens']:,.0f}",
                    NONE if seconds is None else f"{seconds:.2f}",
                ])  # fmt: skip
    return Grid("Replies", head, rows)


def signal_grid(results: Mapping[str, Any], task: str) -> Grid:
    """Mean signals of the responses, by mode and model; no row where none were measured."""
    rows, notes = [], []
    for mode in modes_of(results, task):
        for name, one in results["models"].items():
            facts = mode_facts(one, task, mode)
            signals = facts.get("signals")
            if signals:
                means = [signals["means"].get(signal) for signal in NAMES]
                rows.append([facts["label"], name, *map(nats_text, means)])
                notes += [f"{facts['label']}, {name}: {note}" for note in signal_notes(signals)]
    caption = "Means over the tokens of a response, then over responses, in nats."
    return Grid("Signals", ["mode", "model", *NAMES], rows, caption=caption, notes=notes)


def nats_text(one: Mapping[str, Any] | None) -> str:
    """`0.0312 [0.0290, 0.0335] on 515`."""
    if one is None:
        return NONE
    band = f" [{one['low']:.4f}, {one['high']:.4f}]" if one["clusters"] > 1 else ""
    return f"{one['value']:.4f}{band} on {one['units']:,}"

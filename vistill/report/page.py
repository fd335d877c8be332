"""Assemble the report page and write it."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vistill.faults import fault
from vistill.redaction import escape_control_characters, mask_secrets
from vistill.report.charts import Axes, Series, line_chart, scale_of, tokens_html
from vistill.report.comparison import comparison_table, describe_checkpoint, p_text, same_start
from vistill.report.costs import HEADINGS, make_profile, run_cost
from vistill.report.headline import MAX_DETAILED_RUNS, headline, interval, percent, run_warnings
from vistill.report.parts import part_charts, part_rows, teacher_of
from vistill.report.run_data import RunData, describe_rows, read_runs, temperature_label
from vistill.runs.storage import write_text

#: Limits: questions with heatmaps, prompt groups per run, prompt groups on a page of many runs.
MAX_ITEMS, MAX_SIBLING_GROUPS, MAX_SIBLING_PANELS = 6, 3, 8
#: Most charts of the methods' own metrics.
MAX_METHOD_CHARTS = 12
#: Beginnings of the names of metrics that every run has.
SHARED_METRICS = (
    *("step", "loss", "grad_norm", "lr", "finite"),
    *("coefficient/", "rollout/", "memory/", "non_finite/", "reward/mean", "teacher/", "set/"),
)
#: Signals that are coefficients or thresholds, not token measurements. It is for logs of earlier
#: versions, which do not name the signal to draw.
NOT_DRAWN = ("token_weight", "gate_threshold", "low_threshold", "steering", "high_group", "gate")


def write_report(paths: Sequence[Path], out: Path) -> Path:
    """Write one offline page over one or several runs; the first run is the baseline."""
    fault("report.begin")
    write_text(out, mask_secrets(render(read_runs([Path(path) for path in paths]))))
    return out


def page_environment() -> Environment:
    """The templates of all pages; text of models and data sets is escaped."""
    return Environment(
        loader=PackageLoader("vistill.report"),
        autoescape=True,
        finalize=escape_text_value,
        undefined=StrictUndefined,
        trim_blocks=True,
    )


def render(runs: Sequence[RunData]) -> str:
    """Render the HTML of the page; text of models and data sets is escaped."""
    environment = page_environment()
    environment.filters |= {
        "percent": percent,
        "short": format_number,
        "p_text": p_text,
        "points": signed_points,
    }
    return environment.get_template("report.html.jinja").render(
        runs=runs,
        evaluated=[run for run in runs if run.evaluations],
        sampled_at=temperature_label([run for run in runs if run.evaluations]),
        headline=headline([run for run in runs if run.evaluations]),
        warnings=[(run, text) for run in runs for text in run_warnings(run)],
        chosen=[(run, text) for run in runs if (text := describe_checkpoint(run))],
        compared=comparison_table([run for run in runs if run.evaluations]),
        tables=evaluation_table(runs),
        image_use=image_use_charts(runs),
        tail=tail_chart(runs),
        comparisons=heatmap_comparisons(runs),
        siblings=sibling_panels(runs),
        measured=method_charts(runs),
        parts=part_rows(runs),
        part_charts=part_charts(runs),
        teacher_of=teacher_of,
        health=health_charts(runs),
        costs=[run_cost(run) for run in runs],
        profiles=[table for run in runs if (table := make_profile(run)) is not None],
        headings=HEADINGS,
        source=rows_source,
        recipes=[(run, json.dumps(run.recipe, indent=2)) for run in runs],
    )


def escape_text_value(value: Any) -> Any:
    """Show control characters and direction marks in text; jinja escapes the markup later."""
    return (
        escape_control_characters(value, "\n")
        if isinstance(value, str) and not isinstance(value, Markup)
        else value
    )


def format_number(value: Any) -> str:
    """Format a number for a table cell."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return "–" if value is None else str(value)
    return "–" if math.isnan(value) else f"{value:.4g}"


def rows_source(run: RunData, part: str) -> str:
    """` (data/test.jsonl)`: the source of the rows; empty if the recipe does not name one."""
    name = describe_rows(run.recipe.get("data", {}), part)
    return f" ({name})" if name else ""


def signed_points(value: float) -> str:
    """Format a difference in percentage points: `+3.1`."""
    return f"{100 * value:+.1f}"


def chart_points(records: Sequence[dict[str, Any]], x: str, y: str) -> list[tuple[float, float]]:
    """The (x, y) pairs of the records that have both values."""
    return [
        (float(r[x]), float(r[y])) for r in records if r.get(x) is not None and r.get(y) is not None
    ]


def image_use_charts(runs: Sequence[RunData]) -> list[Markup]:
    """Accuracy, gap and visual advantage over steps, and accuracy against visual advantage."""
    accuracy, blind, advantage, path = [], [], [], []
    for i, run in enumerate(runs):
        ev = run.evaluations
        band = [
            (float(r["step"]), r["accuracy_low"], r["accuracy_high"])
            for r in ev
            if r.get("accuracy_low") is not None and r.get("accuracy_high") is not None
        ]
        accuracy.append(
            Series(
                run.name,
                chart_points(ev, "step", "accuracy"),
                i,
                band=band if len(runs) <= MAX_DETAILED_RUNS else [],
            )
        )
        blind.append(Series(run.name, chart_points(ev, "step", "gap/pixelated"), i))
        advantage.append(Series(run.name, chart_points(ev, "step", "va/mean"), i))
        path.append(Series(run.name, chart_points(ev, "va/mean", "accuracy"), i, arrow=True))
    title = f"Accuracy at {temperature_label(runs)} (95 % interval{row_range(runs)})"
    return [
        line_chart(accuracy, Axes(title, "step", "accuracy")),
        line_chart(blind, Axes("Accuracy lost with the pixelated image", "step", "difference")),
        line_chart(
            advantage,
            Axes("Mean visual advantage of the student's responses", "step", "nats per token"),
        ),
        line_chart(
            path,
            Axes(
                "Accuracy and visual advantage (circle: start, square: end)",
                "mean VA (nats)",
                "accuracy",
            ),
        ),
    ]


def row_range(runs: Sequence[RunData]) -> str:
    """`; points on 64 to 512 rows` if the points of a chart have different numbers of rows."""
    counts = {int(r["rows"]) for run in runs for r in run.evaluations if r.get("rows")}
    return f"; points on {min(counts):,} to {max(counts):,} rows" if len(counts) > 1 else ""


def tail_chart(runs: Sequence[RunData]) -> Markup:
    """The share of visual advantage on the top tokens."""
    series = []
    for i, run in enumerate(runs):
        last = list(run.tokens.values())[-1] if run.tokens else {}
        curve = [(0.0, 0.0), *((float(x), float(y)) for x, y in last.get("tail", []))]
        series.append(Series(run.name, curve if len(curve) > 1 else [], i))
    axes = Axes(
        "Share of all visual advantage on the top tokens",
        "share of tokens, largest first",
        "share of VA",
        marks=((0.1, "10 %"),),
    )
    return line_chart(series, axes)


def evaluation_table(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """First and last evaluation of each run."""
    rows = []
    for run in runs:
        records = [run.first] if len(run.evaluations) < 2 else [run.first, run.last]
        rows += [
            {
                "run": run.name,
                "step": record["step"],
                "accuracy": interval(record),
                "greedy": interval(record, "greedy_accuracy") + greedy_rows_suffix(record),
                "record": record,
            }
            for record in records
            if record
        ]
    return rows


def greedy_rows_suffix(record: dict[str, Any]) -> str:
    """` on 200`: the number of greedy rows, if it differs from the rows of the accuracy."""
    rows = record.get("greedy_rows")
    return f" on {int(rows):,}" if rows is not None and rows != record.get("rows") else ""


def heatmap_comparisons(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Heatmaps of the same held-out question before training and after each run.

    Items are joined by id and shown together only if question and gold answer are equal. All panels
    of a question use one colour scale.
    """
    sources = heatmap_sources(runs)
    if not sources:
        return []
    first = {name: item for _, _, items in reversed(sources) for name, item in items.items()}
    order = list(dict.fromkeys(name for _, _, items in sources for name in items))
    same = {
        name: [
            (label, run, items[name])
            for label, run, items in sources
            if same_question(first[name], items.get(name))
        ]
        for name in order
    }
    order.sort(key=lambda name: -len(same[name]))
    comparisons = []
    for name in order[:MAX_ITEMS]:
        question, owner = first[name], same[name][0][1]
        items = [(label, item) for label, _, item in same[name]]
        scale = scale_of([item["advantage"] for _, item in items])
        panels = [
            (
                f"{label}: {verdict(item)}",
                tokens_html(item["tokens"], item["advantage"], scale, token_titles(item)),
            )
            for label, item in items
        ]
        comparisons.append(
            {
                "question": question["question"],
                "gold": question["gold"],
                "panels": panels,
                "scale": scale,
                "full": owner.image_uri(name, "full", question["question"]),
                "pixelated": owner.image_uri(name, "pixelated", question["question"]),
            }
        )
    return comparisons


def heatmap_sources(
    runs: Sequence[RunData],
) -> list[tuple[str, RunData, dict[str, dict[str, Any]]]]:
    """(label, run, items by prompt id): before training and after each run."""

    def items_by_id(tokens: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {str(item["prompt"]): item for item in tokens.get("items", [])}

    runs = [run for run in runs if run.tokens]
    starts: list[RunData] = []
    for run in runs:
        if "000000" in run.tokens and not any(same_start(run, other) for other in starts):
            starts.append(run)
    sources = [
        (
            "before training" if len(starts) == 1 else f"{run.name} before training",
            run,
            items_by_id(run.tokens["000000"]),
        )
        for run in starts
    ]
    for run in runs:
        step, last = list(run.tokens.items())[-1]
        if step != "000000":
            sources.append((run.name, run, items_by_id(last)))
    return [source for source in sources if source[2]]


def same_question(item: dict[str, Any], other: dict[str, Any] | None) -> bool:
    """Whether two heatmap items belong to the same question."""
    return other is not None and all(
        item.get(key) == other.get(key) for key in ("asked", "question", "gold")
    )


def verdict(item: dict[str, Any]) -> str:
    """Whether the response was correct, in words."""
    correct = item.get("correct")
    return "not judged" if correct is None else "correct" if correct else "wrong"


def token_titles(item: dict[str, Any]) -> list[str]:
    """The tooltips of the tokens."""
    columns = (item["advantage"], item["log_prob_full"], item["log_prob_degraded"], item["kl"])
    return [
        f"advantage {a:.2f}; teacher log p {f:.2f} with image, {d:.2f} pixelated; KL {k:.2f} nats"
        for a, f, d, k in zip(*columns, strict=True)
    ]


def sibling_panels(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Sibling groups of training prompts: several per run, or one per run if there are many."""
    per_run = MAX_SIBLING_GROUPS if len(runs) <= MAX_SIBLING_GROUPS else 1
    return [group for run in runs for group in sibling_groups(run)[:per_run]][:MAX_SIBLING_PANELS]


def drawn_signal(record: dict[str, Any]) -> str | None:
    """The token signal for the heatmap of a method.

    The log names it; in logs of earlier versions, visual signals come first.
    """
    names = [k for k, v in record.items() if isinstance(v, list) and k not in ("ids", "tokens")]
    if record.get("drawn") in names:
        return record["drawn"]
    names = [name for name in names if name not in NOT_DRAWN]
    return min(names, key=lambda name: not name.startswith("visual"), default=None)


def rollout_label(record: dict[str, Any]) -> str:
    """The signals of a rollout in words: `rollout weight 0.656`."""
    numbers = {k: v for k, v in record.items() if isinstance(v, (int, float)) and k != "sibling"}
    return (
        ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in numbers.items())
        or "sibling"
    )


def sibling_groups(run: RunData) -> list[dict[str, Any]]:
    """Sibling rollouts of training prompts with their signals, as heatmaps."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in run.rollouts:
        if drawn_signal(record) is not None:
            groups.setdefault(record["prompt"], []).append(record)
    panels = []
    for prompt, records in list(groups.items())[:MAX_SIBLING_GROUPS]:
        name = str(drawn_signal(records[0]))
        scale = scale_of([r[name] for r in records])
        entry = run.images.get(prompt, {})
        rows = [(rollout_label(r), tokens_html(r["tokens"], r[name], scale)) for r in records]
        panels.append(
            {
                "run": run.name,
                "signal": name.replace("_", " "),
                "prompt": prompt,
                "rows": rows,
                "question": entry.get("question", prompt),
                "full": run.image_uri(prompt, "full"),
                "pixelated": run.image_uri(prompt, "pixelated"),
            }
        )
    return panels


def method_charts(runs: Sequence[RunData]) -> list[Markup]:
    """One chart for each metric that the methods themselves log (`Objective.metrics`)."""
    ends = [record for run in runs for record in (*run.metrics[:1], *run.metrics[-1:])]
    names = dict.fromkeys(name for record in ends for name in record if is_method_metric(name))
    return [
        line_chart(
            [
                Series(run.name, chart_points(run.metrics, "step", name), i)
                for i, run in enumerate(runs)
            ],
            Axes(name, "step", "", y_from_zero=False),
        )
        for name in list(names)[:MAX_METHOD_CHARTS]
    ]


def is_method_metric(name: str) -> bool:
    """Whether a metric is the method's own, not one that every run has."""
    return not name.startswith(SHARED_METRICS)


def health_charts(runs: Sequence[RunData]) -> list[Markup]:
    """Charts of loss, gradient norm, response length and truncation."""
    metrics = (
        ("loss", "Loss", "nats"),
        ("grad_norm", "Gradient norm before clipping", "norm"),
        ("rollout/length_mean", "Response length", "tokens"),
        ("rollout/truncated_share", "Share of truncated responses", "share"),
    )
    return [
        line_chart(
            [
                Series(run.name, chart_points(run.metrics, "step", key), i)
                for i, run in enumerate(runs)
            ],
            Axes(title, "step", unit),
        )
        for key, title, unit in metrics
    ]

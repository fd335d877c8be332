"""Assemble the page and write it."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vistill.faults import fault
from vistill.redaction import escape_control_characters, mask_secrets
from vistill.report.charts import Axes, Series, line_chart
from vistill.report.comparison import chosen_accuracy, comparison_table, p_text, same_start
from vistill.report.costs import HEADINGS, cost, profile_of
from vistill.report.headline import MANY, interval, percent, sentence, warnings
from vistill.report.heatmap import scale_of, tokens_html
from vistill.report.run_data import RunData, read_run, rows_from, sampled_at
from vistill.runs.storage import write_text

#: Items whose heatmaps are shown, and prompt groups whose siblings are: of one run, and on a page over many.
MAX_ITEMS, MAX_SIBLING_GROUPS, MAX_SIBLING_PANELS = 6, 3, 8
#: Signals that are coefficients or thresholds rather than something measured of a token.
NOT_DRAWN = ("token_weight", "gate_threshold", "low_threshold", "steering", "high_group", "gate")


def write_report(paths: Sequence[Path], out: Path) -> Path:
    """Write one offline page over one or several runs; the first is the one others are compared with."""
    fault("report.begin")
    write_text(out, mask_secrets(render([read_run(Path(path)) for path in paths])))
    return out


def render(runs: Sequence[RunData]) -> str:
    """The page's HTML. Everything that came from a model or a data set is escaped."""
    environment = Environment(
        loader=PackageLoader("vistill.report"),
        autoescape=True,
        finalize=harmless,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "short": short,
        "p_text": p_text,
        "points": signed_points,
    }
    return environment.get_template("report.html.jinja").render(
        runs=runs,
        evaluated=[run for run in runs if run.evaluations],
        sampled_at=sampled_at([run for run in runs if run.evaluations]),
        sentence=sentence([run for run in runs if run.evaluations]),
        warnings=[(run, text) for run in runs for text in warnings(run)],
        chosen=[(run, text) for run in runs if (text := chosen_accuracy(run))],
        compared=comparison_table([run for run in runs if run.evaluations]),
        tables=evaluation_table(runs),
        looking=looking_charts(runs),
        tail=tail_chart(runs),
        comparisons=comparisons(runs),
        siblings=siblings_of(runs),
        health=health_charts(runs),
        costs=[cost(run) for run in runs],
        profiles=[table for run in runs if (table := profile_of(run)) is not None],
        headings=HEADINGS,
        source=source,
        recipes=[(run, json.dumps(run.recipe, indent=2)) for run in runs],
    )


def harmless(value: Any) -> Any:
    """Text with its control characters and direction marks shown; escaping comes after."""
    return (
        escape_control_characters(value, "\n")
        if isinstance(value, str) and not isinstance(value, Markup)
        else value
    )


def short(value: Any) -> str:
    """A number for a table cell."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return "–" if value is None else str(value)
    return "–" if math.isnan(value) else f"{value:.4g}"


def source(run: RunData, part: str) -> str:
    """` (data/test.jsonl)`: where the rows came from; empty where the recipe does not say."""
    name = rows_from(run.recipe.get("data", {}), part)
    return f" ({name})" if name else ""


def signed_points(value: float) -> str:
    """`+3.1`: a difference in percentage points."""
    return f"{100 * value:+.1f}"


def points(records: Sequence[dict[str, Any]], x: str, y: str) -> list[tuple[float, float]]:
    """(x, y) pairs of the records that have both."""
    return [
        (float(r[x]), float(r[y])) for r in records if r.get(x) is not None and r.get(y) is not None
    ]


def looking_charts(runs: Sequence[RunData]) -> list[Markup]:
    """Accuracy, gap and visual advantage over steps, and the path of one against the other."""
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
                run.name, points(ev, "step", "accuracy"), i, band=band if len(runs) <= MANY else []
            )
        )
        blind.append(Series(run.name, points(ev, "step", "gap/pixelated"), i))
        advantage.append(Series(run.name, points(ev, "step", "va/mean"), i))
        path.append(Series(run.name, points(ev, "va/mean", "accuracy"), i, arrow=True))
    title = f"Accuracy at {sampled_at(runs)} (95 % interval{row_range(runs)})"
    return [
        line_chart(accuracy, Axes(title, "step", "accuracy")),
        line_chart(
            blind, Axes("Accuracy lost when the picture is pixelated", "step", "difference")
        ),
        line_chart(
            advantage,
            Axes("Mean visual advantage of the student's responses", "step", "nats per token"),
        ),
        line_chart(
            path,
            Axes(
                "Does accuracy come with looking? circle: start, square: end",
                "mean VA (nats)",
                "accuracy",
            ),
        ),
    ]


def row_range(runs: Sequence[RunData]) -> str:
    """`; points on 64 to 512 rows` where the points of a chart stand on different numbers of rows."""
    counts = {int(r["rows"]) for run in runs for r in run.evaluations if r.get("rows")}
    return f"; points on {min(counts):,} to {max(counts):,} rows" if len(counts) > 1 else ""


def tail_chart(runs: Sequence[RunData]) -> Markup:
    """How much of the visual advantage the top tokens carry."""
    series = []
    for i, run in enumerate(runs):
        last = list(run.tokens.values())[-1] if run.tokens else {}
        curve = [(0.0, 0.0), *((float(x), float(y)) for x, y in last.get("tail", []))]
        series.append(Series(run.name, curve if len(curve) > 1 else [], i))
    axes = Axes(
        "Share of all visual advantage carried by the top tokens",
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
                "greedy": interval(record, "greedy_accuracy") + greedily_on(record),
                "record": record,
            }
            for record in records
            if record
        ]
    return rows


def greedily_on(record: dict[str, Any]) -> str:
    """` on 200`: how many were answered greedily, where those are not the rows of the accuracy."""
    rows = record.get("greedy_rows")
    return f" on {int(rows):,}" if rows is not None and rows != record.get("rows") else ""


def comparisons(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """The same held-out question under the student before training and after each run, on one colour scale.

    Items are joined by their id and shown together only where question and gold answer are equal.
    """
    readers = heatmap_readers(runs)
    if not readers:
        return []
    asked = {name: item for _, _, items in reversed(readers) for name, item in items.items()}
    order = list(dict.fromkeys(name for _, _, items in readers for name in items))
    same = {
        name: [
            (who, run, items[name])
            for who, run, items in readers
            if same_question(asked[name], items.get(name))
        ]
        for name in order
    }
    order.sort(key=lambda name: -len(same[name]))
    out = []
    for name in order[:MAX_ITEMS]:
        head, owner = asked[name], same[name][0][1]
        items = [(who, item) for who, _, item in same[name]]
        scale = scale_of([item["advantage"] for _, item in items])
        panels = [
            (
                f"{who}: {verdict(item)}",
                tokens_html(item["tokens"], item["advantage"], scale, titles(item)),
            )
            for who, item in items
        ]
        out.append(
            {
                "question": head["question"],
                "gold": head["gold"],
                "panels": panels,
                "scale": scale,
                "full": owner.picture(name, "full", head["question"]),
                "pixelated": owner.picture(name, "pixelated", head["question"]),
            }
        )
    return out


def heatmap_readers(
    runs: Sequence[RunData],
) -> list[tuple[str, RunData, dict[str, dict[str, Any]]]]:
    """Who answered, in which run's folder, and the stored items by prompt id: before training, and each run's last."""
    keyed = lambda tokens: {str(item["prompt"]): item for item in tokens.get("items", [])}
    runs = [run for run in runs if run.tokens]
    starts: list[RunData] = []
    for run in runs:
        if "000000" in run.tokens and not any(same_start(run, other) for other in starts):
            starts.append(run)
    name = lambda run: "before training" if len(starts) == 1 else f"{run.name} before training"
    readers = [(name(run), run, keyed(run.tokens["000000"])) for run in starts]
    for run in runs:
        step, last = list(run.tokens.items())[-1]
        if step != "000000":
            readers.append((run.name, run, keyed(last)))
    return [reader for reader in readers if reader[2]]


def same_question(item: dict[str, Any], other: dict[str, Any] | None) -> bool:
    """Whether two readings are of the same question."""
    return other is not None and all(
        item.get(key) == other.get(key) for key in ("asked", "question", "gold")
    )


def verdict(item: dict[str, Any]) -> str:
    """Whether the response was right, in a word."""
    correct = item.get("correct")
    return "not judged" if correct is None else "right" if correct else "wrong"


def titles(item: dict[str, Any]) -> list[str]:
    """What hovering over a token shows."""
    columns = (item["advantage"], item["log_prob_full"], item["log_prob_degraded"], item["kl"])
    return [
        f"advantage {a:.2f}; teacher log p {f:.2f} with picture, {d:.2f} pixelated; KL {k:.2f} nats"
        for a, f, d, k in zip(*columns, strict=True)
    ]


def siblings_of(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Training prompts with their siblings: several of one run, or one of each of many."""
    each = MAX_SIBLING_GROUPS if len(runs) <= MAX_SIBLING_GROUPS else 1
    return [group for run in runs for group in sibling_groups(run)[:each]][:MAX_SIBLING_PANELS]


def drawn_signal(record: dict[str, Any]) -> str | None:
    """The token signal that a method's heatmap shows: what is visual first."""
    lists = [
        k
        for k, v in record.items()
        if isinstance(v, list) and k not in ("ids", "tokens", *NOT_DRAWN)
    ]
    return min(lists, key=lambda name: not name.startswith("visual"), default=None)


def label_of(record: dict[str, Any]) -> str:
    """The rollout's own signals in words: `rollout weight 0.656`."""
    numbers = {k: v for k, v in record.items() if isinstance(v, (int, float)) and k != "sibling"}
    return (
        ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in numbers.items())
        or "sibling"
    )


def sibling_groups(run: RunData) -> list[dict[str, Any]]:
    """Sibling rollouts of training prompts, coloured by the method's own signal, with their weights or advantages."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in run.rollouts:
        if drawn_signal(record) is not None:
            groups.setdefault(record["prompt"], []).append(record)
    out = []
    for prompt, records in list(groups.items())[:MAX_SIBLING_GROUPS]:
        name = str(drawn_signal(records[0]))
        scale = scale_of([r[name] for r in records])
        entry = run.pictures.get(prompt, {})
        rows = [(label_of(r), tokens_html(r["tokens"], r[name], scale)) for r in records]
        out.append(
            {
                "run": run.name,
                "signal": name.replace("_", " "),
                "prompt": prompt,
                "rows": rows,
                "question": entry.get("question", prompt),
                "full": run.picture(prompt, "full"),
                "pixelated": run.picture(prompt, "pixelated"),
            }
        )
    return out


def health_charts(runs: Sequence[RunData]) -> list[Markup]:
    """Loss, gradient norm, lengths."""
    wanted = (
        ("loss", "Loss", "nats"),
        ("grad_norm", "Gradient norm before clipping", "norm"),
        ("rollout/length_mean", "Response length", "tokens"),
        ("rollout/truncated_share", "Share of responses cut off", "share"),
    )
    return [
        line_chart(
            [Series(run.name, points(run.metrics, "step", key), i) for i, run in enumerate(runs)],
            Axes(title, "step", unit),
        )
        for key, title, unit in wanted
    ]

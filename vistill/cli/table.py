"""The facts and the summary of an evaluation as lines of text."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vistill.config import Recipe
from vistill.evaluation.unparsed import unparsed_warning
from vistill.report.run_data import describe_rows, read_json
from vistill.runs.chosen_student import resolve_model

ROWS = (
    ("accuracy", "accuracy, T = {temperature:g}"),
    ("greedy_accuracy", "accuracy, greedy"),
    ("accuracy/pixelated", "  image pixelated"),
    ("accuracy/text_only", "  image removed"),
    ("accuracy/swapped", "  image swapped"),
    ("reading/stated", "correctly stated labels"),
    ("reading/follows_swap", "follows a changed digit"),
    ("va/mean", "mean visual advantage, nats per token"),
    ("va/top10_share", "  share in the top 10 % of tokens"),
    ("critical/share", "critical tokens"),
    ("critical/kl_share", "  their share of the KL to the teacher"),
    ("truncated_share", "truncated responses"),
    ("unparsed_share", "responses without an answer"),
)


#: Keys of the denominators of shares that use other rows than the accuracy.
DENOMINATORS = {
    "greedy_accuracy": "greedy_rows",
    "accuracy/pixelated": "blind_rows",
    "accuracy/text_only": "blind_rows",
    "accuracy/swapped": "swapped_rows",
    "va/mean": "tokens",
    "reading/stated": "reading/labels",
    "reading/follows_swap": "reading/items",
}
UNITS = {"va/mean": "tokens", "reading/stated": "labels", "reading/follows_swap": "diagrams"}


def run_facts(recipe: Recipe, run: Path) -> dict[str, Any]:
    """The facts of an evaluation: model, checkpoint, teacher, data and number of rows."""
    folder = resolve_model(recipe.student.model)
    result, data = read_json(run / "result.json"), read_json(run / "data.json")
    settings = asdict(recipe.data)
    training = bool(result.get("training_rows"))
    facts = {
        "model": recipe.student.model,
        "checkpoint": folder if folder != recipe.student.model else None,
        "teacher": recipe.teacher.model or None,
        "data": describe_rows(settings, "train" if training else "eval"),
        "training_rows": training,
        "data_rows": data.get("eval_rows"),
        "quarantined": data.get("quarantined"),
    }
    return {name: value for name, value in facts.items() if value is not None}


def facts_table(facts: Mapping[str, Any]) -> str:
    """Format the facts as lines."""
    rows = f"{facts['data_rows']:,} rows" if isinstance(facts.get("data_rows"), int) else ""
    bad = f"{facts['quarantined']:,} more quarantined" if facts.get("quarantined") else ""
    note = (
        "the TRAINING rows: name others by data.eval or data.holdout"
        if facts.get("training_rows")
        else ""
    )
    details = ", ".join(text for text in (rows, bad, note) if text)
    lines = {
        "model": facts["model"],
        "checkpoint": facts.get("checkpoint"),
        "teacher": facts.get("teacher"),
        "data": f"{facts['data']}   ({details})" if details else facts["data"],
    }
    return "\n".join(f"{name:<12} {value}" for name, value in lines.items() if value)


def summary_table(summary: Mapping[str, Any], temperature: float = 1.0) -> str:
    """Format name, value, interval and denominator of every figure."""
    questions, samples = int(summary.get("rows", 0)), int(summary.get("samples", 1))
    unanswered = int(summary.get("unanswered_rows") or 0)
    answers = "response" if samples == 1 else "responses"
    first = f"{questions:,} questions, {samples:,} {answers} each"
    if unanswered:
        first += f"; {unanswered:,} rows without a gold answer left out"
    warning = unparsed_warning(summary)
    lines = [first, *([f"WARNING: {warning}"] if warning else [])]
    for key, name in ROWS:
        value = summary.get(key)
        if value is None:
            continue
        low, high = summary.get(f"{key}_low"), summary.get(f"{key}_high")
        is_share = UNITS.get(key) != "tokens"
        scale, form, unit = (100, ".1f", " %") if is_share else (1, ".3f", "")
        band = ""
        if low is not None and high is not None:
            band = f"   95 % [{scale * low:{form}}, {scale * high:{form}}]"
        rows = summary.get(DENOMINATORS.get(key, ""))
        on = f"   on {int(rows):,} {UNITS.get(key, 'questions')}" if rows is not None else ""
        lines.append(
            f"{name.format(temperature=temperature):<40} {scale * value:{form}}{unit}{band}{on}"
        )
    if summary.get("swapped_rows") == 0 and summary.get("blind_rows"):
        lines.append(
            "  image swapped                          not measured: no row has another image"
        )
    return "\n".join(lines)

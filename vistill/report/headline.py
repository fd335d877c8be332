"""The summary at the top of the page. It claims no more than the measured numbers show."""

from collections.abc import Sequence

from vistill.evaluation.paired import LEVEL, holm_correction
from vistill.evaluation.unparsed import unparsed_warning
from vistill.report.comparison import compare_with_first, compare_with_start, may_compare
from vistill.report.run_data import RunData, temperature_label
from vistill.runs.recipe_changes import changed_versions

#: With more runs than this, the summary names significant differences only.
MAX_DETAILED_RUNS = 4


def percent(value: float | None) -> str:
    """`58.3 %`."""
    return "not measured" if value is None else f"{100 * value:.1f} %"


def interval(record: dict[str, float], name: str = "accuracy") -> str:
    """`58.3 % [55.2, 61.3]`."""
    if name not in record:
        return "not measured"
    low, high = record.get(f"{name}_low"), record.get(f"{name}_high")
    band = f" [{100 * low:.1f}, {100 * high:.1f}]" if low is not None and high is not None else ""
    return percent(record[name]) + band


def comparison_sentence(run: RunData, base: RunData) -> str:
    """Compare the last evaluations of two runs in words; empty if one has none."""
    comparison = compare_with_first(run, base)
    return comparison.words() if comparison else ""


def gap_sentence(run: RunData) -> str:
    """The accuracy lost with the pixelated image, with its denominator."""
    last, first = run.last, run.first
    gap = last.get("gap/pixelated")
    if gap is None:
        return ""
    same_rows = len(run.evaluations) > 1 and first.get("blind_rows") == last.get("blind_rows")
    before = first.get("gap/pixelated") if same_rows else None
    at_start = f"before training {100 * before:.1f}" if before is not None else ""
    rows = f"on {int(last['blind_rows']):,} questions" if "blind_rows" in last else ""
    facts = ", ".join(text for text in (rows, at_start) if text)
    return f"{run.name} loses {100 * gap:.1f} points with the pixelated image" + (
        f" ({facts})" if facts else ""
    )


def greedy_phrase(run: RunData) -> str:
    """`, greedy 71.1 % on 200 of them`, with the number of questions if it differs."""
    if "greedy_accuracy" not in run.last:
        return ""
    rows, sampled = run.last.get("greedy_rows"), run.last.get("rows")
    fewer = f" on {int(rows):,} of them" if rows is not None and rows != sampled else ""
    return f", greedy {accuracy_change(run, 'greedy_accuracy')}{fewer}"


def accuracy_change(run: RunData, key: str) -> str:
    """`22.9 % → 54.7 %` on equal questions; else on common questions, then the last value."""
    after = percent(run.last.get(key))
    pair = compare_with_start(run, "greedy" if key.startswith("greedy") else "sampled")
    if pair is None or key not in run.first:
        return after
    stored = pair.questions + pair.mismatched + pair.only_a + pair.only_b > 0
    same = pair.same_questions if stored else run.first.get("rows") == run.last.get("rows")
    if same:
        return f"{percent(run.first.get(key))} → {after}"
    if not pair.is_comparable:
        return after
    both = f"{percent(pair.accuracy_b)} → {percent(pair.accuracy_a)}"
    return (
        f"{both} on the {pair.questions:,} questions of the first and the last evaluation, {after}"
    )


def many_runs_headline(runs: Sequence[RunData]) -> str:
    """Summary of many runs: name only significant differences from the first run.

    With many comparisons some p-values are below 5 % by chance, so they are corrected (Holm).
    """
    base = runs[0]
    rows = [
        row
        for run in runs[1:]
        if may_compare(run, base) and (row := compare_with_first(run, base)) is not None
    ]
    comparable = [row for row in rows if row.pair.is_comparable]
    corrected = holm_correction([row.pair.p for row in comparable])
    significant = [row for row, p in zip(comparable, corrected, strict=True) if p < LEVEL]
    others = [run.name for run in runs[1:] if not may_compare(run, base)]
    accuracy = f"accuracy ({temperature_label([base])}) {accuracy_change(base, 'accuracy')}"
    parts = [f"{len(runs)} runs; the table below has each. {base.name}: {accuracy}"]
    parts += [row.words() for row in significant]
    rest = len(comparable) - len(significant)
    if rest:
        subject = f"The other {rest} do" if rest > 1 else "The other does"
        parts.append(f"{subject} not differ significantly from {base.name}")
    parts += [row.words() for row in rows if not row.pair.is_comparable]
    parts += (
        [f"{', '.join(others)} started from another student and are not compared"] if others else []
    )
    count = len(comparable)
    correction = f" Corrected for {count} comparisons (Holm)." if count > 1 else ""
    return ". ".join(parts) + f".{correction} Single runs: repeat with more seeds before a claim."


def headline(runs: Sequence[RunData]) -> str:
    """The summary of all runs in one paragraph."""
    unparsed = [f"{run.name}: {text}. " for run in runs if (text := unparsed_warning(run.last))]
    return "".join(unparsed) + results_headline(runs)


def results_headline(runs: Sequence[RunData]) -> str:
    """Accuracies, comparisons and gaps of all runs in one paragraph."""
    if len(runs) > MAX_DETAILED_RUNS:
        return many_runs_headline(runs)
    parts = []
    for run in runs:
        if "accuracy" in run.last:
            band = interval(run.last).removeprefix(percent(run.last["accuracy"]))
            rows = f"{int(run.last.get('rows', 0)):,} questions"
            at = temperature_label([run])
            value = f"{accuracy_change(run, 'accuracy')}{band} on {rows}{greedy_phrase(run)}"
            parts.append(f"{run.name}: accuracy ({at}) {value}")
    pairs = [comparison_sentence(run, runs[0]) for run in runs[1:] if may_compare(run, runs[0])]
    gaps = [gap_sentence(run) for run in runs]
    texts = [text for text in [*parts, *pairs, *gaps] if text]
    return ". ".join(texts) + "." if texts else "No evaluation yet."


def run_warnings(run: RunData) -> list[str]:
    """Warnings about the results of a run."""
    texts = []
    if run.result.get("skipped_updates"):
        texts.append(f"{run.result['skipped_updates']} non-finite updates were skipped")
    if run.result.get("training_rows"):
        texts.append("the figures are on training rows: name others by data.eval or data.holdout")
    if not run.result.get("finished"):
        texts.append(
            f"the run is not finished (last step {run.metrics[-1]['step'] if run.metrics else 0})"
        )
    if run.quarantine:
        texts.append(f"{len(run.quarantine)} rows were quarantined")
    last = run.last
    if (last.get("truncated_share") or 0) > 0.2:
        share = percent(last["truncated_share"])
        texts.append(f"{share} of the responses were truncated at the length limit")
    if unparsed := unparsed_warning(last):
        texts.append(unparsed)
    stopped = sum(value for name, value in last.items() if name.startswith("judge/"))
    if stopped:
        texts.append(
            f"{int(stopped):,} answers exceeded a limit of the comparison as mathematics and count"
            " as wrong"
        )
    if last.get("unanswered_rows"):
        texts.append(
            f"{int(last['unanswered_rows']):,} rows have no gold answer and count in no accuracy"
        )
    if last.get("swapped_rows", last.get("blind_rows")) != last.get("blind_rows"):
        counts = f"{int(last['swapped_rows']):,} of {int(last['blind_rows']):,}"
        texts.append(f"`swapped` uses {counts} rows: the others have no partner with another image")
    if "va/mean" in last and last["va/mean"] == 0:
        texts.append("visual advantage is 0 for all tokens: the teacher does not use the image")
    changed = changed_versions(run.lock)
    texts += [
        f"package {text} between two starts of the run: results may differ in the last bits"
        for text in changed
    ]
    return texts + [
        f"the setting {key} was changed during the run" for key in run.lock.get("accepted", [])
    ]

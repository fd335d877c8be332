"""The sentence at the top, made from measured numbers. It never claims more than they show."""

from collections.abc import Sequence

from vistill.evaluation.paired import LEVEL, holm
from vistill.report.comparison import compare_with_first, may_compare, since_start
from vistill.report.run_data import RunData, sampled_at
from vistill.runs.recipe_changes import changed_versions

#: From here on a page names differences beyond chance only.
MANY = 4


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


def difference(run: RunData, base: RunData) -> str:
    """How the last evaluations of two runs compare on the questions both answered; empty where one has none."""
    made = compare_with_first(run, base)
    return made.words() if made else ""


def picture_sentence(run: RunData) -> str:
    """What removing the picture costs, with its own denominator."""
    last, first = run.last, run.first
    gap = last.get("gap/pixelated")
    if gap is None:
        return ""
    alike = len(run.evaluations) > 1 and first.get("blind_rows") == last.get("blind_rows")
    before = first.get("gap/pixelated") if alike else None
    was = f"before training {100 * before:.1f}" if before is not None else ""
    rows = f"on {int(last['blind_rows']):,} questions" if "blind_rows" in last else ""
    facts = ", ".join(text for text in (rows, was) if text)
    return f"Pixelating the picture costs {run.name} {100 * gap:.1f} points" + (
        f" ({facts})" if facts else ""
    )


def greedily(run: RunData) -> str:
    """`, greedy 71.1 % on 200`: on how many where those are not the questions of the accuracy."""
    if "greedy_accuracy" not in run.last:
        return ""
    rows, sampled = run.last.get("greedy_rows"), run.last.get("rows")
    fewer = f" on {int(rows):,} of them" if rows is not None and rows != sampled else ""
    return f", greedy {change(run, 'greedy_accuracy')}{fewer}"


def change(run: RunData, key: str) -> str:
    """`22.9 % → 54.7 %` where both evaluations have the same questions; else each on its own, or the last alone."""
    after = percent(run.last.get(key))
    pair = since_start(run, "greedy" if key.startswith("greedy") else "sampled")
    if pair is None or key not in run.first:
        return after
    stored = pair.questions + pair.other + pair.only_a + pair.only_b > 0
    same = pair.same_set if stored else run.first.get("rows") == run.last.get("rows")
    if same:
        return f"{percent(run.first.get(key))} → {after}"
    if not pair.comparable:
        return after
    both = f"{percent(pair.accuracy_b)} → {percent(pair.accuracy_a)}"
    return (
        f"{both} on the {pair.questions:,} questions of the first and the last evaluation, {after}"
    )


def how_many(runs: Sequence[RunData]) -> str:
    """One sentence over many runs: only differences from the first that are beyond chance are named.

    With many comparisons some are below 5 % by luck, so the p-values are corrected for their number (Holm).
    """
    base = runs[0]
    made = [
        found
        for run in runs[1:]
        if may_compare(run, base) and (found := compare_with_first(run, base)) is not None
    ]
    judged = [found for found in made if found.pair.comparable]
    corrected = holm([found.pair.p for found in judged])
    clear = [found for found, p in zip(judged, corrected, strict=True) if p < LEVEL]
    others = [run.name for run in runs[1:] if not may_compare(run, base)]
    accuracy = f"accuracy ({sampled_at([base])}) {change(base, 'accuracy')}"
    parts = [f"{len(runs)} runs; the table below has each. {base.name}: {accuracy}"]
    parts += [found.words() for found in clear]
    unclear = len(judged) - len(clear)
    if unclear:
        rest = f"The other {unclear} do" if unclear > 1 else "The other does"
        parts.append(f"{rest} not differ from {base.name} beyond chance")
    parts += [found.words() for found in made if not found.pair.comparable]
    parts += (
        [f"{', '.join(others)} began from another student and are not compared"] if others else []
    )
    corrected_for = f" Corrected for {len(judged)} comparisons (Holm)." if len(judged) > 1 else ""
    return (
        ". ".join(parts)
        + f".{corrected_for} Single runs: see the seeds before believing a difference."
    )


def sentence(runs: Sequence[RunData]) -> str:
    """One paragraph from the measured numbers of all runs."""
    if len(runs) > MANY:
        return how_many(runs)
    parts = []
    for run in runs:
        if "accuracy" in run.last:
            band = interval(run.last).removeprefix(percent(run.last["accuracy"]))
            rows = f"{int(run.last.get('rows', 0)):,} questions"
            at = sampled_at([run])
            parts.append(
                f"{run.name}: accuracy ({at}) {change(run, 'accuracy')}{band} on {rows}{greedily(run)}"
            )
    pairs = [difference(run, runs[0]) for run in runs[1:] if may_compare(run, runs[0])]
    looking = [picture_sentence(run) for run in runs]
    said = [text for text in [*parts, *pairs, *looking] if text]
    return ". ".join(said) + "." if said else "Nothing has been evaluated yet."


def warnings(run: RunData) -> list[str]:
    """What a reader must know before believing a run."""
    out = []
    if run.result.get("skipped_updates"):
        out.append(
            f"{run.result['skipped_updates']} updates were skipped because they were not finite"
        )
    if run.result.get("training_rows"):
        out.append("no evaluation rows were named, so these are rows of the training data")
    if not run.result.get("finished"):
        out.append(
            f"the run is not finished (last step {run.metrics[-1]['step'] if run.metrics else 0})"
        )
    if run.quarantine:
        out.append(f"{len(run.quarantine)} rows were quarantined")
    last = run.last
    if (last.get("truncated_share") or 0) > 0.2:
        out.append(
            f"{percent(last['truncated_share'])} of the responses were cut off at the length limit"
        )
    if (last.get("unparsed_share") or 0) > 0.2:
        out.append(
            f"no answer was found in {percent(last['unparsed_share'])} of the responses, which count as wrong: look at"
            " what the student writes in samples/ before believing the accuracy"
        )
    if last.get("unanswered_rows"):
        out.append(
            f"{int(last['unanswered_rows']):,} rows without a gold answer are in no accuracy"
        )
    if last.get("swapped_rows", last.get("blind_rows")) != last.get("blind_rows"):
        few = f"{int(last['swapped_rows']):,} of {int(last['blind_rows']):,}"
        out.append(f"`swapped` is on {few} rows: no other picture can be shown to the others")
    if "va/mean" in last and last["va/mean"] == 0:
        out.append("visual advantage is 0 everywhere: the teacher does not see the picture")
    changed = changed_versions(run.lock)
    out += [
        f"package {text} between two starts of the run: last bits may differ" for text in changed
    ]
    return out + [
        f"the setting {key} was changed during the run" for key in run.lock.get("accepted", [])
    ]

"""The sentence at the top, made from measured numbers. It never claims more than they show."""

import math
from collections.abc import Sequence

from vistill.report.reading import RunData

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
    """How two runs compare on the same questions, in words that fit the uncertainty."""
    a, b = run.last, base.last
    if "accuracy" not in a or "accuracy" not in b or not a.get("rows"):
        return ""
    delta = a["accuracy"] - b["accuracy"]
    error = math.sqrt(sum(r["accuracy"] * (1 - r["accuracy"]) / max(1.0, r["rows"]) for r in (a, b)))
    points = f"{100 * abs(delta):.1f} points"
    if abs(delta) < 1.96 * error:
        points = f"{100 * delta:+.1f} points"
        return f"{run.name} and {base.name} do not differ beyond chance ({points}, s.e. {100 * error:.1f})"
    return f"{run.name} is {points} {'above' if delta > 0 else 'below'} {base.name} (s.e. {100 * error:.1f})"


def looks(run: RunData) -> str:
    """What removing the picture costs, with its own denominator."""
    last, first = run.last, run.first
    gap = last.get("gap/pixelated")
    if gap is None:
        return ""
    before = first.get("gap/pixelated") if len(run.evaluations) > 1 else None
    was = f", before training {100 * before:.1f}" if before is not None else ""
    rows = f"on the first {int(last['blind_rows']):,}" if "blind_rows" in last else ""
    return f"Pixelating the picture costs {run.name} {100 * gap:.1f} points ({rows}{was})"


def change(run: RunData, key: str) -> str:
    """`22.9 % → 54.7 %`, or one value where there is one evaluation."""
    after = percent(run.last.get(key))
    return after if len(run.evaluations) < 2 else f"{percent(run.first.get(key))} → {after}"


def same_start(run: RunData, base: RunData) -> bool:
    """Whether two runs began from the same student, so that a difference is the method's."""
    return run.recipe.get("student") == base.recipe.get("student")


def many(runs: Sequence[RunData]) -> str:
    """One sentence over many runs: only differences from the first that are beyond chance are named."""
    base = runs[0]
    said = {run.name: difference(run, base) for run in runs[1:] if same_start(run, base)}
    clear = [text for text in said.values() if text and "do not differ" not in text]
    unclear = sum("do not differ" in text for text in said.values())
    others = [run.name for run in runs[1:] if not same_start(run, base)]
    parts = [f"{len(runs)} runs; the table below has each. {base.name}: accuracy (T = 1) {change(base, 'accuracy')}"]
    parts += clear
    parts += [f"The other {unclear} do not differ from {base.name} beyond chance"] if unclear else []
    parts += [f"{', '.join(others)} began from another student and are not compared"] if others else []
    return ". ".join(parts) + ". Single runs: see the seeds before believing a difference."


def sentence(runs: Sequence[RunData]) -> str:
    """One paragraph from the measured numbers of all runs."""
    if len(runs) > MANY:
        return many(runs)
    parts = []
    for run in runs:
        if "accuracy" in run.last:
            band = interval(run.last).partition(" [")[2]
            greedy = f", greedy {change(run, 'greedy_accuracy')}" if "greedy_accuracy" in run.last else ""
            rows = f"{int(run.last.get('rows', 0)):,} questions"
            parts.append(f"{run.name}: accuracy (T = 1) {change(run, 'accuracy')} [{band} on {rows}{greedy}")
    pairs = [difference(run, runs[0]) for run in runs[1:] if same_start(run, runs[0])]
    looking = [looks(run) for run in runs]
    said = [text for text in [*parts, *pairs, *looking] if text]
    return ". ".join(said) + "." if said else "Nothing has been evaluated yet."


def warnings(run: RunData) -> list[str]:
    """What a reader must know before believing a run."""
    out = []
    if run.result.get("skipped_updates"):
        out.append(f"{run.result['skipped_updates']} updates were skipped because they were not finite")
    if run.result.get("training_rows"):
        out.append("no evaluation rows were named, so these are rows of the training data")
    if not run.result.get("finished"):
        out.append(f"the run is not finished (last step {run.metrics[-1]['step'] if run.metrics else 0})")
    if run.quarantine:
        out.append(f"{len(run.quarantine)} rows were quarantined")
    last = run.last
    if last.get("truncated_share", 0) > 0.2:
        out.append(f"{percent(last['truncated_share'])} of the responses were cut off at the length limit")
    if "va/mean" in last and last["va/mean"] == 0:
        out.append("visual advantage is 0 everywhere: the teacher does not see the picture")
    return out + [f"the setting {key} was changed during the run" for key in run.lock.get("accepted", [])]

"""Compare the evaluations of runs: each with its own start and with the first run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vistill.evaluation.paired import PairedComparison, compare
from vistill.report.run_data import RunData

#: Settings of the measurement; accuracies under different values are not directly comparable.
PROTOCOL = (
    ("eval", "temperature"),
    ("eval", "top_p"),
    ("eval", "max_new_tokens"),
    ("eval", "answer"),
    ("data", "system"),
    ("data", "max_image_tokens"),
    ("data", "min_pixels"),
    ("data", "max_pixels"),
)


@dataclass(frozen=True)
class ComparisonRow:
    """One row of the table of comparisons."""

    a: str
    b: str
    pair: PairedComparison
    notes: tuple[str, ...] = ()

    @property
    def denominator(self) -> str:
        """The compared questions, with all caveats."""
        return "; ".join([self.pair.denominator(self.a, self.b), *self.notes])

    @property
    def figures(self) -> str:
        """`95 % [1.2, 6.0], p = 0.004`."""
        p = p_text(self.pair.p)
        interval = f"95 % [{100 * self.pair.low:+.1f}, {100 * self.pair.high:+.1f}]"
        return f"{interval}, p {p if '<' in p else f'= {p}'}"

    def words(self) -> str:
        """The comparison as a clause that states its uncertainty, or why there is none."""
        points, where = 100 * self.pair.difference, f"{self.figures}, {self.denominator}"
        if not self.pair.is_comparable:
            return f"{self.a} and {self.b} are {self.denominator}"
        if not self.pair.is_significant:
            verdict = "do not differ significantly"
            return f"{self.a} and {self.b} {verdict} ({points:+.1f} points, {where})"
        side = "above" if points > 0 else "below"
        return f"{self.a} is {abs(points):.1f} points {side} {self.b} ({where})"


def p_text(p: float) -> str:
    """Format a p-value: `0.03`, or `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def step_of(record: dict[str, Any]) -> int:
    """The step of an evaluation record."""
    return int(record.get("step", 0))


def compare_with_first(run: RunData, base: RunData) -> ComparisonRow | None:
    """Compare the last evaluations of two runs; None if one has no accuracy."""
    if run.last.get("accuracy") is None or base.last.get("accuracy") is None:
        return None
    pair = compare(run.answers(step_of(run.last)), base.answers(step_of(base.last)))
    return ComparisonRow(run.name, base.name, pair, tuple(protocol_differences(run, base)))


def compare_with_start(run: RunData, mode: str = "sampled") -> PairedComparison | None:
    """Compare the last evaluation of a run with its first; None if there is only one."""
    if len(run.evaluations) < 2:
        return None
    return compare(run.answers(step_of(run.last), mode), run.answers(step_of(run.first), mode))


def protocol_differences(run: RunData, base: RunData) -> list[str]:
    """The settings of the measurement that differ, in words."""
    texts = []
    for block, key in PROTOCOL:
        a, b = (r.recipe.get(block, {}).get(key) for r in (run, base))
        if a != b and run.recipe.get(block) and base.recipe.get(block):
            texts.append(f"measured with {block}.{key} {a} and {b}")
    return texts


def same_start(run: RunData, base: RunData) -> bool:
    """Whether two runs started from the same student."""
    return run.recipe.get("student") == base.recipe.get("student")


def is_evaluation(run: RunData) -> bool:
    """Whether the folder holds an evaluation without training (`vistill eval`)."""
    return run.result.get("kind") == "evaluation"


def may_compare(run: RunData, base: RunData) -> bool:
    """Whether a comparison makes sense: equal students at the start, or evaluations only."""
    return same_start(run, base) or is_evaluation(run) or is_evaluation(base)


def comparison_table(runs: Sequence[RunData]) -> list[ComparisonRow]:
    """Compare each run with its own start, then each run with the first one."""
    rows = []
    for run in runs:
        pair = compare_with_start(run)
        if pair is not None:
            rows.append(
                ComparisonRow(
                    f"{run.name}, step {step_of(run.last):,}", f"step {step_of(run.first):,}", pair
                )
            )
    for run in runs[1:]:
        row = compare_with_first(run, runs[0])
        if row is not None:
            caveat = () if may_compare(run, runs[0]) else ("they started from different students",)
            rows.append(ComparisonRow(row.a, row.b, row.pair, (*row.notes, *caveat)))
    return rows


def describe_checkpoint(run: RunData) -> str:
    """Name the student's checkpoint, how it was selected, and whether the figures belong to it."""
    name, result = run.result.get("checkpoint"), run.result
    if not name:
        return ""
    selection = result.get("chosen") or {}
    best = result.get("best") or {}
    step = selection.get("step", best.get("step", result.get("step")))
    by = selection.get("by") or ("the accuracy during the run" if best else "last")
    value = selection.get("value") if selection.get("by") else best.get("value")
    reason = "the last one" if by == "last" else f"selected by {by}{value_text(value)}"
    text = f"gives {name} (step {step}), {reason}"
    if isinstance(step, int) and run.evaluations and step != step_of(run.last):
        text += f". The last evaluation is of step {step_of(run.last):,}, not of this checkpoint"
    return text


def value_text(value: Any) -> str:
    """`: 41.2 %`."""
    return f": {100 * value:.1f} %" if isinstance(value, (int, float)) else ""

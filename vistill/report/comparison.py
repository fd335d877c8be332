"""Which evaluations a page compares: each run with its own start, and with the first run, question by question."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vistill.evaluation.paired import Paired, compare
from vistill.report.run_data import RunData

#: Settings that decide what an accuracy means; runs that differ in them were measured differently.
PROTOCOL = (
    ("eval", "temperature"),
    ("eval", "top_p"),
    ("eval", "max_new_tokens"),
    ("eval", "answer"),
    ("data", "system"),
    ("data", "max_image_tokens"),
)


@dataclass(frozen=True)
class Comparison:
    """One line of the table of comparisons."""

    a: str
    b: str
    pair: Paired
    notes: tuple[str, ...] = ()

    @property
    def denominator(self) -> str:
        """On what it stands, with everything that must be known about it."""
        return "; ".join([self.pair.denominator(self.a, self.b), *self.notes])

    @property
    def figures(self) -> str:
        """`95 % [1.2, 6.0], p = 0.004`."""
        p = p_text(self.pair.p)
        return f"95 % [{100 * self.pair.low:+.1f}, {100 * self.pair.high:+.1f}], p {p if '<' in p else f'= {p}'}"

    def words(self) -> str:
        """How the two compare, in words that fit the uncertainty; why there is no comparison."""
        points, where = 100 * self.pair.difference, f"{self.figures}, {self.denominator}"
        if not self.pair.comparable:
            return f"{self.a} and {self.b} are {self.denominator}"
        if not self.pair.beyond_chance:
            return (
                f"{self.a} and {self.b} do not differ beyond chance ({points:+.1f} points, {where})"
            )
        return f"{self.a} is {abs(points):.1f} points {'above' if points > 0 else 'below'} {self.b} ({where})"


def p_text(p: float) -> str:
    """`0.03`, or `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def step_of(record: dict[str, Any]) -> int:
    """The step of an evaluation."""
    return int(record.get("step", 0))


def compare_with_first(run: RunData, base: RunData) -> Comparison | None:
    """The last evaluation of a run against that of another; None where one was never judged."""
    if run.last.get("accuracy") is None or base.last.get("accuracy") is None:
        return None
    pair = compare(run.answers(step_of(run.last)), base.answers(step_of(base.last)))
    return Comparison(run.name, base.name, pair, tuple(measured_differently(run, base)))


def since_start(run: RunData, mode: str = "sampled") -> Paired | None:
    """The last evaluation of a run against its first; None where there is only one."""
    if len(run.evaluations) < 2:
        return None
    return compare(run.answers(step_of(run.last), mode), run.answers(step_of(run.first), mode))


def measured_differently(run: RunData, base: RunData) -> list[str]:
    """Settings of the measurement that differ, in words."""
    out = []
    for block, key in PROTOCOL:
        a, b = (r.recipe.get(block, {}).get(key) for r in (run, base))
        if a != b and run.recipe.get(block) and base.recipe.get(block):
            out.append(f"measured with {block}.{key} {a} and {b}")
    return out


def same_start(run: RunData, base: RunData) -> bool:
    """Whether two runs began from the same student, so that a difference is the method's."""
    return run.recipe.get("student") == base.recipe.get("student")


def is_evaluation(run: RunData) -> bool:
    """Whether the folder holds an evaluation of a model alone (`vistill eval`)."""
    return run.result.get("kind") == "evaluation"


def may_compare(run: RunData, base: RunData) -> bool:
    """Trained runs are compared where they began alike; models that were only judged always."""
    return same_start(run, base) or is_evaluation(run) or is_evaluation(base)


def comparison_table(runs: Sequence[RunData]) -> list[Comparison]:
    """Each run against its own start, then each against the first one."""
    rows = []
    for run in runs:
        pair = since_start(run)
        if pair is not None:
            rows.append(
                Comparison(
                    f"{run.name}, step {step_of(run.last):,}", f"step {step_of(run.first):,}", pair
                )
            )
    for run in runs[1:]:
        made = compare_with_first(run, runs[0])
        if made is not None:
            other = () if may_compare(run, runs[0]) else ("they began from different students",)
            rows.append(Comparison(made.a, made.b, made.pair, (*made.notes, *other)))
    return rows


def chosen_accuracy(run: RunData) -> str:
    """Which checkpoint the run hands out, how it was chosen, and whether it is the one the figures are of."""
    name, result = run.result.get("checkpoint"), run.result
    if not name:
        return ""
    how = result.get("chosen") or {}
    best = result.get("best") or {}
    step = how.get("step", best.get("step", result.get("step")))
    if how.get("by"):
        by = (
            "it is the last one"
            if how["by"] == "last"
            else f"chosen by {how['by']}{value_text(how.get('value'))}"
        )
    elif best:
        by = f"chosen by the accuracy of the evaluations during the run{value_text(best.get('value'))}"
    else:
        by = "it is the last one"
    text = f"hands out {name} (step {step}): {by}"
    if isinstance(step, int) and run.evaluations and step != step_of(run.last):
        text += f". The figures of the last evaluation are of step {step_of(run.last):,}, not of this checkpoint"
    return text


def value_text(value: Any) -> str:
    """`: 41.2 %`."""
    return f": {100 * value:.1f} %" if isinstance(value, (int, float)) else ""

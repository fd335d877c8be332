"""The table of a comparison: results of runs, paired differences, CSV files and the page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from vistill.evaluation.crossed import CrossedStatistics, crossed_statistics
from vistill.report.charts import Axes, Series, line_chart
from vistill.report.csv_file import write_csv
from vistill.report.page import page_environment
from vistill.report.run_data import read_json
from vistill.runs.folder import RunFolder
from vistill.runs.storage import read_lines, write_json, write_text
from vistill.studies.arms import Arm, last_evaluation

#: The two views of a comparison.
VIEWS = ("equal updates", "equal compute")


@dataclass(frozen=True)
class RunResult:
    """One finished run."""

    arm: str
    seed: int
    student: int
    teacher: int
    rate: float
    updates: int
    before: float
    """Accuracy at step 0."""
    accuracy: float
    """Accuracy after the last update."""
    greedy: float | None
    compute: float
    """Matrix products of all training steps, rollouts included, in 10^12 operations."""
    curve: tuple[tuple[float, float], ...]
    """(compute so far, accuracy) of each evaluation."""
    figures: Mapping[str, float]
    """Means of the method's figures over steps: misreads, weights, losses."""

    @property
    def key(self) -> tuple[int, int, int]:
        """Student, teacher and seed."""
        return self.student, self.teacher, self.seed

    def accuracy_at(self, compute: float) -> float:
        """Accuracy after an amount of compute, between two evaluations on a straight line.

        At an evaluation it is exactly the accuracy of that one: rounding would put one of two equal
        arms ahead.
        """
        for (x0, y0), (x1, y1) in zip(self.curve, self.curve[1:], strict=False):
            if compute in (x0, x1):
                return y1 if compute == x1 else y0
            if x0 < compute < x1:
                return y0 + (y1 - y0) * (compute - x0) / (x1 - x0)
        return self.accuracy


@dataclass(frozen=True)
class Comparison:
    """All runs of a comparison."""

    methods: tuple[str, ...]
    results: tuple[RunResult, ...]
    rates: Mapping[str, float]
    notes: tuple[str, ...]

    def of(self, arm: str) -> list[RunResult]:
        """The runs of an arm."""
        return [result for result in self.results if result.arm == arm]

    def values(self, arm: str, view: str) -> dict[tuple[int, int, int], float]:
        """The accuracy of each run of an arm, under one view.

        Under `equal compute` all arms of a seed get what its cheapest arm took.
        """
        if view == VIEWS[0]:
            return {result.key: result.accuracy for result in self.of(arm)}
        least = {
            result.key: min(r.compute for r in self.results if r.key == result.key)
            for result in self.of(arm)
        }
        return {result.key: result.accuracy_at(least[result.key]) for result in self.of(arm)}

    def difference(self, arm: str, base: str, view: str) -> CrossedStatistics:
        """The paired difference of two arms."""
        ours, theirs = self.values(arm, view), self.values(base, view)
        return crossed_statistics({key: ours[key] - theirs[key] for key in ours})

    def pairs(self) -> list[tuple[str, str]]:
        """Each later arm minus each earlier one."""
        return [
            (arm, base)
            for place, arm in enumerate(self.methods)
            for base in reversed(self.methods[:place])
        ]

    def marks(self) -> list[str]:
        """Seeds whose arms did not start from the same accuracy: they are not matched."""
        starts: dict[tuple[int, int, int], set[float]] = {}
        for result in self.results:
            starts.setdefault(result.key, set()).add(result.before)
        return [
            f"NOT MATCHED: the arms of seed {key[2]} have different accuracies before training."
            for key, values in starts.items()
            if len(values) > 1
        ]


def read_result(arm: Arm, seed: int, student: int, teacher: int) -> RunResult:
    """Read a finished run (S605 without an evaluation)."""
    folder = RunFolder(arm.folder)
    accuracy, _ = last_evaluation(arm)
    by_step = {record["step"]: record for record in read_lines(folder.timing)}
    compute, so_far = {0: 0.0}, 0.0
    for step in sorted(by_step):
        so_far += sum(phase.get("flops", 0.0) for phase in by_step[step]["work"].values()) / 1e12
        compute[step] = so_far
    evaluations = {record["step"]: record for record in read_lines(folder.evaluations)}
    steps = sorted(evaluations)
    return RunResult(
        arm=arm.name,
        seed=seed,
        student=student,
        teacher=teacher,
        rate=arm.settings.train.lr,
        updates=read_json(arm.folder / "result.json").get("step", max(compute)),
        before=evaluations[steps[0]]["accuracy"],
        accuracy=accuracy,
        greedy=evaluations[steps[-1]].get("greedy_accuracy"),
        compute=so_far,
        curve=tuple((compute[step], evaluations[step]["accuracy"]) for step in steps),
        figures=mean_figures(list(read_lines(folder.metrics))),
    )


def mean_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean of every figure of the method over the steps that have it.

    A figure that was not finite, as in a skipped update, is null in the log and left out.
    """
    groups = ("misread/", "weight/", "va/", "loss/", "rollout/tokens")
    steps: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.items():
            if name.startswith(groups) and value is not None:
                steps.setdefault(name, []).append(float(value))
    return {name: sum(values) / len(values) for name, values in sorted(steps.items())}


def best_rates(runs: Mapping[str, Sequence[RunResult]]) -> dict[str, float]:
    """The rate of each arm's most accurate run; the lower one where two are equal."""
    return {
        arm: min(results, key=lambda result: (-result.accuracy, result.rate)).rate
        for arm, results in runs.items()
    }


def run_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row per run, accuracies in both views."""
    compute = {arm: comparison.values(arm, VIEWS[1]) for arm in comparison.methods}
    rows = []
    for result in comparison.results:
        plain = {k: v for k, v in asdict(result).items() if k not in ("curve", "figures")}
        rows.append(
            {**plain, "accuracy_equal_compute": compute[result.arm][result.key], **result.figures}
        )
    return rows


def difference_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row per pair of arms and view."""
    return [
        {"arm": arm, "minus": base, "view": view, **asdict(comparison.difference(arm, base, view))}
        for view in VIEWS
        for arm, base in comparison.pairs()
    ]


def write_files(comparison: Comparison, folder: Path) -> None:
    """Write `runs.csv`, `differences.csv`, `compare.json` and `compare.html`."""
    runs = run_rows(comparison)
    differences = [without_nan(row) for row in difference_rows(comparison)]
    write_csv(folder / "runs.csv", list(dict.fromkeys(k for row in runs for k in row)), runs)
    write_csv(folder / "differences.csv", list(differences[0]) if differences else [], differences)
    record = {
        "methods": comparison.methods,
        "rates": comparison.rates,
        "notes": [*comparison.notes, *comparison.marks()],
        "runs": runs,
        "differences": differences,
    }
    write_json(folder / "compare.json", record)
    write_text(folder / "compare.html", page(comparison))


def without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with null for what does not exist."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def points(value: float) -> str:
    """A difference of accuracies in points."""
    return "-" if math.isnan(value) else f"{100 * value:+.1f}"


def interval(low: float, high: float) -> str:
    """An interval of differences in points; `-` where there is none."""
    return "-" if math.isnan(low) else f"{points(low)} to {points(high)}"


def p_value(value: float, digits: int = 3) -> str:
    """Never zero: `< 0.001` with three digits; `-` where there is none."""
    if math.isnan(value):
        return "-"
    least = 10.0**-digits
    return f"{value:.{digits}f}" if value >= least else f"< {least:.{digits}f}"


def arm_lines(comparison: Comparison) -> list[list[str]]:
    """The table of arms: mean accuracies, per seed, and compute."""
    lines = []
    for arm in comparison.methods:
        results = comparison.of(arm)
        equal = comparison.values(arm, VIEWS[1])
        greedy = [r.greedy for r in results if r.greedy is not None]
        lines.append(
            [
                arm,
                f"{results[0].rate:g}",
                f"{100 * fmean([r.before for r in results]):.1f}",
                f"{100 * fmean([r.accuracy for r in results]):.1f}",
                ", ".join(f"{100 * r.accuracy:.1f}" for r in results),
                f"{100 * fmean(list(equal.values())):.1f}",
                f"{100 * fmean(greedy):.1f}" if greedy else "-",
                f"{fmean([r.compute for r in results]):.3g}",
            ]
        )
    return lines


ARM_HEADINGS = (
    "arm", "rate", "before", "after", "per seed", "at equal compute", "greedy", "10^12 operations"
)  # fmt: skip


def difference_lines(comparison: Comparison) -> list[list[str]]:
    """The table of paired differences in points."""
    return [
        [
            f"{row['arm']} minus {row['minus']}",
            row["view"],
            points(row["mean"]),
            interval(row["low"], row["high"]),
            interval(row["student_low"], row["student_high"]),
            p_value(row["p"]),
            f"{row['ahead']} of {row['runs']}",
        ]
        for row in difference_rows(comparison)
    ]


DIFFERENCE_HEADINGS = (
    "difference", "view", "points", "bootstrap, students and teachers", "t, students",
    "p, students", "ahead",
)  # fmt: skip


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    rule = f"|{' --- |' * len(headings)}"
    return "\n".join(
        [f"| {' | '.join(headings)} |", rule, *(f"| {' | '.join(line)} |" for line in lines)]
    )


def print_table(comparison: Comparison, folder: Path) -> None:
    """Print both tables, the notes and the page."""
    print(f"\n{markdown(ARM_HEADINGS, arm_lines(comparison))}")
    print(f"\n{markdown(DIFFERENCE_HEADINGS, difference_lines(comparison))}\n")
    for note in (*comparison.notes, *comparison.marks()):
        print(note)
    print(f"table   {folder / 'differences.csv'}\nreport  {folder / 'compare.html'}")


def page(comparison: Comparison) -> str:
    """The comparison as one offline HTML page."""
    series = [
        Series(arm, mean_curve(comparison.of(arm)), place)
        for place, arm in enumerate(comparison.methods)
    ]
    axes = Axes("Accuracy against compute, mean over runs", "10^12 operations", "accuracy")
    return (
        page_environment()
        .get_template("compare.html.jinja")
        .render(
            methods=comparison.methods,
            tables=[
                ("Arms", ARM_HEADINGS, arm_lines(comparison)),
                (
                    "Paired differences, in points",
                    DIFFERENCE_HEADINGS,
                    difference_lines(comparison),
                ),
            ],
            chart=line_chart(series, axes),
            figures=figure_lines(comparison),
            notes=[*comparison.notes, *comparison.marks()],
        )
    )


def mean_curve(results: Sequence[RunResult]) -> list[tuple[float, float]]:
    """Mean compute and mean accuracy of each evaluation."""
    curves = zip(*(result.curve for result in results), strict=True)
    return [(fmean([x for x, _ in at]), fmean([y for _, y in at])) for at in curves]


def figure_lines(comparison: Comparison) -> tuple[Sequence[str], list[list[str]]]:
    """Means of the methods' figures by arm."""
    names = sorted({name for result in comparison.results for name in result.figures})
    lines = []
    for name in names:
        cells = []
        for arm in comparison.methods:
            values = [r.figures[name] for r in comparison.of(arm) if name in r.figures]
            cells.append(f"{fmean(values):.4g}" if values else "-")
        lines.append([name, *cells])
    return ("mean over steps", *comparison.methods), lines

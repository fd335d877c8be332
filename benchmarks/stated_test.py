"""The test that was stated before its runs (`docs/lab-notes.md`, 2026-11-28), from stored results.

`python benchmarks/stated_test.py` writes its tables into docs/results.md, between their marks, from
the two held-back cells in `benchmarks/results/map.json` (`map_page.py` stores them there). Nothing
is computed before both cells are complete.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import map_page
from map import CELLS, TEST_ARMS

from vistill.evaluation.crossed import CrossedStatistics, crossed_statistics
from vistill.evaluation.paired import LEVEL, holm_correction
from vistill.studies.compare_table import p_value

BEGIN = "<!-- stated test: python benchmarks/stated_test.py -->"
END = "<!-- end of the stated test -->"
OURS = "grounded_opd"
BASES = ("opd", "va_opd")
#: Students, teachers, and pairs of both: one run of each arm.
STUDENTS, TEACHERS = 5, 2
HELD_BACK = tuple(name for name, cell in CELLS.items() if cell.held_back)


@dataclass(frozen=True)
class Difference:
    """`grounded_opd` minus another arm in one cell, in points."""

    facts: CrossedStatistics
    p: float
    """Two-sided t-test over the means of the students, Holm over the cells."""

    @property
    def word(self) -> str:
        """Whether our method is ahead, behind, or neither can be said."""
        if not self.p < LEVEL:
            return "neither"
        return "ahead" if self.facts.mean > 0 else "behind"


def missing_runs(cell: Mapping[str, Any]) -> str:
    """How a cell differs from one run per arm of each of its ten pairs; empty where it does not."""
    pairs = {arm: map_page.accuracies(cell, arm) for arm in TEST_ARMS}
    whole = {
        arm: (len({key[:2] for key in runs}), len({key[0] for key in runs}), len(runs))
        for arm, runs in pairs.items()
    }
    wanted = (STUDENTS * TEACHERS, STUDENTS, STUDENTS * TEACHERS)
    lacking = [
        f"{arm} has {n} pairs in {runs} runs"
        for arm, (n, students, runs) in whole.items()
        if (n, students, runs) != wanted
    ]
    lacking += [note for note in cell["notes"] if note.startswith("NOT MATCHED")]
    same = len({tuple(sorted(runs)) for runs in pairs.values()}) == 1
    return "; ".join(lacking) or ("" if same else "the arms have different pairs")


def tested(results: Mapping[str, Any]) -> dict[tuple[str, str], Difference]:
    """(cell, base) -> difference, corrected over the cells, separately for each base."""
    answer = {}
    for base in BASES:
        facts = [
            crossed_statistics(map_page.differences(results[cell], OURS, base))
            for cell in HELD_BACK
        ]
        corrected = holm_correction([row.p for row in facts])
        answer |= {
            (cell, base): Difference(row, p)
            for cell, row, p in zip(HELD_BACK, facts, corrected, strict=True)
        }
    return answer


def outcome(words: Mapping[tuple[str, str], str]) -> str:
    """The result in the terms that were stated before the runs."""
    behind = [f"behind `{base}` in `{cell}`" for (cell, base), w in words.items() if w == "behind"]
    ahead = {base: [c for c in HELD_BACK if words[c, base] == "ahead"] for base in BASES}
    of_opd, of_va = ahead["opd"], ahead["va_opd"]
    if behind:
        return f"**Failure**: `{OURS}` is significantly {' and '.join(behind)}."
    if not of_opd:
        return f"**Failure**: no significant gain of `{OURS}` over `opd` in either cell."
    if len(of_opd) == len(of_va) == len(HELD_BACK):
        return (
            f"**Success**: `{OURS}` is significantly ahead of `opd` and of `va_opd` in both cells."
        )
    if len(of_opd) == len(HELD_BACK) and not of_va:
        return (
            f"`{OURS}` is significantly ahead of `opd` in both cells and of `va_opd` in neither: "
            "stopping at misreads replaces the weights of `va_opd` and adds nothing shown "
            "over them."
        )
    return " ".join(one_of_two(base, ahead[base]) for base in BASES)


def one_of_two(base: str, cells: list[str]) -> str:
    """In which cells our method is ahead, the other one in the same sentence."""
    others = [f"`{cell}`" for cell in HELD_BACK if cell not in cells]
    if not others:
        return f"`{OURS}` is significantly ahead of `{base}` in both cells."
    if not cells:
        return f"It is significantly ahead of `{base}` in neither cell."
    return (
        f"`{OURS}` is significantly ahead of `{base}` in one of two cells: in `{cells[0]}`, "
        f"not in {others[0]}."
    )


def difference_lines(differences: Mapping[tuple[str, str], Difference]) -> Iterator[str]:
    """One row per cell and base: what decides, then what is printed next to it."""
    yield (
        "| cell | minus | mean | 95 % interval, students | p, Holm | result | pairs ahead "
        "| bootstrap, students and teachers | sign-flip p |"
    )
    yield "|---" * 9 + "|"
    for (cell, base), difference in differences.items():
        facts = difference.facts
        interval = f"{facts.student_low:+.1f} to {facts.student_high:+.1f}"
        bootstrap = f"{facts.low:+.1f} to {facts.high:+.1f}"
        yield (
            f"| `{cell}` | `{base}` | **{facts.mean:+.1f}** | {interval} "
            f"| {p_value(difference.p, 4)} | {difference.word} | {facts.ahead} of {facts.runs} "
            f"| {bootstrap} | {p_value(facts.sign_flip_p, 4)} |"
        )


def arm_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """One row per cell and arm: its rate and its mean accuracies."""
    yield "| cell | arm | rate | T = 1 | greedy | T = 1 at equal compute | before |"
    yield "|---" * 7 + "|"
    for cell in HELD_BACK:
        for arm in TEST_ARMS:
            rates = {run["rate"] for run in results[cell]["runs"] if run["arm"] == arm}
            words = [f"{rate:g}" for rate in sorted(rates)]
            words += [
                map_page.mean_of(results[cell], arm, key)
                for key in ("accuracy", "greedy", "accuracy_equal_compute", "before")
            ]
            yield f"| `{cell}` | `{arm}` | {' | '.join(words)} |"


def pair_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """Accuracy at T = 1 of every pair, and how often rollouts of `grounded_opd` misread."""
    arms = " | ".join(f"`{arm}`" for arm in TEST_ARMS)
    yield f"| cell | student, teacher | {arms} | rollouts that misread |"
    yield "|---" * (3 + len(TEST_ARMS)) + "|"
    for cell in HELD_BACK:
        by_arm = {arm: map_page.accuracies(results[cell], arm) for arm in TEST_ARMS}
        misread = map_page.accuracies(results[cell], OURS, "misread/rollout_share")
        for key in sorted(by_arm[OURS]):
            values = [*(by_arm[arm][key] for arm in TEST_ARMS), misread[key]]
            words = [f"{100 * value:.1f}" for value in values]
            yield f"| `{cell}` | {key[0]}, {key[1]} | {' | '.join(words)} |"


def lines_of(results: Mapping[str, Any]) -> list[str]:
    """What stands between the marks of the page."""
    absent = [f"`{cell}`" for cell in HELD_BACK if cell not in results]
    if absent:
        return [f"Not complete yet: {', '.join(absent)}."]
    for cell in HELD_BACK:
        if lacking := missing_runs(results[cell]):
            raise SystemExit(f"{cell} is not complete: {lacking.rstrip('.')}. No test is computed.")
    differences = tested(results)
    words = {key: difference.word for key, difference in differences.items()}
    return [
        outcome(words),
        "",
        *difference_lines(differences),
        "",
        *arm_lines(results),
        "",
        *pair_lines(results),
    ]


def page_with(text: str, results: Mapping[str, Any]) -> str:
    """The page with the tables of these results between its marks."""
    return map_page.replaced_between(text, BEGIN, END, "\n".join(lines_of(results)))


def main() -> None:
    """Write the tables of the stated test into the page."""
    results = json.loads(map_page.RESULTS.read_text())
    map_page.PAGE.write_text(page_with(map_page.PAGE.read_text(), results))


if __name__ == "__main__":
    main()

"""The table and the figure of the map: one row per cell of `benchmarks/map.py` that is finished.

    python benchmarks/map_page.py FOLDER   add the finished cells of FOLDER, write table and figure
    python benchmarks/map_page.py          write both again from the stored results

The results are `benchmarks/results/map.json`, the table is in docs/results.md between its marks,
the figure is docs/images/map.svg.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from statistics import correlation, fmean
from typing import Any

from map import CELLS, VARIANTS

from vistill.evaluation.crossed import Crossed, crossed_statistics

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "map.json"
PAGE, FIGURE = ROOT / "docs" / "results.md", ROOT / "docs" / "images" / "map.svg"
BEGIN, END = "<!-- map: python benchmarks/map_page.py -->", "<!-- end of the map -->"
VARIANTS_BEGIN = "<!-- variants: python benchmarks/map_page.py -->"
VARIANTS_END = "<!-- end of the variants -->"
#: What is shown of each cell: arm, the arm it is compared with, and its colour (Okabe and Ito).
SHOWN = (
    ("va_opd", "opd", "#0072B2"),
    ("va_rollouts", "opd", "#009E73"),
    ("grounded_opd", "opd", "#D55E00"),
    ("grounded_opd", "va_opd", "#CC79A7"),
)
KEPT = (
    "arm", "seed", "student", "teacher", "rate", "before",
    "accuracy", "accuracy_equal_compute", "greedy", "compute",
    "misread/rollout_share", "misread/kept_share",
)  # fmt: skip
WIDTH, LEFT, RIGHT, TOP, ROW, STEP = 900, 170, 20, 70, 74, 15
TICK = 10


def read_cell(name: str, folder: Path) -> dict[str, Any]:
    """What is stored of a finished cell."""
    record = json.loads((folder / name / "compare.json").read_text())
    return {
        "what": asdict(CELLS[name]),
        "notes": record["notes"],
        "runs": [{key: run[key] for key in KEPT if key in run} for run in record["runs"]],
    }


def accuracies(cell: Mapping[str, Any], arm: str, key: str = "accuracy") -> Crossed:
    """The accuracy, or another figure, of each run of an arm, by student, teacher and seed."""
    return {
        (run["student"], run["teacher"], run["seed"]): run[key]
        for run in cell["runs"]
        if run["arm"] == arm
    }


def differences(cell: Mapping[str, Any], arm: str, base: str, key: str = "accuracy") -> Crossed:
    """Run by run the accuracy of an arm minus that of another one, in points."""
    ours, theirs = accuracies(cell, arm, key), accuracies(cell, base, key)
    return {key: 100 * (value - theirs[key]) for key, value in ours.items()}


def mean_of(cell: Mapping[str, Any], arm: str, key: str) -> str:
    """The mean of a figure over the runs of an arm, in per cent; `-` without it."""
    values = [run[key] for run in cell["runs"] if run["arm"] == arm and run.get(key) is not None]
    return f"{100 * fmean(values):.1f}" if values else "-"


def accuracy_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """The table of arms: mean accuracies at T = 1, in brackets greedy; rollouts with a misread."""
    arms = list(dict.fromkeys(arm for pair in SHOWN for arm in reversed(pair[:2])))
    names = " | ".join(f"`{arm}`" for arm in arms)
    yield f"| cell | before | {names} | rollouts that misread | tokens kept |"
    yield "|---" * (4 + len(arms)) + "|"
    for name, cell in results.items():
        words = [f"`{name}`", mean_of(cell, arms[0], "before")]
        words += [
            f"{mean_of(cell, arm, 'accuracy')} ({mean_of(cell, arm, 'greedy')})" for arm in arms
        ]
        words += [mean_of(cell, "grounded_opd", f"misread/{k}_share") for k in ("rollout", "kept")]
        yield f"| {' | '.join(words)} |"


def difference_lines(results: Mapping[str, Any], key: str = "accuracy") -> Iterator[str]:
    """The table of paired differences at T = 1: mean, range of the runs, runs ahead."""
    yield f"| cell | {' | '.join(f'`{arm}` minus `{base}`' for arm, base, _ in SHOWN)} |"
    yield "|---" * (1 + len(SHOWN)) + "|"
    for name, cell in results.items():
        words = [f"`{name}`"]
        words += [short_difference(differences(cell, arm, base, key)) for arm, base, _ in SHOWN]
        yield f"| {' | '.join(words)} |"


def overview_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """Over all runs: how often an arm is ahead, and with what the gain goes."""
    for arm, base, _ in SHOWN:
        values = [v for cell in results.values() for v in differences(cell, arm, base).values()]
        ahead = sum(value > 0 for value in values)
        points = f"{fmean(values):+.1f} points, ahead in {ahead} of {len(values)} runs"
        yield f"- `{arm}` minus `{base}`: {points}."
    for base in ("opd", "va_opd"):
        behind = [
            f"`{name}` ({value:+.1f}; student {key[0]}, teacher {key[1]}, seed {key[2]})"
            for name, cell in results.items()
            for key, value in sorted(differences(cell, "grounded_opd", base).items())
            if value <= 0
        ]
        yield f"- `grounded_opd` is not ahead of `{base}` in: {', '.join(behind) or 'no run'}."
    gains, shares = [], []
    for cell in results.values():
        gain = differences(cell, "grounded_opd", "opd")
        share = accuracies(cell, "grounded_opd", "misread/rollout_share")
        gains += [gain[key] for key in sorted(gain)]
        shares += [share[key] for key in sorted(gain)]
    if len(set(gains)) == 1 or len(set(shares)) == 1:
        return
    yield (
        "- Correlation of the gain of `grounded_opd` over `opd` with the share of rollouts that "
        f"misread, over all {len(gains)} runs: {correlation(gains, shares):.2f}."
    )


def student_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """Means by student: its gain, and how often it misreads while it learns."""
    pairs = (("va_opd", "opd"), ("grounded_opd", "opd"), ("grounded_opd", "va_opd"))
    names = " | ".join(f"`{arm}` minus `{base}`" for arm, base in pairs)
    yield f"| cell | student | {names} | rollouts that misread |"
    yield "|---" * (3 + len(pairs)) + "|"
    for name, cell in results.items():
        shares = accuracies(cell, "grounded_opd", "misread/rollout_share")
        for student in sorted({key[0] for key in shares}):
            words = [f"`{name}`", str(student)]
            for arm, base in pairs:
                by_run = differences(cell, arm, base)
                words.append(f"{fmean(v for key, v in by_run.items() if key[0] == student):+.1f}")
            share = fmean(value for key, value in shares.items() if key[0] == student)
            yield f"| {' | '.join([*words, f'{100 * share:.0f}'])} |"


def variant_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """Variants of `grounded_opd`: accuracy, and paired differences to it and to `opd`."""
    yield "| cell | arm | T = 1 (greedy) | minus `opd` | minus `va_opd` | minus `grounded_opd` |"
    yield "|---" * 6 + "|"
    for name, cell in results.items():
        present = {run["arm"] for run in cell["runs"]}
        for arm in ("grounded_opd", *(arm for arm in VARIANTS if arm in present)):
            mean = f"{mean_of(cell, arm, 'accuracy')} ({mean_of(cell, arm, 'greedy')})"
            words = [f"`{name}`", f"`{arm}`", mean]
            words += [
                short_difference(differences(cell, arm, base)) if arm != base else "-"
                for base in ("opd", "va_opd", "grounded_opd")
            ]
            yield f"| {' | '.join(words)} |"


def short_difference(by_run: Crossed) -> str:
    """A mean difference, the range of its runs, and in how many it is positive."""
    facts, values = crossed_statistics(by_run), by_run.values()
    spread = f"{min(values):+.1f} to {max(values):+.1f}"
    return f"**{facts.mean:+.1f}** ({spread}), {facts.ahead} of {facts.runs}"


def figure(results: Mapping[str, Any]) -> str:
    """The figure: per cell and pair of arms a dot per run and a line at their mean."""
    drawn = [
        (name, number, pair, list(differences(cell, *pair[:2]).values()))
        for name, cell in results.items()
        for number, pair in enumerate(SHOWN)
    ]
    every = [value for *_, values in drawn for value in values]
    low = TICK * (min(0.0, *every) // TICK)
    high = -TICK * (min(0.0, *(-value for value in every)) // TICK)
    height = TOP + ROW * len(results) + 10

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts = [*frame(low, high, height, x)]
    for name, number, (_, _, colour), values in drawn:
        top = TOP + ROW * list(results).index(name)
        y = top + STEP * (number + 1)
        if number == 0:
            parts.append(f'<text x="10" y="{top + ROW / 2 + 4:.0f}">{escape(name)}</text>')
            parts.append(f'<path d="M10 {top}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts += [
            f'<circle cx="{x(value):.1f}" cy="{y}" r="3.5" fill="{colour}" opacity="0.55"/>'
            for value in values
        ]
        at = x(fmean(values))
        parts.append(f'<path d="M{at:.1f} {y - 7}V{y + 7}" stroke="{colour}" stroke-width="3"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="Differences between methods in each cell" font-family="sans-serif" '
        f'font-size="13"><rect width="{WIDTH}" height="{height}" fill="#fff"/>'
        f"{''.join(parts)}</svg>\n"
    )


def frame(low: float, high: float, height: int, x: Any) -> Iterator[str]:
    """Legend, title of the axis, and a line every ten points."""
    place = LEFT
    for arm, base, colour in SHOWN:
        words = f"{arm} minus {base}"
        yield f'<circle cx="{place}" cy="16" r="5" fill="{colour}"/>'
        yield f'<text x="{place + 9}" y="20" font-size="12">{words}</text>'
        place += 30 + 7 * len(words)
    axis = "points of accuracy at T = 1; a dot is a run, a bar their mean"
    yield f'<text x="{LEFT}" y="42" font-size="12">{axis}</text>'
    for tick in range(int(low), int(high) + 1, TICK):
        colour, words = ("#e4e4e4", f"{tick:+d}") if tick else ("#555", "0")
        yield f'<path d="M{x(tick):.1f} {TOP}V{height - 10}" stroke="{colour}"/>'
        yield f'<text x="{x(tick):.1f}" y="{TOP - 6}" text-anchor="middle">{words}</text>'


def write_between(begin: str, end: str, body: str) -> None:
    """Replace what stands between two marks of the page."""
    PAGE.write_text(replaced_between(PAGE.read_text(), begin, end, body))


def replaced_between(text: str, begin: str, end: str, body: str) -> str:
    """A text with something else between two marks."""
    return f"{text.split(begin)[0]}{begin}\n\n{body}\n\n{end}{text.split(end)[1]}"


def write(results: Mapping[str, Any]) -> None:
    """The tables between the marks of the page, and the figure."""
    missing = [f"`{n}`" for n, cell in CELLS.items() if n not in results and not cell.held_back]
    rest = ["", f"Not run yet: {', '.join(missing)}."] if missing else []
    tables = "\n".join(
        [
            *overview_lines(results),
            "",
            *difference_lines(results),
            "",
            "At equal compute, that of the cheapest arm of a run:",
            "",
            *difference_lines(results, "accuracy_equal_compute"),
            "",
            *accuracy_lines(results),
            "",
            "By student:",
            "",
            *student_lines(results),
            *rest,
        ]
    )
    write_between(BEGIN, END, tables)
    varied = {n: c for n, c in results.items() if any(r["arm"] in VARIANTS for r in c["runs"])}
    lines = variant_lines(varied) if varied else ["Not run yet."]
    write_between(VARIANTS_BEGIN, VARIANTS_END, "\n".join(lines))
    FIGURE.write_text(figure(results))


def main(words: Sequence[str]) -> None:
    """Add the finished cells of a folder, then write table and figure."""
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    folder = Path(words[0]) if words else None
    finished = [n for n in CELLS if folder and (folder / n / "compare.json").is_file()]
    results |= {name: read_cell(name, folder) for name in finished if folder}
    ordered = {name: results[name] for name in CELLS if name in results}
    if all(CELLS[name].held_back for name in ordered):
        sys.exit(f"no finished cell of the map in {folder or RESULTS}")
    RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")
    write({name: cell for name, cell in ordered.items() if not CELLS[name].held_back})


if __name__ == "__main__":
    main(sys.argv[1:])

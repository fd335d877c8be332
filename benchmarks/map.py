"""Where does stopping at a misread help? One comparison per cell, resumable.

`python benchmarks/map.py FOLDER [CELL ...]` runs all cells but the two that are held back
(`docs/lab-notes.md`, 2026-11-28); a held-back cell runs only if it is named. Models are kept in the
cache folder, so cells share them. `python benchmarks/map.py --list` prints the cells.
`python benchmarks/map.py --variants FOLDER` runs variants of `grounded_opd` on two of the cells, in
the same folders: arms that are finished there are not run again.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vistill.runtime import use_one_thread
from vistill.studies.compare import Study, run_compare

ARMS = ("opd", "va_opd", "va_rollouts", "grounded_opd")
#: Knobs of `grounded_opd`, run on two cells: its threshold, and what else can be chosen.
VARIANTS = (
    "grounded_025nat",
    "grounded_3nat",
    "grounded_kept",
    "grounded_weighted",
    "grounded_argmax",
    "grounded_half",
)
#: Arms of the stated test, its students, teachers and rates.
TEST_ARMS = ("opd", "va_opd", "grounded_opd")
TEST_RATES = (1e-4, 3e-4, 6e-4)


@dataclass(frozen=True)
class Cell:
    """One regime: what differs from the demo."""

    settings: tuple[str, ...] = ()
    student: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    held_back: bool = False
    variants: bool = False
    """Whether `--variants` runs the variants of `grounded_opd` there too."""


FIGURE_ONLY = {"versions": ["vision_only"]}
TEXT_HELPS = {"versions": ["text_lite"]}
#: Glyphs drawn with 7 instead of 14 pixels; the models scale a picture to their own size.
SMALL_GLYPHS = {"side": 32}
CELLS = {
    "demo": Cell(variants=True),
    "no_wrong_labels": Cell(student={"wrong_steps": 0}),
    "some_wrong_labels": Cell(student={"wrong_share": 0.3}),
    "noisy_tower": Cell(student={"vision_noise": 0.1}),
    "noisier_tower": Cell(student={"vision_noise": 0.2, "wrong_steps": 0}),
    "text_helps": Cell(('data.diagrams.options.versions=["text_lite"]',), TEXT_HELPS, TEXT_HELPS),
    "small_glyphs": Cell(
        ("data.diagrams.options.side=32",), SMALL_GLYPHS, SMALL_GLYPHS, variants=True
    ),
    "other_scaffold": Cell(student={"solve_steps": 750}),
    "short": Cell(("rollout.max_new_tokens=64",)),
    "two_siblings": Cell(("rollout.per_prompt=2", "train.prompts_per_step=32")),
    "eight_siblings": Cell(("rollout.per_prompt=8", "train.prompts_per_step=8")),
    "low_rate": Cell(("train.lr=1e-4",)),
    "high_rate": Cell(("train.lr=6e-4",)),
    "figure_only": Cell(
        ('data.diagrams.options.versions=["vision_only"]',),
        {**FIGURE_ONLY, "wrong_share": 0.6},
        FIGURE_ONLY,
        held_back=True,
    ),
    "mild_k2": Cell(
        ("rollout.per_prompt=2", "train.prompts_per_step=32"),
        {"wrong_share": 0.3},
        held_back=True,
    ),
}


def study_of(name: str, folder: Path, variants: bool = False) -> Study:
    """The comparison of one cell; that of a held-back cell is the stated test."""
    cell = CELLS[name]
    arms = ARMS + VARIANTS if variants and cell.variants else ARMS
    test: dict[str, Any] = {"seeds": 10, "students": 5, "rates": TEST_RATES, "first_model": 1}
    return Study(
        "compare.yaml",
        TEST_ARMS if cell.held_back else arms,
        folder / name,
        cell.settings,
        student_plan=cell.student,
        teacher_plan=cell.teacher,
        **(test if cell.held_back else {"seeds": 4}),
    )


def main(words: Sequence[str]) -> None:
    """Run the named cells, or all that are not held back, or those with variants."""
    if words[0] == "--list":
        print("\n".join(f"{n}{' (held back)' * c.held_back}" for n, c in CELLS.items()))
        return
    use_one_thread()
    variants = words[0] == "--variants"
    folder, *names = words[1:] if variants else words
    if not names:
        names = [n for n, c in CELLS.items() if (c.variants if variants else not c.held_back)]
    for name in names:
        print(f"\n== {name}")
        run_compare(study_of(name, Path(folder), variants))


if __name__ == "__main__":
    main(sys.argv[1:])

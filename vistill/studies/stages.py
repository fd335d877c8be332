"""Run a recipe, or every stage of one, and write one report over all of them."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistill.config import find_recipe, flatten, parse_text, read_recipe_text, split_override
from vistill.errors import ConfigError
from vistill.report.costs import profile_text
from vistill.report.page import write_report
from vistill.studies.arms import arms_of, train_in_order

if TYPE_CHECKING:  # a mistake in the recipe is told before torch is imported
    from vistill.api import Run


def run_stages(
    recipe: str,
    overrides: Sequence[str],
    only: str | None,
    accept: Sequence[str],
    progress: Callable[[dict[str, Any]], None],
) -> Path:
    """Train the stages in order; the same command resumes at the stage and step it was stopped at."""
    arms = arms_of(recipe, overrides)
    chosen = [arm for arm in arms if only in (None, arm.name)]
    if not chosen:
        names = [arm.name for arm in arms]
        raise ConfigError(
            "C002",
            f'no stage "{only}"',
            why=f"stages: {', '.join(names)}",
            fix=f"--stage {names[0]}",
        )
    tell_kept(recipe, overrides, [arm.name for arm in chosen])
    for _, run in train_in_order(chosen, progress, accept):
        tell_quarantine(run)
        tell_profile(run)
    if len(chosen) == 1:
        return chosen[0].folder / "report.html"
    return write_report([arm.folder for arm in arms], arms[0].folder.parent / "report.html")


def tell_kept(recipe: str, overrides: Sequence[str], names: Sequence[str]) -> None:
    """A setting that a stage makes itself wins over the same key on the command line: say so, and how to change it."""
    file = find_recipe(recipe)
    given = {split_override(text)[0] for text in overrides}
    stages = parse_text(read_recipe_text(file), file).get("stages") or {}
    for name in names:
        kept = sorted(given & set(flatten(stages.get(name) or {})))
        if kept:
            change = " ".join(f"stages.{name}.{key}=..." for key in kept)
            print(
                f"stage {name} keeps its own {', '.join(kept)}; to change it: {change}",
                file=sys.stderr,
            )


def tell_quarantine(run: "Run") -> None:
    """Rows that were set aside are named on the screen too."""
    bad = run.folder.read(run.folder.quarantine)
    if bad:
        first = f"{bad[0]['where']}: {bad[0]['reason']}"
        print(
            f"{len(bad)} row(s) set aside, first {first}; all in {run.folder.quarantine}",
            file=sys.stderr,
        )


def tell_profile(run: "Run") -> None:
    """With `profile=true`: what the phases cost."""
    text = profile_text(run.path)
    if text:
        print(text)

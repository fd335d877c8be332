"""Train a recipe or all its stages and write one report."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistill.config import find_recipe, flatten, parse_text, read_recipe_text, split_overrides
from vistill.display.run_summary import run_summary
from vistill.display.wrapping import fit_to
from vistill.errors import ConfigError, quote_command
from vistill.report.costs import profile_text
from vistill.report.page import write_report
from vistill.studies.arms import make_arms, train_in_order

if TYPE_CHECKING:  # report a mistake in the recipe before the slow import of torch
    from vistill.api import Run


def run_stages(
    recipe: str,
    overrides: Sequence[str],
    only: str | None,
    accept: Sequence[str],
    progress: Callable[[dict[str, Any]], None],
) -> Path:
    """Train the stages in order, or resume them, and return the path of the report."""
    arms = make_arms(recipe, overrides)
    chosen = [arm for arm in arms if only in (None, arm.name)]
    if not chosen:
        raise no_stage_error(str(only), [arm.name for arm in arms])
    warn_stage_settings(recipe, overrides, [arm.name for arm in chosen])
    for arm, run in train_in_order(chosen, progress, accept):
        print_quarantine(run)
        print_profile(run)
        print_summary(run, arm.name if len(chosen) > 1 else "")
    if len(chosen) == 1:
        return chosen[0].folder / "report.html"
    return write_report([arm.folder for arm in arms], arms[0].folder.parent / "report.html")


def warn_stage_settings(recipe: str, overrides: Sequence[str], names: Sequence[str]) -> None:
    """Warn that the setting of a stage takes precedence over the same key on the command line."""
    file = find_recipe(recipe)
    keys = {*split_overrides(overrides)}
    stages = parse_text(read_recipe_text(file), file).get("stages") or {}
    for name in names:
        ignored = sorted(keys & set(flatten(stages.get(name) or {})))
        if ignored:
            change = " ".join(f"stages.{name}.{key}=..." for key in ignored)
            print(
                f"stage {name} sets {', '.join(ignored)} itself; to change it: {change}",
                file=sys.stderr,
            )


def print_quarantine(run: "Run") -> None:
    """Print the number of quarantined rows and the first one."""
    bad = run.folder.read(run.folder.quarantine)
    if bad:
        first = f"{bad[0]['where']}: {bad[0]['reason']}"
        print(
            f"{len(bad)} rows quarantined, first {first}; all in {run.folder.quarantine}",
            file=sys.stderr,
        )


def print_summary(run: "Run", stage: str) -> None:
    """Print the end of a run: before and after, the student, the next commands."""
    text = run_summary(run.path)
    if text:
        print(f"\n{stage}" if stage else "")
        print(fit_to(text, sys.stdout))


def print_profile(run: "Run") -> None:
    """Print the profile of a run with `profile=true`."""
    text = profile_text(run.path)
    if text:
        print(text)


def no_stage_error(name: str, stages: Sequence[str]) -> ConfigError:
    """C002 for a stage that a recipe does not have."""
    return ConfigError(
        "C002",
        f'no stage "{name}"',
        why=f"stages: {', '.join(stages)}",
        fix=quote_command("--stage", stages[0]),
    )

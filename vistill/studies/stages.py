"""Run a recipe, or every stage of one, and write one report over all of them."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistill.config import Recipe, find_recipe, flatten, load_stages, parse_text, split_override, text_of
from vistill.errors import ConfigError
from vistill.report.costs import profile_text
from vistill.report.page import write_report
from vistill.runtime import keep_big_blocks, quiet, use_one_thread_on_cpu

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
    stages = load_stages(recipe, overrides)
    if only is not None and only not in stages:
        raise ConfigError(
            "C002", f'no stage "{only}"', why=f"stages: {', '.join(stages)}", fix=f"--stage {next(iter(stages))}"
        )
    chosen = {name: made for name, made in stages.items() if only in (None, name)}
    tell_kept(recipe, overrides, list(chosen))
    from vistill.api import train

    quiet()
    use_one_thread_on_cpu()
    keep_big_blocks()
    runs = []
    for made in chosen.values():
        runs.append(train(made, accept=accept, progress=progress))
        tell_quarantine(runs[-1])
        tell_profile(runs[-1])
    if len(runs) == 1:
        return runs[0].path / "report.html"
    return stages_report(stages)


def tell_kept(recipe: str, overrides: Sequence[str], names: Sequence[str]) -> None:
    """A setting that a stage makes itself wins over the same key on the command line: say so, and how to change it."""
    file = find_recipe(recipe)
    given = {split_override(text)[0] for text in overrides}
    stages = parse_text(text_of(file), file).get("stages") or {}
    for name in names:
        kept = sorted(given & set(flatten(stages.get(name) or {})))
        if kept:
            change = " ".join(f"stages.{name}.{key}=..." for key in kept)
            print(f"stage {name} keeps its own {', '.join(kept)}; to change it: {change}", file=sys.stderr)


def tell_quarantine(run: "Run") -> None:
    """Rows that were set aside are named on the screen too."""
    bad = run.folder.read(run.folder.quarantine)
    if bad:
        first = f"{bad[0]['where']}: {bad[0]['reason']}"
        print(f"{len(bad)} row(s) set aside, first {first}; all in {run.folder.quarantine}", file=sys.stderr)


def tell_profile(run: "Run") -> None:
    """With `profile=true`: what the phases cost."""
    text = profile_text(run.path)
    if text:
        print(text)


def stages_report(stages: dict[str, Recipe]) -> Path:
    """One page over all stages, the shared folder's `report.html`."""
    paths = [Path(made.run) for made in stages.values()]
    return write_report(paths, paths[0].parent / "report.html")

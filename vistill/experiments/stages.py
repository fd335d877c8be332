"""Run a recipe, or every stage of one, and write one report over all of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vistill.api import train
from vistill.config import Recipe, load_stages
from vistill.errors import ConfigError
from vistill.report.page import write_report
from vistill.runtime import keep_big_blocks, quiet, use_one_thread_on_cpu


def run_stages(
    recipe: str,
    overrides: Sequence[str],
    only: str | None,
    accept: Sequence[str],
    progress: Callable[[dict[str, Any]], None],
) -> Path:
    """Train the stages in order; the same command resumes at the stage and step it was stopped at."""
    quiet()
    stages = load_stages(recipe, overrides)
    if only is not None and only not in stages:
        raise ConfigError(
            "C002", f'no stage "{only}"', why=f"stages: {', '.join(stages)}", fix=f"--stage {next(iter(stages))}"
        )
    chosen = {name: made for name, made in stages.items() if only in (None, name)}
    use_one_thread_on_cpu()
    keep_big_blocks()
    runs = [train(made, accept=accept, progress=progress) for made in chosen.values()]
    if len(runs) == 1:
        return runs[0].path / "report.html"
    return stages_report(stages)


def stages_report(stages: dict[str, Recipe]) -> Path:
    """One page over all stages, the shared folder's `report.html`."""
    paths = [Path(made.run) for made in stages.values()]
    return write_report(paths, paths[0].parent / "report.html")

"""The verb `compare`."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vistill.cli.verbs import RUN, Overrides, Plugins, example
from vistill.registry import load_plugins


def add_compare(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(
        rich_help_panel=RUN,
        epilog=example(
            "vistill compare demo.yaml --quick",
            "vistill compare demo.yaml --methods opd,grounded_opd --seeds 4 --rates 1e-4,3e-4",
        ),
    )(compare)


def words_of(text: str, option: str) -> tuple[str, ...]:
    """The parts of a list separated by commas, each once."""
    words = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if len(words) < 2 and option == "--methods":
        raise typer.BadParameter("two names at least, such as opd,va_opd", param_hint=option)
    for word in words if option == "--methods" else ():
        if "." in word:
            raise typer.BadParameter(f"{word}: a name has no dot", param_hint=option)
    return words


#: Settings that the verb gives each run itself, and what decides them.
DECIDED = {
    "seed": "run n has seed n: --seeds",
    "data.diagrams.seed": "it is the seed of the run: --seeds",
    "profile": "it is true, because the table needs operations",
}


def split_folder(words: Sequence[str]) -> tuple[Path, tuple[str, ...]]:
    """The folder of the comparison, and the other settings; the last `run=` counts."""
    folder, others = "runs/compare", list[str]()
    for word in words:
        key, _, value = word.partition("=")
        reason = DECIDED.get(re.sub(r"^stages\.[^.]+\.", "", key))
        if reason is not None:
            raise typer.BadParameter(f"compare sets {key} itself: {reason}", param_hint=word)
        if key == "run" and not value.strip():
            raise typer.BadParameter("the folder has no name", param_hint=word)
        if key == "run":
            folder = value
        else:
            others.append(word)
    return Path(folder), tuple(others)


def rates_of(text: str) -> tuple[float, ...]:
    """The learning rates of `--rates`."""
    try:
        rates = tuple(float(word) for word in words_of(text, "--rates"))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--rates") from error
    if any(not 0 < rate < 1 for rate in rates):
        raise typer.BadParameter("rates lie between 0 and 1", param_hint="--rates")
    return rates


def grid_of(text: str) -> tuple[int, int]:
    """Students and teachers of `--models`: `2x2`."""
    students, _, teachers = text.lower().partition("x")
    if not (students.isdecimal() and teachers.isdecimal() and int(students) * int(teachers) > 0):
        raise typer.BadParameter("students x teachers, such as 2x2", param_hint="--models")
    return int(students), int(teachers)


def compare(  # noqa: PLR0913  (options of a verb)
    recipe: Annotated[str, typer.Argument(help="recipe file, or the name of a shipped one")],
    overrides: Overrides = None,
    methods: Annotated[
        str, typer.Option(help="stages or methods, comma-separated; the first is the baseline")
    ] = "opd,va_opd,grounded_opd",
    seeds: Annotated[int, typer.Option(min=1, help="runs per arm")] = 3,
    models: Annotated[
        str, typer.Option(help="tiny students x teachers, made by seed, if the recipe has them")
    ] = "2x2",
    rates: Annotated[
        str, typer.Option(help="learning rates to choose from for each arm, on other seeds")
    ] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="a few updates, to see that everything works")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Compare methods on matched runs over students, teachers and seeds. It resumes."""
    load_plugins(plugin or [])
    (students, teachers), (folder, words) = grid_of(models), split_folder(overrides or [])
    names, choices = words_of(methods, "--methods"), rates_of(rates)
    from vistill.training.interrupt import exit_on_second_signal

    with exit_on_second_signal():
        from vistill.studies.compare import Study, run_compare

        run_compare(
            Study(
                recipe,
                names,
                folder,
                words,
                seeds=seeds,
                students=students,
                teachers=teachers,
                rates=choices,
                quick=quick,
                at_once=min(2, os.cpu_count() or 1),
            )
        )

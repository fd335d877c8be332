"""The verb `reproduce`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vistill.cli.messages import print_result
from vistill.cli.verbs import RUN, Overrides, Plugins, example
from vistill.errors import ConfigError
from vistill.registry import load_plugins

if TYPE_CHECKING:  # `vistill --help` imports no torch
    from vistill.reproduction.cells import Cell
    from vistill.reproduction.results import TableResult
    from vistill.reproduction.tables import Table
    from vistill.studies.plan import PlanOptions


def add_reproduce(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(
        rich_help_panel=RUN,
        epilog=example(
            "vistill reproduce va_opd-1 --tiny",
            "vistill reproduce vgs-1 --dry-run --gpu H200 --price 3",
            "vistill reproduce va_opd-1 --data sets",
        ),
    )(reproduce)


def reproduce(  # noqa: PLR0913  (options of a verb)
    table: Annotated[str, typer.Argument(help="va_opd-1, vgs-1, ...: vistill list tables")],
    overrides: Overrides = None,
    cell: Annotated[
        list[str] | None, typer.Option(help="run only this cell and what it needs; repeatable")
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="use the package's tiny models, diagrams and two steps")
    ] = False,
    data: Annotated[
        str, typer.Option(help="run the paper's benchmarks: folder with NAME/data.jsonl, or hub")
    ] = "",
    limit: Annotated[
        int | None, typer.Option(min=1, help="of --data: most rows per benchmark, whole groups")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="plan every cell: hours, disk, whether it fits")
    ] = False,
    gpu: Annotated[str | None, typer.Option(help="of --dry-run: H100 (default), A100, ...")] = None,
    profile: Annotated[
        str | None, typer.Option(help="of --dry-run: memory profile 24gb, 48gb or 80gb")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="money per GPU and hour")] = None,
    disk: Annotated[float | None, typer.Option(min=0, help="free GB of the disk")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    plugin: Plugins = None,
) -> None:
    """Run all cells of a paper's table and print the results. The same command resumes."""
    load_plugins(plugin or [])
    from vistill.reproduction.cells import choose_cells, make_cells
    from vistill.reproduction.tables import find_table
    from vistill.studies.plan import PlanOptions

    check_limit(data, limit)
    words, paper_table = overrides or [], find_table(table)
    cells = make_cells(paper_table, words, tiny)
    chosen = choose_cells(paper_table, cells, cell or [])
    if dry_run:
        options = PlanOptions(gpu=gpu, profile=profile, price=price, disk=disk)
        print_plans(paper_table, chosen, options, as_json)
        return
    from vistill.reproduction.results import TableResult
    from vistill.reproduction.suites import SuiteOptions
    from vistill.studies.stages import warn_stage_settings

    warn_stage_settings(paper_table.recipe, words, [one.name for one in chosen])
    folder = cells[0].arm.folder.parent
    suite = SuiteOptions(None if data == "hub" else Path(data), limit) if data else None
    run_and_print(TableResult(paper_table, cells, folder, tiny, suite=suite), chosen, as_json)


def check_limit(data: str, limit: int | None) -> None:
    """C101 for `--limit` where no benchmark is run."""
    if limit is not None and not data:
        raise ConfigError(
            "C101",
            "--limit says how many rows of benchmarks are asked, and none is run",
            why="without --data a table trains its cells alone",
            fix="--data FOLDER   that holds NAME/data.jsonl, or hub",
        )


def print_plans(
    table: "Table", cells: Sequence["Cell"], options: "PlanOptions", as_json: bool
) -> None:
    """Print the plan of every cell and exit by the verdict."""
    from vistill.reproduction.cells import plan_cells
    from vistill.reproduction.planned import check_plans, format_planned, planned_dict

    plans = plan_cells(cells, options)
    values = planned_dict(table, cells, plans)
    if as_json:
        print(json.dumps(values, indent=2))
    else:
        print_result(format_planned(values))
    check_plans(cells, plans, options)


def run_and_print(result: "TableResult", chosen: Sequence["Cell"], as_json: bool) -> None:
    """Run the cells and print the table, also where some failed."""
    from vistill.training.interrupt import exit_on_second_signal

    with exit_on_second_signal():
        from vistill.display.run_display import RunDisplay
        from vistill.reproduction.results import format_markdown
        from vistill.reproduction.runner import run_cells

        try:
            with RunDisplay() as display:
                run_cells(result, chosen, display.show, display.print_text)
        finally:
            values, files = result.to_dict(), result.write()
            print(json.dumps(values, indent=2) if as_json else format_markdown(values))
            if not as_json:
                print(f"\ntable   {files['html']}")

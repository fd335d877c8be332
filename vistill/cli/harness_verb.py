"""The verb `harness`: start other programs on a model, and read their results."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vistill.cli.messages import print_result
from vistill.cli.verbs import LOOK, example
from vistill.errors import ConfigError

READ = "read"


def add_harness(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(
        rich_help_panel=LOOK,
        epilog=example(
            "vistill harness lmms-eval student-export --tasks mathverse,ai2d --protocol va_opd",
            "vistill harness read harness-lmms-eval",
        ),
    )(harness)


def harness(  # noqa: PLR0913  (options of a verb)
    program: Annotated[str, typer.Argument(help="lmms-eval or vlmevalkit; read: its results")],
    target: Annotated[str, typer.Argument(help="model folder or hub id; for read, the folder")],
    tasks: Annotated[str, typer.Option(help="benchmarks with commas: wemath,...")] = "",
    protocol: Annotated[str, typer.Option(help="whose decoding is used")] = "official",
    samples: Annotated[
        int | None, typer.Option(min=1, help="sampled responses per question")
    ] = None,
    model_class: Annotated[
        str, typer.Option(help="what the program calls the model; by default Qwen3-VL")
    ] = "",
    to: Annotated[Path | None, typer.Option(help="folder to write")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the results as JSON")] = False,
) -> None:
    """Write a folder that runs benchmarks with lmms-eval or VLMEvalKit, or read its results.

    The folder has requirements, environment, tasks and `run.sh`; nothing is started here.
    """
    if program == READ:
        read_folder(Path(target), as_json)
        return
    from vistill.evaluation.benchmarks.catalogue import find_benchmarks
    from vistill.evaluation.benchmarks.protocols import SAMPLED, find_protocol
    from vistill.evaluation.harness.folder import HarnessRequest, find_program, write_folder

    chosen, asked = find_program(program), find_protocol(protocol)
    names = [n.strip() for n in tasks.split(",")] if tasks else list(chosen.tasks)[:1]
    if samples is not None and SAMPLED not in asked.samples:
        raise ConfigError(
            "C101",
            f"--samples contradicts the protocol {asked.name}, which is greedy",
            why="the same response several times would look like a mean over samples",
            fix="--protocol va_opd",
        )
    if samples is not None:
        asked = replace(asked, samples={**asked.samples, SAMPLED: samples})
    model = (
        str(Path(target).resolve()) if Path(target).exists() else target
    )  # run.sh changes folder
    request = HarnessRequest(chosen, model, find_benchmarks(names), asked, model_class)
    folder = write_folder(request, to or Path(f"harness-{chosen.name}"))
    print_result(f"folder    {folder}   (README.md says how to run it)")
    print_result(f"results   vistill harness read {folder}   after run.sh")


def read_folder(folder: Path, as_json: bool) -> None:
    """Print the results of a folder, and write them into it."""
    from vistill.evaluation.harness.read import harness_table, read_results, write_results

    results = read_results(folder)
    write_results(folder, results)
    print_result(json.dumps(results, indent=2) if as_json else harness_table(results))

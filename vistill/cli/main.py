"""The command `vistill`: verbs only, no flag per field; settings are `key=value`."""

import json
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated

import typer

from vistill.cli.terminal import VerbGroup, Verbs, show_crash
from vistill.errors import VistillError
from vistill.redaction import for_terminal, mask_secret_settings
from vistill.training.interrupt import Interrupted

app = Verbs(
    cls=VerbGroup,
    help="On-policy distillation of vision-language models that makes the student look at the picture.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
#: Set, or with `--traceback`, errors show where in the code they came from.
SHOW = "VISTILL_TRACEBACK"
Overrides = Annotated[
    list[str] | None, typer.Argument(help="settings as key=value, for example train.lr=2e-6")
]


def show_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        from vistill import __version__

        print(f"vistill {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="print the version"),
    ] = False,
    show: Annotated[
        bool, typer.Option("--traceback", help="show where in the code an error came from")
    ] = False,
) -> None:
    """On-policy distillation of vision-language models that makes the student look at the picture."""
    if show:
        os.environ[SHOW] = "1"


@app.command()
def demo(
    run: Annotated[Path, typer.Option(help="folder to write into")] = Path("runs/demo"),
    seeds: Annotated[
        int, typer.Option(help="repeat both methods with so many seeds and report the spread")
    ] = 1,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="raise teacher and student anew first")
    ] = False,
) -> None:
    """Distil a tiny student with opd and va_opd from the same start, evaluate, write the report. No network."""
    from vistill.training.interrupt import exit_on_second_signal

    with exit_on_second_signal():
        from vistill.studies.demo import run_demo

        run_demo(run, seeds=seeds, from_scratch=from_scratch)


@app.command()
def init(
    name: Annotated[
        str,
        typer.Argument(help="a method such as va-opd, vgs or visual-opsd; or the file to write"),
    ] = "va-opd",
    student: Annotated[str, typer.Option(help="folder or hub id")] = "Qwen/Qwen3-VL-2B-Instruct",
    teacher: Annotated[str, typer.Option(help="folder or hub id")] = "Qwen/Qwen3-VL-8B-Instruct",
    data: Annotated[
        str, typer.Option(help=".jsonl, hf:owner/name[split], .parquet or diagrams")
    ] = "data/train.jsonl",
) -> None:
    """Write a commented recipe."""
    from vistill.cli.init import write_recipe

    print(write_recipe(name, student, teacher, data))


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="recipe file, or the name of a shipped one")],
    overrides: Overrides = None,
    stage: Annotated[
        str | None, typer.Option(help="run only this stage of a recipe with stages")
    ] = None,
    accept: Annotated[
        str, typer.Option(help="on resume: changed schedule keys to accept, comma-separated")
    ] = "",
) -> None:
    """Train. The same command resumes by itself."""
    from vistill.training.interrupt import exit_on_second_signal

    with exit_on_second_signal():
        from vistill.cli.progress import Progress
        from vistill.studies.stages import run_stages

        tell_left_out(recipe, overrides or [])
        with Progress() as progress:
            page = run_stages(
                recipe, overrides or [], stage, [k for k in accept.split(",") if k], progress.show
            )
        print(f"report   {page}")


@app.command()
def check(
    recipe: Annotated[str, typer.Argument(help="recipe file, or the name of a shipped one")],
    overrides: Overrides = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="recipe, data and metadata alone: no torch, no weights")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Would it train? Recipe, every row and picture, models, every view, the canary; no step is taken."""
    from vistill.studies.check import check as examine
    from vistill.studies.check import format_table

    tell_left_out(recipe, overrides or [])
    found = examine(recipe, overrides or [], fast=fast)
    if as_json:
        print(
            json.dumps(
                {name: [[f.what, f.summary] for f in lines] for name, lines in found.items()},
                indent=2,
            )
        )
    else:
        print(format_table(found, fast))


@app.command()
def methods(
    recipe: Annotated[
        str, typer.Argument(help="a recipe with one stage a method")
    ] = "every_method.yaml",
    overrides: Overrides = None,
) -> None:
    """Train every method for a few steps from the same student on the same prompts; one table of loss and cost."""
    from vistill.training.interrupt import exit_on_second_signal

    with exit_on_second_signal():
        from vistill.cli.progress import Progress
        from vistill.studies.methods import format_table, run_methods

        words = overrides or []
        if "=" in recipe:  # settings alone: the shipped recipe
            recipe, words = "every_method.yaml", [recipe, *words]
        with Progress() as progress:
            rows, page = run_methods(recipe, words, progress.show)
        print(format_table(rows))
        print(f"report   {page}")


@app.command(name="eval")
def evaluate(
    target: Annotated[str, typer.Argument(help="run folder, model folder, hub id, or recipe")],
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the summary as JSON")] = False,
) -> None:
    """Accuracy, blind gaps, reading, visual advantage of a trained model."""
    judge(target, overrides or [], as_json, advantage_only=False)


@app.command()
def probe(
    target: Annotated[str, typer.Argument(help="run folder, model folder, hub id, or recipe")],
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the summary as JSON")] = False,
) -> None:
    """Which tokens look at the picture? Visual advantage of any model on any data, without training."""
    judge(target, overrides or [], as_json, advantage_only=True)


def judge(target: str, overrides: list[str], as_json: bool, advantage_only: bool) -> None:
    """Shared by `eval` and `probe`."""
    from vistill.api import evaluate as measure
    from vistill.cli.table import facts_table, run_facts, summary_table
    from vistill.cli.target import recipe_for
    from vistill.runtime import prepare_process

    prepare_process()
    recipe = recipe_for(target, overrides, "probe" if advantage_only else "eval")
    run = measure(recipe, advantage_only=advantage_only)
    summary, facts = run.evaluations[-1], run_facts(recipe, run.path)
    if as_json:
        print(json.dumps({**facts, **summary}, indent=2))
        return
    print(facts_table(facts))
    print(summary_table(summary, recipe.eval.temperature))
    print(f"report   {run.path / 'report.html'}")


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="one or several run folders; the first is the baseline")
    ],
    out: Annotated[Path | None, typer.Option(help="file to write")] = None,
) -> None:
    """(Re)make the HTML report of a finished, running or dead run."""
    from vistill.report.page import write_report

    beside = runs[0] if len(runs) == 1 else runs[0].parent
    print(f"report   {write_report(runs, out or beside / 'report.html')}")


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Versions, devices and disk in one table."""
    from vistill.cli.doctor import format_table, inspect_installation, is_healthy

    facts = inspect_installation()
    print(json.dumps(facts, indent=2) if as_json else format_table(facts))
    raise typer.Exit(0 if is_healthy(facts) else 1)


@app.command()
def selftest(
    chaos: Annotated[
        int,
        typer.Option(help="trials of each kind: kills at random instants, signals in every phase"),
    ] = 20,
    folder: Annotated[Path, typer.Option(help="where to write: the storage under test")] = Path(
        "runs/selftest"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Kill a tiny run again and again on your own storage: does it resume to the same bits?"""
    from vistill.studies.chaos import report_of, selftest_rows

    rows = selftest_rows(folder, chaos)
    print(json.dumps([row.to_dict() for row in rows], indent=2) if as_json else report_of(rows))
    raise typer.Exit(0 if all(row.survived == row.tried for row in rows) else 1)


@app.command()
def replay(
    run: Annotated[Path, typer.Argument(help="the folder of a run")],
    step: Annotated[
        int | None, typer.Option(help="the step to recompute; the last one by default")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Recompute a step from the checkpoint before it and its logged responses: same values to the last bit?"""
    from dataclasses import asdict

    from vistill.studies.replay import replay as recompute
    from vistill.training.replay import format_replay

    made, at = recompute(run, step, lambda text: print(text, file=sys.stderr))
    print(json.dumps(asdict(made), indent=2) if as_json else format_replay(made, at))
    raise typer.Exit(0 if made.same else 1)


@app.command()
def explain(
    word: Annotated[
        str, typer.Argument(help="an error code such as D201, or a method such as va_opd")
    ],
) -> None:
    """The long form of an error code, or a method with its knobs."""
    from vistill.cli.explain import explain_word

    print(explain_word(word))


def tell_left_out(recipe: str, overrides: list[str]) -> None:
    """`method=vgs` leaves the knobs of the file's own method behind: say so."""
    from vistill.config import find_recipe, override, parse_text, read_recipe_text, split_override

    file = find_recipe(recipe)
    pairs = dict(split_override(text) for text in overrides)
    for method in override(parse_text(read_recipe_text(file), file), pairs):
        print(
            f"method={pairs['method']}: the block {method}: of {file.name} is left out",
            file=sys.stderr,
        )


def show_error(error: VistillError) -> None:
    """Print an error as plain text, control characters made visible, secrets masked."""
    if os.environ.get(SHOW):
        print(for_terminal("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    print(for_terminal("\n".join(error.render().splitlines())), file=sys.stderr)


def entry(arguments: list[str] | None = None) -> None:
    """Run a verb; users' mistakes end in a message and an exit code, not in a traceback."""
    sys.excepthook = show_crash
    warnings.showwarning = show_warning
    try:
        app(args=arguments, standalone_mode=True)
    except VistillError as error:
        show_error(error)
        note_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except Interrupted as stop:
        print(f"stopped by {stop}; run the same command again to continue", file=sys.stderr)
        sys.exit(130 if stop.number == signal.SIGINT else 75)


def show_warning(message: Warning | str, category: type[Warning], *rest: object) -> None:
    """A warning in a line of its own, without the place in our code."""
    print(f"note: {for_terminal(str(message))}", file=sys.stderr)


def note_error(error: VistillError) -> None:
    """The same content for machines where `VISTILL_ERROR_JSON` names a file; a run folder has its own `error.json`."""
    file = os.environ.get("VISTILL_ERROR_JSON")
    if file:
        facts = {key: mask_secret_settings(text) for key, text in error.to_dict().items()}
        Path(file).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

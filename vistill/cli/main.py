"""The command `vistill`: one function per verb; settings are `key=value`, not options."""

import json
import os
import shlex
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from vistill.cli.compare import add_compare
from vistill.cli.eval_verb import add_eval
from vistill.cli.harness_verb import add_harness
from vistill.cli.init_verb import EXAMPLES as INIT_EXAMPLES
from vistill.cli.init_verb import init
from vistill.cli.messages import (
    TRACEBACK_VARIABLE,
    print_result,
    show_crash,
    show_error,
    show_notice,
    show_warning,
    write_error_file,
)
from vistill.cli.plan import add_plan
from vistill.cli.reproduce import add_reproduce
from vistill.cli.terminal import VerbGroup, Verbs
from vistill.cli.try_student import add_verbs
from vistill.cli.verbs import (
    LEARN,
    LOOK,
    RUN,
    START,
    TRUST,
    Overrides,
    Plugins,
    Profile,
    example,
    with_profile,
)
from vistill.errors import Preempted, VistillError
from vistill.registry import load_plugins
from vistill.training.interrupt import Interrupted

HELP = "On-policy distillation of vision-language models that teaches the student to use the image."


app = Verbs(
    cls=VerbGroup,
    help=HELP,
    epilog=example("vistill demo", "vistill train --help"),
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    """Print the version and exit."""
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
        bool, typer.Option("--traceback", help="print the traceback of an error")
    ] = False,
) -> None:
    """Handle the options before the verb. The help text is `HELP`."""
    if show:
        os.environ[TRACEBACK_VARIABLE] = "1"


@app.command(rich_help_panel=START, epilog=example("vistill demo --run runs/demo"))
def demo(
    run: Annotated[Path, typer.Option(help="folder to write into")] = Path("runs/demo"),
    seeds: Annotated[
        int, typer.Option(help="number of seeds; more than one adds the spread over seeds")
    ] = 1,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="train teacher and student from scratch first")
    ] = False,
) -> None:
    """Distil a tiny student with opd and va_opd, and compare them in a report. Needs no network."""
    from vistill.training.interrupt import exit_on_second_signal

    with exit_on_second_signal():
        from vistill.studies.demo import run_demo

        run_demo(run, seeds=seeds, from_scratch=from_scratch)


app.command(rich_help_panel=START, epilog=INIT_EXAMPLES)(init)


@app.command(
    rich_help_panel=RUN,
    epilog=example(
        "vistill train demo.yaml --stage va_opd",
        "vistill train demo.yaml run=runs/low_lr train.lr=1e-4",
    ),
)
def train(
    recipe: Annotated[str, typer.Argument(help="recipe file, or the name of a shipped one")],
    overrides: Overrides = None,
    stage: Annotated[
        str | None, typer.Option(help="train only this stage of a recipe with stages")
    ] = None,
    accept: Annotated[
        str,
        typer.Option(
            help="on resume: accept changes of these schedule keys and plug-ins, comma-separated"
        ),
    ] = "",
    profile: Profile = None,
    plugin: Plugins = None,
) -> None:
    """Train a recipe. The same command resumes an interrupted run."""
    load_plugins(plugin or [])
    from vistill.training.interrupt import exit_on_second_signal

    with exit_on_second_signal():
        from vistill.cli.target import warn_dropped_knobs
        from vistill.display.run_display import RunDisplay
        from vistill.studies.stages import run_stages

        words = with_profile(profile, overrides)
        warn_dropped_knobs(recipe, words)
        with RunDisplay(has_summary=True) as display:
            page = run_stages(
                recipe, words, stage, [k for k in accept.split(",") if k], display.show
            )
        print(f"{'report':<15} {page}")


@app.command(
    rich_help_panel=START,
    epilog=example("vistill check demo.yaml --fast", "vistill check demo.yaml --preview rows.html"),
)
def check(  # noqa: PLR0913  (options of a verb)
    recipe: Annotated[str, typer.Argument(help="recipe file, or the name of a shipped one")],
    overrides: Overrides = None,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="check only recipe, data and model metadata, without weights"),
    ] = False,
    preview: Annotated[
        Path | None, typer.Option(help="HTML page of rows as models see them")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    profile: Profile = None,
    plugin: Plugins = None,
) -> None:
    """Check recipe, rows, images, models, views and the canary, without a training step."""
    load_plugins(plugin or [])
    from vistill.cli.target import warn_dropped_knobs
    from vistill.display.run_display import show_phases
    from vistill.phases import LOADING_LIBRARIES
    from vistill.studies import check as checks

    words = with_profile(profile, overrides)
    warn_dropped_knobs(recipe, words)
    with show_phases("" if fast else LOADING_LIBRARIES):
        findings = checks.check(recipe, words, fast=fast, preview=preview)
    if as_json:
        plain = {name: [[f.what, f.summary] for f in lines] for name, lines in findings.items()}
        print(json.dumps(plain, indent=2))
    else:
        print_result(checks.format_table(findings, fast))


add_plan(app)


@app.command(rich_help_panel=RUN, epilog=example("vistill methods train.steps=2 eval.limit=16"))
def methods(
    recipe: Annotated[
        str, typer.Argument(help="a recipe with one stage per method")
    ] = "every_method.yaml",
    overrides: Overrides = None,
    plugin: Plugins = None,
) -> None:
    """Train every method for a few steps and print a table of loss and cost."""
    load_plugins(plugin or [])
    from vistill.training.interrupt import exit_on_second_signal

    with exit_on_second_signal():
        from vistill.display.run_display import RunDisplay
        from vistill.studies.methods import format_table, run_methods

        words = overrides or []
        if "=" in recipe:  # only settings: use the shipped recipe
            recipe, words = "every_method.yaml", [recipe, *words]
        with RunDisplay() as display:
            rows, page = run_methods(recipe, words, display.show)
        print(format_table(rows))
        print(f"report   {page}")


add_compare(app)


add_reproduce(app)


add_eval(app)
add_harness(app)


@app.command(
    rich_help_panel=LOOK, epilog=example("vistill probe vistill:student eval.extra_limit=16")
)
def probe(
    target: Annotated[str, typer.Argument(help="run folder, model folder, hub id, or recipe")],
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the summary as JSON")] = False,
    plugin: Plugins = None,
) -> None:
    """Measure which tokens depend on the image (visual advantage), without training."""
    load_plugins(plugin or [])
    from vistill.cli.target import evaluate_target

    evaluate_target(target, overrides or [], as_json, advantage_only=True)


@app.command(rich_help_panel=LOOK, epilog=example("vistill report runs/demo/opd runs/demo/va_opd"))
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="one or more run folders; the first is the baseline")
    ],
    out: Annotated[Path | None, typer.Option(help="file to write")] = None,
) -> None:
    """Write the HTML report of one or more runs, finished or not, or of benchmark runs."""
    from vistill.report.page import write_report
    from vistill.reproduction.benchmark_report import report_benchmarks

    page = out or (runs[0] if len(runs) == 1 else runs[0].parent) / "report.html"
    print(f"report   {report_benchmarks(runs, page) or write_report(runs, page)}")


@app.command(rich_help_panel=LOOK, epilog=example("vistill judge replies.jsonl --take first"))
def judge(
    file: Annotated[Path, typer.Argument(help="JSON Lines with reply, gold and choices")],
    checker: Annotated[str, typer.Option(help="see: vistill list checkers")] = "auto",
    take: Annotated[str, typer.Option(help="which commitment counts: first or last")] = "last",
    plugin: Plugins = None,
) -> None:
    """Judge replies: print the answer of each, the rule that found it, and the verdict."""
    from vistill.cli.judge import print_verdicts

    print_verdicts(file, checker, take, plugin or [])


add_verbs(app)


@app.command(rich_help_panel=TRUST, epilog=example("vistill doctor"))
def doctor(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Print versions, devices and free disk space."""
    from vistill.cli.doctor import format_table, inspect_installation, is_healthy

    facts = inspect_installation()
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        print_result(format_table(facts))
    raise typer.Exit(0 if is_healthy(facts) else 1)


@app.command(rich_help_panel=TRUST, epilog=example("vistill selftest --chaos 4"))
def selftest(
    chaos: Annotated[
        int,
        typer.Option(help="twice N trials: N kills at random instants and N signals in phases"),
    ] = 20,
    folder: Annotated[Path, typer.Option(help="folder on the storage under test")] = Path(
        "runs/selftest"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Kill a tiny run repeatedly on your storage and check that it resumes to the same bits."""
    from vistill.studies.chaos import format_report, run_trials

    rows = run_trials(folder, chaos)
    print(json.dumps([row.to_dict() for row in rows], indent=2) if as_json else format_report(rows))
    raise typer.Exit(0 if all(row.survived == row.tried for row in rows) else 1)


@app.command(rich_help_panel=TRUST, epilog=example("vistill replay runs/demo/va_opd --step 8"))
def replay(
    run: Annotated[Path, typer.Argument(help="run folder")],
    step: Annotated[
        int | None, typer.Option(help="step to recompute; default: the last one")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    plugin: Plugins = None,
) -> None:
    """Recompute a step of a run and compare its values with the logged ones, bit by bit."""
    load_plugins(plugin or [])
    from dataclasses import asdict

    from vistill.display.run_display import show_phases

    with show_phases():
        from vistill.studies.replay import replay as replay_run
        from vistill.training.replay import format_replay

        result, at = replay_run(run, step, lambda text: print(text, file=sys.stderr))
    if as_json:
        print(json.dumps(asdict(result), indent=2))
    else:
        print_result(format_replay(result, at))
    raise typer.Exit(0 if result.same else 1)


@app.command(
    name="list",
    rich_help_panel=LEARN,
    epilog=example("vistill list", "vistill list methods --plugin mine.py"),
)
def list_names(
    kind: Annotated[
        str | None, typer.Argument(help="methods, views, recipes, ...; without one: the kinds")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """List what a recipe can name: the kinds, or the names of a kind and where they come from."""
    from vistill.cli.names import kinds_table, names_table

    load_plugins(plugin or [])
    print(kinds_table() if kind is None else names_table(kind))


@app.command(
    rich_help_panel=LEARN, epilog=example("vistill explain va_opd", "vistill explain D201")
)
def explain(
    word: Annotated[
        str,
        typer.Argument(help="an error code (D201), a method (va_opd), a key (train.lr), or a term"),
    ],
    plugin: Plugins = None,
) -> None:
    """Explain an error code, a method with its knobs, a key of the recipe, or a term."""
    load_plugins(plugin or [])
    from vistill.cli.explain import explain_word

    print(explain_word(word))


@app.command(rich_help_panel=LEARN, epilog=example("vistill schema"))
def schema(plugin: Plugins = None) -> None:
    """Print the JSON schema of a recipe: every key with type, default, limits and meaning."""
    load_plugins(plugin or [])
    from vistill.config import method_schemas
    from vistill.schema import recipe_schema

    print(json.dumps(recipe_schema(method_schemas().usable()), indent=1, ensure_ascii=False))


def entry(arguments: list[str] | None = None) -> None:
    """Run a verb; a user's mistake gives a message and an exit code, no traceback."""
    sys.excepthook = show_crash
    warnings.showwarning = show_warning
    command = shlex.join(["vistill", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        app(args=arguments, standalone_mode=True)
    except Preempted as stop:
        show_notice(stop.what, command)
        write_error_file(stop)
        sys.exit(stop.exit_code)
    except VistillError as error:
        show_error(error)
        write_error_file(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        show_notice("stopped by Ctrl-C", command)
        sys.exit(130)
    except Interrupted as stop:
        show_notice(f"stopped by {stop}", command)
        sys.exit(130 if stop.number == signal.SIGINT else 75)

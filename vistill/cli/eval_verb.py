"""The verbs `eval` and `rescore`."""

import itertools
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from vistill.answers.extract import Take
from vistill.cli.messages import print_result
from vistill.cli.verbs import LOOK, Plugins, example
from vistill.errors import ConfigError, StorageError, closest, quote_command
from vistill.registry import checkers, load_plugins

if TYPE_CHECKING:  # `vistill --help` imports no torch
    from vistill.evaluation.benchmarks.reducers import Reducer
    from vistill.studies.benchmark_run import BenchmarkRequest

#: Settings that change a protocol, and what they are called in it.
CHANGES = {
    "eval.max_new_tokens": "max_new_tokens",
    "eval.temperature": "temperature",
    "eval.top_p": "top_p",
    "eval.answer": "answer",
    "data.system": "system",
}
#: Most characters of the names of models in the name of a run folder.
LONGEST_NAME = 100


def add_eval(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command(
        name="eval",
        rich_help_panel=LOOK,
        epilog=example(
            "vistill eval vistill:student eval.limit=32",
            "vistill eval runs/va_opd --tasks wemath,mathverse --data sets --protocol va_opd",
            "vistill eval runs/va_opd --suite va_opd --data sets run=runs/va_opd-suite",
            "vistill eval runs/opd runs/va_opd --tasks wemath --data sets --blind",
        ),
    )(evaluate)
    app.command(
        rich_help_panel=LOOK,
        epilog=example(
            "vistill rescore runs/tasks-student --checker choice --take last",
            "vistill rescore runs/tasks-student --reduce pass@k,majority",
            "vistill rescore runs/tasks-student --judge http://HOST:8000/v1 --judge-model NAME",
        ),
    )(rescore)


@dataclass(frozen=True)
class TaskOptions:
    """The options of `eval` that belong to benchmarks."""

    tasks: str
    suite: str
    protocol: str
    data: Path | None
    samples: int | None
    limit: int | None
    retry: str = ""
    blind: bool = False
    reduce: str = ""


def evaluate(  # noqa: PLR0913  (options of a verb)
    target: Annotated[str, typer.Argument(help="run folder, model folder, hub id, or recipe")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]... [KEY=VALUE]...",
            help="with --tasks or --suite more models, compared with the first; then settings as"
            " key=value, such as eval.limit=32",
        ),
    ] = None,
    tasks: Annotated[
        str, typer.Option(help="benchmarks with commas, in place of the recipe's rows: wemath,...")
    ] = "",
    suite: Annotated[
        str, typer.Option(help="the benchmarks of a paper: va_opd, vgs or visual_opsd")
    ] = "",
    protocol: Annotated[
        str, typer.Option(help="official (default), va_opd, vgs or visual_opsd")
    ] = "",
    data: Annotated[
        Path | None, typer.Option(help="folder with NAME/data.jsonl; without it, the hub")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="sampled responses per question (the k of avg@k)")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="most rows per benchmark, in whole groups")
    ] = None,
    retry_errors: Annotated[
        str, typer.Option(help="ask failed samples again: all, or error codes with commas")
    ] = "",
    blind: Annotated[
        bool, typer.Option("--blind", help="ask again with the picture pixelated, and without it")
    ] = False,
    reduce: Annotated[
        str, typer.Option(help="of several samples, with commas: mean, pass@k (pass@4), majority")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print the results as JSON")] = False,
    plugin: Plugins = None,
) -> None:
    """Evaluate a model: accuracy, gaps without the image, visual advantage; or benchmarks.

    With --tasks or --suite several models can be named, and the same command continues after an
    interruption.
    """
    load_plugins(plugin or [])
    options = TaskOptions(tasks, suite, protocol, data, samples, limit, retry_errors, blind, reduce)
    if tasks or suite:
        evaluate_tasks(target, overrides or [], options, as_json)
        return
    check_no_task_options(target, options)
    from vistill.cli.target import evaluate_target

    evaluate_target(target, overrides or [], as_json, advantage_only=False)


def check_no_task_options(target: str, options: TaskOptions) -> None:
    """C101 for an option of benchmarks without benchmarks."""
    names = {"retry": "retry-errors"}
    given = [
        names.get(name, name)
        for name in ("protocol", "data", "samples", "limit", "retry", "blind", "reduce")
        if getattr(options, name)
    ]
    if given:
        raise ConfigError(
            "C101",
            f"--{given[0]} says how benchmarks are evaluated, and none is named",
            where=target,
            why="without --tasks and --suite the rows are those of the recipe (data.eval)",
            fix="--suite va_opd",
        )


def make_request(options: TaskOptions, pairs: dict[str, str], recipe: Any) -> "BenchmarkRequest":
    """Benchmarks, protocol and rows from the command line.

    Raises:
        ConfigError: C101, options contradict each other; C105, a name is unknown.
    """
    from vistill.evaluation.benchmarks.catalogue import BENCHMARKS, find_benchmarks, find_suite
    from vistill.evaluation.benchmarks.protocols import find_protocol, with_blind, with_changes
    from vistill.evaluation.benchmarks.reducers import find_reducers, parse_reducers
    from vistill.evaluation.benchmarks.sample_failures import parse_codes
    from vistill.studies.benchmark_run import BenchmarkRequest

    if options.tasks and options.suite:
        raise ConfigError(
            "C101",
            "--tasks and --suite name two sets of benchmarks",
            why="a suite lists its own",
            fix="name one of them",
        )
    suite = find_suite(options.suite) if options.suite else None
    names = suite.benchmarks if suite else [n.strip() for n in options.tasks.split(",")]
    benchmarks = [BENCHMARKS[name] for name in names] if suite else find_benchmarks(names)
    protocol = find_protocol(options.protocol or (suite.name if suite else "official"))
    values = {**vars(recipe.eval), "system": recipe.data.system}
    changes = {name: values[name] for key, name in CHANGES.items() if key in pairs}
    samples, limit = options.samples, options.limit
    if samples is None and "eval.samples" in pairs:
        samples = recipe.eval.samples
    if limit is None and "eval.limit" in pairs:
        limit = recipe.eval.limit
    changed = {**changes, **({"samples": samples} if samples is not None else {})}
    protocol = with_changes(protocol, samples, changes)
    reducers = find_reducers(parse_reducers(options.reduce), protocol.samples)
    if options.blind:
        protocol = with_blind(protocol)
    request = BenchmarkRequest(benchmarks, protocol, suite, options.data, limit, changed, reducers)
    return replace(request, retry=parse_codes(options.retry))


def evaluate_tasks(target: str, words: list[str], options: TaskOptions, as_json: bool) -> None:
    """Run benchmarks on one model or several and print their table."""
    others = list(itertools.takewhile(lambda word: "=" not in word, words))
    overrides = words[len(others) :]
    if others:
        evaluate_models([target, *others], overrides, options, as_json)
        return
    from vistill.cli.target import check_name, naming_target, recipe_for
    from vistill.config import split_overrides
    from vistill.display.run_display import show_phases
    from vistill.training.interrupt import exit_on_second_signal

    recipe = recipe_for(target, overrides, "tasks")
    with exit_on_second_signal(), naming_target(target):
        check_name(recipe.student.model)
        with show_phases():
            from vistill.evaluation.benchmarks.results import results_table
            from vistill.studies.benchmark_run import run_benchmarks

            request = make_request(options, split_overrides(overrides), recipe)
            results = run_benchmarks(recipe, request)
    show_benchmarks(results, results_table, Path(recipe.run), as_json)


def evaluate_models(
    targets: list[str], overrides: list[str], options: TaskOptions, as_json: bool
) -> None:
    """Run benchmarks on several models and print their matrix.

    Raises:
        ConfigError: C101, a model is named twice; M103, one does not exist.
    """
    from vistill.cli.target import check_name, naming_target, recipe_for
    from vistill.config import split_overrides
    from vistill.display.run_display import show_phases
    from vistill.evaluation.benchmarks.comparing import matrix_table, names_of
    from vistill.training.interrupt import exit_on_second_signal

    names = names_of(targets)
    if len(set(names)) < len(names):
        twice = next(one for one in targets if targets.count(one) > 1)
        raise ConfigError(
            "C101",
            f"the model {twice} is named twice",
            why="the difference of a model to itself is 0",
            fix=f"{shlex.join(dict.fromkeys(targets))}   in place of {shlex.join(targets)}",
        )
    pairs = split_overrides(overrides)
    recipes = {
        name: recipe_for(target, overrides, "tasks")
        for name, target in zip(names, targets, strict=True)
    }
    for target, recipe in zip(targets, recipes.values(), strict=True):
        with naming_target(target):
            check_name(recipe.student.model)
    run = Path(pairs.get("run") or f"runs/tasks-{'-'.join(names)[:LONGEST_NAME]}")
    with exit_on_second_signal(), show_phases():
        from vistill.studies.benchmark_models import run_models

        request = make_request(options, pairs, next(iter(recipes.values())))
        results = run_models(recipes, request, run)
    show_benchmarks(results, matrix_table, run, as_json)


def show_benchmarks(
    results: dict[str, Any], table: Callable[[Any], str], run: Path, as_json: bool
) -> None:
    """Write the page, and print the table or the results."""
    from vistill.reproduction.benchmark_report import write_benchmark_report

    page = write_benchmark_report(results, run / "report.html")
    if as_json:
        print(json.dumps(results, indent=2))
        return
    print_result(table(results))
    files = "results.csv, " + ("differences.csv, models/" if "models" in results else "samples/")
    print_result(f"\nfiles     {run / 'results.json'}, {files}")
    print_result(f"report    {page}")


def rescore(  # noqa: PLR0913  (options of a verb)
    log: Annotated[Path, typer.Argument(help="log of samples, or the run folder that has it")],
    checker: Annotated[
        str, typer.Option(help="see: vistill list checkers; by default the benchmark's rule")
    ] = "",
    take: Annotated[
        str, typer.Option(help="which commitment counts: first or last; by default as asked")
    ] = "",
    judge: Annotated[
        str, typer.Option(help="URL of a language model that judges: http://HOST:PORT/v1")
    ] = "",
    judge_model: Annotated[str, typer.Option(help="its name")] = "",
    judge_limit: Annotated[int | None, typer.Option(min=1, help="most requests to it")] = None,
    retry_errors: Annotated[
        str, typer.Option(help="ask it again where it failed: all, or error codes with commas")
    ] = "",
    reduce: Annotated[
        str, typer.Option(help="of several samples, with commas: mean, pass@k (pass@4), majority")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="folder for logs with the new verdicts")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the results as JSON")] = False,
    plugin: Plugins = None,
) -> None:
    """Judge stored samples again, without generating."""
    load_plugins(plugin or [])
    check_rescore_options(log, checker, take)
    check_judge_options(log, checker, judge, judge_model)
    from vistill.evaluation.benchmarks.lm_judge import open_judge
    from vistill.evaluation.benchmarks.rescoring import logs_of, rescore_log
    from vistill.evaluation.benchmarks.results import results_table
    from vistill.evaluation.benchmarks.sample_failures import parse_codes

    logs, retry = logs_of(log), parse_codes(retry_errors)
    reducers = reducers_of_logs(reduce, logs, quote_command("vistill", "rescore", log))
    lm = open_judge(judge, judge_model, judge_limit, logs[0].parent, retry)
    if out is not None:
        check_new_files([out / one.name for one in logs])
    taken: Any = take or None
    results = [
        rescore_log(one, checker, taken, out and out / one.name, lm, own)
        for one, own in zip(logs, reducers, strict=True)
    ]
    if as_json:
        print(json.dumps(results, indent=2))
        return
    print_result("\n\n".join(results_table(one) for one in results))


def reducers_of_logs(reduce: str, logs: Sequence[Path], fix: str) -> "list[tuple[Reducer, ...]]":
    """The reducers of each log; of a log with too few samples none, which is said.

    The error of the first log is raised if no log has enough samples.
    """
    from vistill.evaluation.benchmarks.reducers import find_reducers, parse_reducers
    from vistill.evaluation.benchmarks.rescoring import samples_of

    given, refused = [], []
    for log in logs:
        try:
            given.append(find_reducers(parse_reducers(reduce), samples_of(log), fix))
        except ConfigError as error:
            given.append(())
            refused.append((log, error))
    if len(refused) == len(logs):
        raise refused[0][1]
    for log, error in refused:
        print(f"{log.name}: not reduced, {error.what}", file=sys.stderr)
    return given


def check_rescore_options(log: Path, checker: str, take: str) -> None:
    """Refuse an unknown `--take` (C002) or `--checker` (C105)."""
    if take and take not in get_args(Take):
        fix = quote_command("vistill", "rescore", log, "--take", "last")
        raise ConfigError("C002", f"--take is {take!r:.40}", why="it is first or last", fix=fix)
    if checker:
        near = next(iter(closest(checker, checkers.names())), "auto")
        fix = quote_command("vistill", "rescore", log, "--checker", near)
        checkers.require("checker", checker, fix)


def check_judge_options(log: Path, checker: str, judge: str, model: str) -> None:
    """C101 for two ways to judge."""
    if checker and (judge or model):
        raise ConfigError(
            "C101",
            "--checker and --judge name two ways to judge",
            why="a verdict has one origin",
            fix=quote_command("vistill", "rescore", log, "--checker", checker),
        )


def check_new_files(files: Sequence[Path]) -> None:
    """S608 for a file of `--out` that exists."""
    for file in files:
        if file.exists():
            raise StorageError(
                "S608",
                f"{file} exists already",
                where=str(file.parent),
                why="two sets of verdicts would mix in one log",
                fix="--out FOLDER",
            )

"""The verbs that use a student: `chat`, `generate` and `export`."""

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from vistill.cli.messages import print_result
from vistill.cli.verbs import USE, Overrides, Plugins, example, naming_source
from vistill.errors import ConfigError, ModelError, StorageError, quote_setting
from vistill.registry import load_plugins

Model = Annotated[str, typer.Argument(help="run folder, model folder, or hub id")]
#: A setting that names a model, as a shell quotes it.
MODEL_SETTING = re.compile(
    r"(?<!\S)(?P<quote>')?(?P<role>student|before|teacher)\.model=(?P<name>"
    r"(?(quote)[^']*'(?:\"'\"'[^']*')*|\S*))"
)
#: A setting that `vistill chat` has as an option.
OPTION_SETTING = re.compile(r"(?<!\S)(?:rollout\.)?(temperature|top_p|max_new_tokens|seed)=")


def add_verbs(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command(
        rich_help_panel=USE,
        epilog=example(
            "vistill chat runs/demo/va_opd --image picture.png --before vistill:student",
            "vistill chat vistill:student --image a.png --ask 'Find x.' --teacher vistill:teacher",
        ),
    )(chat)
    app.command(
        rich_help_panel=USE,
        epilog=example(
            "vistill generate runs/demo/va_opd data/test.jsonl --out answers.jsonl",
            "vistill generate vistill:student diagrams data.limit=8 rollout.temperature=0",
        ),
    )(generate)
    app.command(
        rich_help_panel=USE,
        epilog=example(
            "vistill export runs/demo/va_opd --to student-export --dtype bf16",
            "vistill export runs/tasks-student --inspect --to inspect-logs",
        ),
    )(export)


def chat(  # noqa: PLR0913  (options of a verb)
    model: Model,
    image: Annotated[list[str] | None, typer.Option(help="a picture file; may be repeated")] = None,
    ask: Annotated[str, typer.Option(help="one question; without it, a conversation")] = "",
    before: Annotated[str, typer.Option(help="a second model that answers too")] = "",
    teacher: Annotated[
        str, typer.Option(help="shows the visual advantage of each token by this model")
    ] = "",
    html: Annotated[Path | None, typer.Option(help="also write the answers as a page")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy")] = None,
    top_p: Annotated[float | None, typer.Option(help="nucleus")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="most tokens of an answer")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of the sampling noise")] = None,
    plugin: Plugins = None,
) -> None:
    """Ask a student about pictures, in a conversation or once; `--before` compares two models.

    A question in a pipe is answered once. Settings that are not given are those of the run.
    """
    load_plugins(plugin or [])
    given = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
    settings = [f"rollout.{name}={value}" for name, value in given.items() if value is not None]
    settings += [f"seed={seed}"] if seed is not None else []
    try:
        run_chat(model, settings, image or [], ask, {"before": before, "teacher": teacher}, html)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        raise typer.Exit(130) from None


@contextmanager
def naming_models(model: str) -> Iterator[None]:
    """Word the fix of an error about a model for a verb that is given one, not for a recipe."""
    from vistill.runs.folder import checkpoints_in

    def named(match: re.Match[str]) -> str:
        role, name = match["role"], (match["quote"] or "") + match["name"]
        if role != "student":
            return f"--{role} {name}"
        return f"{name}   in place of {shlex.quote(model)}"

    try:
        yield
    except (ModelError, StorageError) as error:
        fix = error.fix
        saved = checkpoints_in(Path(model)) if error.code == "S605" else []
        if saved:
            fix = quote_setting("student.model", saved[-1] / "student")
        elif fix.startswith("FOLDER_OR_HUB_ID") or (
            error.code == "M103" and not MODEL_SETTING.search(fix)
        ):
            name, separator, more = fix.partition("   ")
            fix = f"{quote_setting('student.model', name)}{separator}{more}"
        error.fix = MODEL_SETTING.sub(named, fix)
        error.args = (error.render(),)
        raise


@contextmanager
def naming_options() -> Iterator[None]:
    """Word the fix of an error about a setting as an option of `vistill chat`."""
    try:
        yield
    except ConfigError as error:
        error.fix = OPTION_SETTING.sub(option, error.fix)
        error.args = (error.render(),)
        raise


def option(match: re.Match[str]) -> str:
    """The option of a setting."""
    return f"--{match[1].replace('_', '-')} "


def run_chat(
    model: str,
    settings: list[str],
    images: list[str],
    ask: str,
    others: dict[str, str],
    html: Path | None,
) -> None:
    """Check pictures and question, load the models, and talk."""
    from vistill.cli.chat import Terminal, introduce, picture_limits, read_question
    from vistill.cli.live import CountLine
    from vistill.cli.target import check_name, recipe_for
    from vistill.report.chat_page import check_chat_page

    with naming_options():
        recipe = recipe_for(model, settings, "chat")
    question = read_question(ask)
    if html is not None:
        check_chat_page(html)
    with naming_models(model):
        for role, name in {"student": model, **others}.items():
            if name:
                check_name(name, role)
    line = CountLine()
    line.show("loading libraries")
    from vistill.export import find_bases, find_source
    from vistill.runs.model_not_found import model_name
    from vistill.studies.chat import make_question, open_chat, open_picture

    line.clear()
    limits = picture_limits(recipe)
    pictures = [open_picture(name, limits) for name in images]
    if question is not None:
        make_question(question, pictures)

    def poll(name: str, count: int) -> None:
        line.show(f"{name}: {count:,} tokens")

    with naming_models(model):
        conversation = open_chat(recipe, others["before"], others["teacher"], poll, line.show)
    line.clear()
    bases = find_bases(find_source(model))
    introduce(conversation, shlex.quote(model_name(bases[0])) if bases else "")
    terminal = Terminal(conversation, pictures, html, line)
    if question is None:
        terminal.converse()
    else:
        terminal.ask(question)
    if html is not None and terminal.shown:
        print(f"page      {html}", file=sys.stderr)


def generate(
    model: Model,
    data: Annotated[str, typer.Argument(help="a data source, as data.train of a recipe")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON Lines file; rows that it holds are skipped")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Write a model's response to each row of a data source, with a verdict where it has an answer.

    Settings that are not given are those of the run; `rollout.temperature=0` is greedy.
    """
    load_plugins(plugin or [])
    from vistill.training.interrupt import exit_on_second_signal

    with exit_on_second_signal():
        from vistill.cli.live import CountLine
        from vistill.cli.target import check_name

        with naming_models(model):
            check_name(model)
        recipe = recipe_for_rows(model, data, overrides or [])
        line = CountLine()
        line.show("loading libraries")
        from vistill.studies.generate import generate_file

        def show(done: int, total: int, tokens: int) -> None:
            now = f", token {tokens:,} of at most {recipe.rollout.max_new_tokens:,}"
            counts = tokens and recipe.rollout.engine != "server"  # which is polled by time
            line.show(f"answering {done:,}/{total:,}{now if counts else ''}")

        try:
            with naming_models(model), naming_source(data):
                written = generate_file(recipe, out or default_file(model, data), show, line.show)
        finally:
            line.clear()
        print_result(str(written))


def recipe_for_rows(model: str, data: str, overrides: list[str]) -> Any:
    """The recipe of a run for other rows: its wording and columns, not its folders and limits."""
    from vistill.cli.target import recipe_for
    from vistill.config import split_overrides

    given = split_overrides(overrides)
    ours = {"data.train": data, "data.eval": "", "data.holdout": "0", "data.limit": "null"}
    ours |= {"data.text_only": "plain"}
    run = Path(model) / "recipe.json"
    if run.is_file() and not is_data_of(run, data):
        ours["data.images"] = ""
    settings = [f"{key}={value}" for key, value in ours.items() if key not in given]
    return recipe_for(model, [*settings, *overrides], "generate")


def is_data_of(run: Path, data: str) -> bool:
    """Whether a source is the training or the evaluation data of a run."""
    import json

    settings = json.loads(run.read_text(encoding="utf-8")).get("data", {})
    return data in (settings.get("train"), settings.get("eval"))


def default_file(model: str, data: str) -> Path:
    """`runs/generate-MODEL-DATA.jsonl`."""
    names = [Path(source.rstrip("/")).stem.replace(":", "-") for source in (model, data)]
    return Path("runs") / f"generate-{'-'.join(names)}.jsonl"


def export(
    model: Model,
    to: Annotated[Path | None, typer.Option(help="folder to write; by default RUN-export")] = None,
    dtype: Annotated[str, typer.Option(help="bf16 or fp32; by default as trained")] = "",
    push: Annotated[
        str, typer.Option(help="owner/name: upload it to the hub, as a private repository")
    ] = "",
    inspect: Annotated[
        bool, typer.Option("--inspect", help="MODEL is a log of samples: write it for Inspect")
    ] = False,
) -> None:
    """Write a student for transformers, vLLM and AutoProcessor, with a model card.

    Prints the commands that serve it, load it, and evaluate it with lmms-eval or VLMEvalKit. With
    --inspect it writes samples of `vistill eval --tasks` for the viewer of Inspect.
    """
    if inspect:
        from vistill.evaluation.benchmarks.inspect_log import write_inspect_logs
        from vistill.evaluation.benchmarks.rescoring import logs_of

        folder = to or Path(f"{model.rstrip('/').removesuffix('.jsonl')}-inspect")
        for file in write_inspect_logs(logs_of(Path(model)), folder):
            print_result(str(file))
        print(f"\nview them with: inspect view --log-dir {shlex.quote(str(folder))}")
        return
    from vistill.training.interrupt import exit_on_second_signal

    with exit_on_second_signal():
        from vistill.cli.live import CountLine
        from vistill.cli.target import check_name

        with naming_models(model):
            check_name(model)
        line = CountLine()
        line.show("loading libraries")
        from vistill.export import export_model, usage_commands

        line.show("exporting", always=line.is_live)
        try:
            with naming_models(model):
                exported = export_model(model, to, dtype=dtype, push=push)
        finally:
            line.clear()
        print_result(exported.summary())
        print(f"\n{usage_commands(exported.folder)}")

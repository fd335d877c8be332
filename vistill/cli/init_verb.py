"""The verb `vistill init`: its options and its help text."""

from typing import Annotated

import typer

from vistill.cli.messages import print_result
from vistill.cli.verbs import Plugins, example
from vistill.registry import load_plugins

EXAMPLES = example(
    "vistill init va-opd --data data/train.jsonl",
    "vistill init grpo.yaml --student models/mine --data 'hf:owner/name[train]'",
    "vistill init va-opd --data data/charts.jsonl --data data/geometry.jsonl",
)


def init(
    name: Annotated[
        str,
        typer.Argument(
            help="the method (vistill list methods), or the file to write, whose name begins with "
            "a method"
        ),
    ] = "va-opd",
    student: Annotated[
        str, typer.Option(help="the model to train: a folder or a hub id")
    ] = "Qwen/Qwen3-VL-2B-Instruct",
    teacher: Annotated[
        str,
        typer.Option(help="the model to learn from: a folder or a hub id; unused by some methods"),
    ] = "Qwen/Qwen3-VL-8B-Instruct",
    data: Annotated[
        list[str] | None,
        typer.Option(
            help=r"the training rows: a file (JSON Lines, JSON, CSV, TSV, Parquet), "
            r"hf:owner/name\[split], or diagrams (drawn by vistill); several times for a mixture",
            show_default="data/train.jsonl",
        ),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Write a recipe for your data: the file that `vistill train` reads, with a comment per key.

    Reads up to 200 rows of the data: columns, format, options, answers,
    pictures that are missing. Downloads nothing and loads no model. A data
    file that does not exist yet is no error: its columns are guessed.

    Writes METHOD.yaml (or the file you name), and next to it
    vistill.schema.json, by which editors complete and check the keys. Never
    overwrites a recipe. Prints what it read, what it chose, which rows will
    be refused, and the next command.
    """
    load_plugins(plugin or [])
    from vistill.cli.init import write_recipe

    print_result(write_recipe(name, student, teacher, data or ["data/train.jsonl"]))

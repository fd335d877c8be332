"""What verbs share: their groups, examples in help texts, and arguments that many have."""

from typing import Annotated

import typer

#: Groups of verbs in `vistill --help`.
START, RUN, LOOK = "Start", "Run", "Look at results"
USE = "Use the student"
TRUST, LEARN = "Trust: test the installation and runs", "Learn"

Overrides = Annotated[
    list[str] | None, typer.Argument(help="settings as key=value, such as train.lr=2e-6")
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        help="a Python file of your own that is executed first; it registers what recipes name",
    ),
]


def example(*commands: str) -> str:
    """Format example commands for the end of a help text; brackets are not rich markup."""
    title = "Example:" if len(commands) == 1 else "Examples:"
    return "\n\n".join([title, *(command.replace("[", r"\[") for command in commands)])

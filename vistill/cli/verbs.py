"""What verbs share: their groups, examples in help texts, and arguments that many have."""

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from vistill.cli.messages import print_fitted
from vistill.errors import DataError

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

Profile = Annotated[
    str | None, typer.Option(help="memory profile: 24gb, 48gb or 80gb; settings win over it")
]


def with_profile(profile: str | None, overrides: Sequence[str] | None) -> list[str]:
    """The settings of a memory profile, which are printed, and those that win over them (C132)."""
    given = list(overrides or [])
    if profile is None:
        return given
    from vistill.planning.gpus import find_profile

    named = {word.partition("=")[0] for word in given}
    own = [word for word in find_profile(profile).settings if word.partition("=")[0] not in named]
    print_fitted(f"--profile {profile}: {' '.join(own) or 'the settings given win over all of it'}")
    return [*own, *given]


def example(*commands: str) -> str:
    """Format example commands for the end of a help text; brackets are not rich markup."""
    title = "Example:" if len(commands) == 1 else "Examples:"
    return "\n\n".join([title, *(command.replace("[", r"\[") for command in commands)])


#: A setting that names a data source, as a shell quotes it.
SOURCE_SETTING = re.compile(
    r"(?<!\S)(?P<quote>')?data\.train=(?P<name>(?(quote)[^']*'(?:\"'\"'[^']*')*|\S*))"
)


@contextmanager
def naming_source(data: str) -> Iterator[None]:
    """Word the fix of an error about a data source for a verb that is given one as a word."""

    def word(match: re.Match[str]) -> str:
        name = (match["quote"] or "") + match["name"]
        return f"{name}   in place of {shlex.quote(data)}"

    try:
        yield
    except DataError as error:
        if error.code == "D102":
            error.fix = SOURCE_SETTING.sub(word, error.fix)
            error.args = (error.render(),)
        raise

"""The terminal's guard: whatever a verb, a library or a crash prints, no data steers the terminal."""

import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from vistill.redaction import for_terminal

#: How progress lines begin a write: ours clears the line, those of libraries return to its start or climb.
PROGRESS = re.compile(r"\r(?:\x1b\[K)?|\n*(?:\x1b\[A)+\Z")
UsageError: Any = typer.BadParameter.__bases__[0]


class EscapingStream:
    """A stream that shows control characters and masks secrets."""

    def __init__(self, stream: TextIO, progress: bool = False) -> None:
        self.stream, self.progress = stream, progress
        self.fresh = True
        """The cursor stands on an empty line or on a progress line."""

    def write(self, text: str) -> int:
        """Print it harmlessly; only how a progress line begins stays as it is."""
        begins = PROGRESS.match(text) if self.progress and self.fresh else None
        own = begins[0] if begins else ""
        self.stream.write(own + for_terminal(text[len(own) :]))
        self.fresh = bool(own) or text.endswith("\n") or (self.fresh and not text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Each in turn."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def escape_output() -> Iterator[None]:
    """Both streams behind a guard; progress lines stand on the second."""
    kept: tuple[Any, Any] = sys.stdout, sys.stderr
    guards: tuple[Any, Any] = EscapingStream(kept[0]), EscapingStream(kept[1], progress=True)
    sys.stdout, sys.stderr = guards
    try:
        yield
    finally:
        sys.stdout, sys.stderr = kept


class Verb(TyperCommand):
    """A command whose output is guarded; its help, with colours of ours, is not."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb behind the guard."""
        with escape_output():
            return super().invoke(ctx)


class VerbGroup(TyperGroup):
    """The verbs; what a usage error repeats of the command line is shown harmlessly."""

    def invoke(self, ctx: Any) -> Any:
        """Parse and run a verb."""
        with escape_usage_errors():
            return super().invoke(ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what stands before the verb."""
        with escape_usage_errors():
            return super().parse_args(ctx, args)


@contextmanager
def escape_usage_errors() -> Iterator[None]:
    """Messages of usage errors without control characters and secrets."""
    try:
        yield
    except UsageError as error:
        error.message = for_terminal(error.message)
        raise


class Verbs(typer.Typer):
    """An application whose commands are guarded."""

    def command(self, *names: Any, **options: Any) -> Any:
        """Register a verb."""
        return super().command(*names, **({"cls": Verb} | options))


def show_crash(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A traceback for whoever mends the code, printed as harmlessly as everything else."""
    print(
        for_terminal("".join(traceback.format_exception(kind, error, trace))),
        end="",
        file=sys.stderr,
    )

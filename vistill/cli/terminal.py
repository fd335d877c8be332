"""Escape control characters in all output, so that data cannot control the terminal."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from vistill.display.live_line import clear_before_text
from vistill.redaction import for_terminal

#: Prefixes of progress lines: ours clears its rows, others return to the start or move up.
PROGRESS = re.compile(r"(?:\x1b\[A)*\r(?:\x1b\[[JK])?|\n*(?:\x1b\[A)+\Z")
UsageError: Any = typer.BadParameter.__bases__[0]


class EscapingStream:
    """A stream that escapes control characters and masks secrets."""

    def __init__(self, stream: TextIO, progress: bool = False) -> None:
        self.stream, self.progress = stream, progress
        self.at_line_start = True
        """Whether the cursor is on an empty line or on a progress line."""

    def write(self, text: str) -> int:
        """Print the escaped text; keep only the prefix of a progress line."""
        clear_before_text()
        match = PROGRESS.match(text) if self.progress and self.at_line_start else None
        prefix = match[0] if match else ""
        self.stream.write(prefix + for_terminal(text[len(prefix) :]))
        ends_line = text.endswith("\n") or (self.at_line_start and not text)
        self.at_line_start = bool(prefix) or ends_line
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write every line."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def escape_output() -> Iterator[None]:
    """Escape stdout and stderr inside the block; progress lines go to stderr."""
    saved: tuple[Any, Any] = sys.stdout, sys.stderr
    escaping: tuple[Any, Any] = (
        EscapingStream(saved[0]),
        EscapingStream(saved[1], progress=True),
    )
    sys.stdout, sys.stderr = escaping
    try:
        yield
    finally:
        sys.stdout, sys.stderr = saved


class Verb(TyperCommand):
    """A command whose output is escaped; its help keeps its colours."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb with escaped output."""
        with escape_output():
            return super().invoke(ctx)


class VerbGroup(TyperGroup):
    """The group of verbs; usage errors escape the words that they repeat."""

    def invoke(self, ctx: Any) -> Any:
        """Parse and run a verb."""
        with escape_usage_errors():
            return super().invoke(ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before the verb."""
        with escape_usage_errors():
            return super().parse_args(ctx, args)


@contextmanager
def escape_usage_errors() -> Iterator[None]:
    """Escape the messages of usage errors."""
    try:
        yield
    except UsageError as error:
        error.message = for_terminal(error.message)
        raise


class Verbs(typer.Typer):
    """An application whose commands have escaped output."""

    def command(self, *names: Any, **options: Any) -> Any:
        """Register a verb."""
        return super().command(*names, **({"cls": Verb} | options))

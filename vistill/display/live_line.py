"""One line at the bottom of a terminal that is drawn again in place; other text goes above it."""

import os
from collections.abc import Sequence
from threading import RLock
from typing import NamedTuple, TextIO

from rich.cells import cell_len

#: Columns of a terminal that does not tell its width.
DEFAULT_COLUMNS = 80
SEPARATOR = "  "
CUT = "..."


class Part(NamedTuple):
    """A part of the line."""

    text: str
    priority: int
    """The part with the lowest number is shortened first, or left out if it has no short form."""
    short: str = ""
    """A shorter form. It is left out only after the parts of the next number are shortened."""


def fit_parts(parts: Sequence[Part], columns: int) -> str:
    """Join the parts; shorten and leave out parts until the line fits into the columns."""
    left = [part for part in parts if part.text]
    while len(left) > 1 and cell_len(join_parts(left)) > columns:
        least = min(range(len(left)), key=lambda i: (left[i].priority, -i))
        part = left.pop(least)
        if part.short and part.short != part.text:
            left.insert(least, Part(part.short, part.priority + 2))
    return cut_line(join_parts(left), columns)


def join_parts(parts: Sequence[Part]) -> str:
    """The parts as one text."""
    return SEPARATOR.join(part.text for part in parts if part.text)


def cut_line(line: str, columns: int) -> str:
    """Cut a line to at most so many columns; wide characters take two, combining ones none."""
    if cell_len(line) <= columns:
        return line
    return first_columns(line, columns - len(CUT)).rstrip() + CUT[: max(0, columns)]


def cut_middle(line: str, columns: int) -> str:
    """Cut a line in its middle: its beginning and its end stay."""
    if cell_len(line) <= columns:
        return line
    half = max(0, columns - len(CUT)) // 2
    end = first_columns(line[::-1], half)[::-1]
    return first_columns(line, half).rstrip() + CUT[: max(0, columns)] + end.lstrip()


def first_columns(text: str, columns: int) -> str:
    """The characters of a text that fit into so many columns."""
    left = columns
    for index, character in enumerate(text):
        left -= cell_len(character)
        if left < 0:
            return text[:index]
    return text


def columns_of(stream: TextIO) -> int:
    """The width of a terminal now."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or DEFAULT_COLUMNS
    except (OSError, ValueError, AttributeError):
        return DEFAULT_COLUMNS


def is_live(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can draw a line again in place."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class LiveLine:
    """The line. Threads may draw it; `shown` is the one on the terminal of this process."""

    shown: "LiveLine | None" = None

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.lock = stream, RLock()
        self.drawn = 0
        """Columns of the drawn line; 0 if none is drawn."""
        self.is_writing = False

    def draw(self, parts: Sequence[Part]) -> None:
        """Draw the line again; the last column stays free, so that the terminal never wraps."""
        with self.lock:
            columns = columns_of(self.stream)
            line = fit_parts(parts, columns - 1)
            self.write(self.eraser(columns) + line)
            self.drawn = cell_len(line)
            LiveLine.shown = self

    def clear(self) -> None:
        """Erase the line."""
        with self.lock:
            if self.drawn:
                self.write(self.eraser(columns_of(self.stream)))
                self.drawn = 0

    def print_above(self, text: str) -> None:
        """Print lines where the live line is; the next drawing comes below them."""
        with self.lock:
            self.write(self.eraser(columns_of(self.stream)) + text + "\n")
            self.drawn = 0

    def eraser(self, columns: int) -> str:
        """What erases the drawn line. A terminal that became narrower shows it on several rows."""
        rows = (max(1, self.drawn) - 1) // max(1, columns)
        return "\x1b[A" * rows + "\r\x1b[J" if rows else "\r\x1b[K"

    def write(self, text: str) -> None:
        """Write to the terminal."""
        self.is_writing = True
        try:
            self.stream.write(text)
            self.stream.flush()
        finally:
            self.is_writing = False


def clear_before_text() -> None:
    """Erase the live line of this process before other text is written."""
    line = LiveLine.shown
    if line is None or not line.drawn:
        return
    with line.lock:  # another thread may be drawing
        if line.is_writing:
            return
        try:
            line.clear()
        except (OSError, ValueError):  # its terminal is gone; the text may go elsewhere
            LiveLine.shown = None

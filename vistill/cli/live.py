"""A line that counts while a verb works, and text with colours for a terminal."""

import operator
import os
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from rich.cells import cell_len

from vistill.display.live_line import LiveLine, Part, is_live
from vistill.redaction import escape_control_characters, for_terminal

#: Seconds between two lines if the output is not a terminal.
QUIET_SECONDS = 30.0
#: Seconds between two changes of the live line.
LIVE_SECONDS = 0.1
#: Background colours of a token by its share of the scale, from light to dark orange. The text on
#: them is black.
SHADES = ((0.05, 223), (0.25, 216), (0.5, 209), (0.75, 202))
#: Share of the scale from which a token has the darkest shade.
DARKEST = SHADES[-1][0]


class CountLine:
    """One live line on a terminal; elsewhere a line every half minute."""

    def __init__(self) -> None:
        self.is_live = is_live(sys.stderr)
        self.line = LiveLine(sys.stderr)
        self.last = time.monotonic() if not self.is_live else 0.0

    def show(self, text: str, always: bool = False) -> None:
        """Show a text in place of the one before; too early ones are left out."""
        now = time.monotonic()
        if not always and now - self.last < (LIVE_SECONDS if self.is_live else QUIET_SECONDS):
            return
        self.last = now
        if self.is_live:
            self.line.draw([Part(text, 1)])
        else:
            print(text, flush=True, file=sys.stderr)

    def clear(self) -> None:
        """Remove the live line."""
        self.line.clear()


def has_colours(stream: Any) -> bool:
    """Whether a stream is a terminal that shows colours; `NO_COLOR` turns them off."""
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return not is_plain and stream.isatty()


def print_spans(spans: Iterable[tuple[str, str]], columns: int) -> None:
    """Print texts with styles (`48;5;223`) in whole words; the texts are escaped, styles are not.

    The stream of a verb escapes all control characters, so the styles bypass it.
    """
    stream = getattr(sys.stdout, "stream", sys.stdout)
    for row in wrap_spans([(for_terminal(text), style) for text, style in spans], columns):
        pieces = [f"\x1b[{style}m{text}\x1b[0m" if style else text for text, style in row]
        stream.write("".join(pieces) + "\n")
    stream.flush()


def wrap_spans(spans: Iterable[tuple[str, str]], columns: int) -> list[list[tuple[str, str]]]:
    """The spans in rows of at most so many columns, broken at spaces. A word may have many spans.

    The space at a break is dropped.
    """
    letters = [(letter, style) for text, style in spans for letter in text]
    rows, start, space, width = [], 0, -1, 0
    for at, (letter, _) in enumerate(letters):
        if letter == "\n":
            rows.append(letters[start:at])
            start, space, width = at + 1, -1, 0
            continue
        width += cell_len(letter)
        space = at if letter == " " else space
        if width > columns:
            end = space if space > start else at
            rows.append(letters[start:end])
            start = end + 1 if end == space else end
            width = sum(cell_len(letters[i][0]) for i in range(start, at + 1))
            space = -1
    return [join_letters(row) for row in [*rows, letters[start:]]]


def join_letters(letters: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Neighbouring letters of one style as one span."""
    return [
        ("".join(letter for letter, _ in group), style)
        for style, group in groupby(letters, key=operator.itemgetter(1))
    ]


def token_spans(
    tokens: Sequence[str], values: Sequence[float], unlikely: Sequence[bool], scale: float
) -> list[tuple[str, str]]:
    """The tokens with their styles: darker orange is a larger value, an underline is unlikely."""
    spans = []
    for token, value, is_unlikely in zip(tokens, values, unlikely, strict=True):
        share = value / scale
        shade = max((colour for least, colour in SHADES if share >= least), default=0, key=dark)
        styles = [f"38;5;16;48;5;{shade}"] if shade else []
        styles += ["4"] if is_unlikely else []
        spans.append((token, ";".join(styles)))
    return spans


def dark(colour: int) -> int:
    """The place of a shade: larger is darker."""
    return [0, *(shade for _, shade in SHADES)].index(colour)


def token_lines(
    tokens: Sequence[str], values: Sequence[float], probabilities: Sequence[float]
) -> list[str]:
    """One line per token, for a pipe and for terminals without colours."""
    rows = zip(tokens, values, probabilities, strict=True)
    lines = [f"{v:9.3f}  {p:9.3f}  {escape_control_characters(t)}" for t, v, p in rows]
    return ["advantage  teacher p  token", *lines]

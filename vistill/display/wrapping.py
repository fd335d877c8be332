"""Break long lines between words on a terminal, which would break them inside of a word.

A line that a user pastes stays one line: the terminal joins its rows again when it is copied.
"""

import re
from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len

from vistill.display.live_line import columns_of, first_columns

#: A label of one to three words with two spaces behind it: continued rows begin below the text.
LABEL = re.compile(r" *\S+(?: \S+){0,2} {2,}(?=\S)")
#: What continued rows repeat: spaces, and the bar before a line of a prompt.
START = re.compile(r" *(?:\| )?")
#: Lines that a user pastes: fixes and commands.
PASTED = re.compile(r"fix +\S| *(?:\S+ +)?vistill [a-z-]+(?: (?!·)|$)|\S+ +--[a-z]")
WORD = re.compile(r"\s*\S+")
CONTINUED = "  "


def fit_to(text: str, stream: TextIO) -> str:
    """The text as a terminal shows it; unchanged for a pipe or a file."""
    return fit_text(text, columns_of(stream)) if stream.isatty() else text


def fit_text(text: str, columns: int, continued: str = CONTINUED) -> str:
    """Every line of a text in rows of at most so many columns; lines that are pasted stay whole."""
    return "\n".join(row for line in text.split("\n") for row in fit_line(line, columns, continued))


def fit_line(line: str, columns: int, continued: str = CONTINUED) -> list[str]:
    """The rows of one line. `continued` begins the next rows where nothing tells their indent."""
    if cell_len(line) <= columns:
        return [line]
    label = LABEL.match(line)
    if PASTED.match(line):
        return [line[: label.end()].rstrip(), CONTINUED + line[label.end() :]] if label else [line]
    start = START.match(line)
    indent = (start[0] if start else "") + continued
    if label and label.end() <= columns // 2:
        indent = " " * label.end()
    elif start and start[0].endswith("| "):
        indent = start[0]
    return wrap_words(WORD.findall(line), columns, indent if len(indent) <= columns // 2 else "")


def wrap_words(words: Sequence[str], columns: int, indent: str) -> list[str]:
    """Rows of words, each with the spaces before it; a word longer than a row is divided."""
    rows, row = [], ""
    for word in words:
        is_long = cell_len(word.strip()) > columns - len(indent)
        if row.strip() and cell_len(row + word) > columns and not is_long:
            rows.append(row)
            row = indent + word.lstrip()
        else:
            row += word
        while cell_len(row) > columns:
            head = first_columns(row, columns)
            rows.append(head.rstrip())
            row = indent + row[len(head) :].lstrip()
    return [*rows, row]

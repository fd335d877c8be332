"""Break long lines between words on a terminal, which would break them inside of a word.

A command that a user pastes is broken in front of a word of the shell, and each of its rows but the
last ends with a backslash: a shell joins them again.
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
#: A word of a shell, with the spaces before it.
SHELL_WORD = re.compile(r"\s*(?:'[^']*'|\"[^\"]*\"|\\.|[^\s'\"\\]|['\"\\])+")
#: How a part of a fix begins that is pasted into a shell: a setting, an option, or a program.
SHELL = re.compile(
    r"'?[a-z_][\w.]*(?::[\w.]+)?=|--[a-z]|(?:vistill|pip|git|hf|iconv|gunzip|zstd|bunzip2|xz|unzip|"
    r"sed|python|expand|tail|unset|export|magick|heif-convert|dwebp|cp|vllm|\S+/python[\d.]*)\s",
    re.ASCII,
)
#: Words between two things to paste.
BETWEEN = re.compile(r"(?:or\b|and then$)")
#: What separates the parts of a line.
GAP = re.compile(r" {3,}")
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
        return fit_pasted(line, columns, label[0] if label else "")
    start = START.match(line)
    indent = (start[0] if start else "") + continued
    if label and label.end() <= columns // 2:
        indent = " " * label.end()
    elif start and start[0].endswith("| "):
        indent = start[0]
    return wrap_words(WORD.findall(line), columns, indent if len(indent) <= columns // 2 else "")


def fit_pasted(line: str, columns: int, label: str) -> list[str]:
    """The rows of a line with something to paste; its parts stay together where they fit.

    Args:
        line: the line, with three spaces or more between its parts.
        columns: the longest row.
        label: what begins the line, with the spaces behind it.
    """
    start = label or " " * (len(line) - len(line.lstrip(" ")))
    indent = " " * cell_len(start) if cell_len(start) <= columns // 2 else CONTINUED
    rows, row, begins, follows_between = list[str](), start, True, False
    if indent == CONTINUED and label:
        rows, row = [label.rstrip()], indent
    for part in GAP.split(line[len(start) :].strip()):
        is_between = BETWEEN.match(part) is not None
        fits = cell_len(row) + (0 if begins else 3) + cell_len(part) <= columns
        first = SHELL_WORD.match(part)
        fits_begin = cell_len(row) + 3 + cell_len(first[0] if first else part) + 2 <= columns
        is_next = not fits_begin if follows_between else is_between or not fits
        if not begins and is_next:
            rows.append(row)
            row, begins = indent, True
        words = break_part(part, row + ("" if begins else "   "), columns, indent + CONTINUED)
        rows += words[:-1]
        row, begins, follows_between = words[-1], False, is_between
    return [*rows, row]


def break_part(part: str, row: str, columns: int, indent: str) -> list[str]:
    """The rows of one part behind the begin of a row; those of a command end with a backslash."""
    end = " \\" if SHELL.match(part) else ""
    if cell_len(row + part) <= columns:
        return [row + part]
    rows, begins = list[str](), True
    for word in SHELL_WORD.findall(part):
        if not begins and cell_len(row + word) > columns - len(end):
            rows.append(row + end)
            row, word = indent, word.lstrip()
        row, begins = row + word, False
    return [*rows, row]


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

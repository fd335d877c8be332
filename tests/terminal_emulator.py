"""A terminal for tests: columns, wrapping, `\\r`, newline, erase and cursor up; nothing else."""

import io
import re

from rich.cells import cell_len

CONTROL = re.compile(r"\x1b\[(\d*)([A-Z])")


class FakeTerminal(io.StringIO):
    """A stream that is a terminal. `rows` is its screen, `widest` the widest row ever written.

    A text that reaches the last column wraps: `wrapped` counts it.
    """

    def __init__(self, columns):
        super().__init__()
        self.columns, self.rows, self.y, self.x = columns, [""], 0, 0
        self.widest = self.wrapped = self.writes = 0
        self.lines = []
        """Every state of the row of the cursor after a write."""

    def isatty(self):
        return True

    def fileno(self):
        raise OSError("not a file")

    def write(self, text):
        self.writes += 1
        at = 0
        while at < len(text):
            match = CONTROL.match(text, at)
            at = match.end() if match else at + 1
            if match:
                self.control(match[2], int(match[1] or 1))
            else:
                self.put(text[at - 1])
        self.lines.append(self.rows[self.y])
        return len(text)

    def control(self, kind, count):
        if kind == "A":
            self.y = max(0, self.y - count)
        else:
            assert kind in "JK", kind
            self.rows[self.y] = cut(self.rows[self.y], self.x)
            if kind == "J":
                del self.rows[self.y + 1 :]

    def put(self, character):
        if character == "\r":
            self.x = 0
            return
        if character == "\n":
            self.next_row()
            return
        assert character.isprintable() or character == "\u0301", ascii(character)
        width = cell_len(character)
        if self.x + width > self.columns:
            self.wrapped += 1
            self.next_row()
        self.rows[self.y] = cut(self.rows[self.y], self.x) + character
        self.x += width
        self.widest = max(self.widest, self.x)

    def next_row(self):
        self.y, self.x = self.y + 1, 0
        if self.y == len(self.rows):
            self.rows.append("")

    def resize(self, columns):
        """Change the width; most terminals continue rows that are too long on the next one."""
        rows = []
        for row in self.rows:
            while cell_len(row) > columns:
                rows.append(cut(row, columns))
                row = row[len(rows[-1]) :]
            rows.append(row)
        self.columns, self.rows = columns, rows
        self.y, self.x = len(rows) - 1, cell_len(rows[-1])

    def screen(self):
        """The rows that are not empty."""
        return [row for row in self.rows if row.strip()]


def cut(row, columns):
    """The first columns of a row."""
    kept = ""
    for character in row:
        if cell_len(kept + character) > columns:
            break
        kept += character
    return kept

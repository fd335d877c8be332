"""A terminal for tests (columns, wrapping, `\\r`, newline, erase, cursor up), and what it shows."""

import fcntl
import io
import json
import os
import pty
import re
import struct
import termios

from rich.cells import cell_len

#: Records of a progress callback.
STEP = {
    "step": 1234,
    "steps": 6550,
    "loss": 0.0123,
    "va/mean": 0.1,
    "rollout/tokens": 8000,
    "seconds": 2.0,
}
EVALUATION = {"step": 1200, "steps": 6550, "eval/accuracy": 0.453}
RESPONSE = {
    "question": "四边形的周长是多少?" * 20,
    "gold": "42",
    "text": "The sides are 3\n and 4. " * 30 + "The answer is \\boxed{7}.",
    "extracted": "7",
    "correct": False,
    "rule": "box",
    "reason": "another value",
}
CONTROL = re.compile(r"\x1b\[(\d*)([A-Z])")


class FakeTerminal(io.StringIO):
    """A stream that is a terminal. `rows` is its screen, `widest` the widest row ever written.

    A text that reaches the last column wraps: `wrapped` counts it.
    """

    def __init__(self, columns):
        super().__init__()
        self.rows, self.y, self.x = [""], 0, 0
        self.pair = pty.openpty()  # the system tells the width of a terminal
        self.set_columns(columns)
        self.widest = self.wrapped = self.writes = 0
        self.lines = []
        """Every line drawn: the row of the cursor before each return and after each write."""

    def isatty(self):
        return True

    def fileno(self):
        return self.pair[1]

    def set_columns(self, columns):
        self.columns = columns
        fcntl.ioctl(self.pair[1], termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def close(self):
        for descriptor in self.pair:
            os.close(descriptor)
        self.pair = ()
        super().close()

    def __del__(self):
        if self.pair:
            self.close()

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
            self.lines.append(self.rows[self.y])
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
        self.set_columns(columns)
        self.rows = rows
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


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def finished_run(path, **result):
    """A run folder with the files that the table reads."""
    path.mkdir(parents=True)
    lock = {"recipe": {"method": "va_opd"}}
    (path / "run.lock.json").write_text(json.dumps(lock))
    evaluations = [
        {"step": 0, "accuracy": 0.25, "accuracy_low": 0.2, "accuracy_high": 0.3, "rows": 1024.0},
        {"step": 32, "accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "rows": 128.0},
        {"step": 64, "accuracy": 0.45, "accuracy_low": 0.42, "accuracy_high": 0.48, "rows": 1024.0},
    ]
    facts = {"gap/pixelated": 0.125, "unparsed_share": 0.01}
    (path / "evaluations.jsonl").write_text(
        "".join(json.dumps(e | facts) + "\n" for e in evaluations)
    )
    best = {"step": 32, "by": "accuracy on 128 fixed rows x 1 samples", "value": 0.5}
    facts = {"finished": True, "step": 64, "checkpoint": "checkpoint-000032", "chosen": best}
    (path / "result.json").write_text(json.dumps(facts | result))
    return path

"""`vistill judge FILE`: the verdict of a checker on each reply of a JSON Lines file."""

import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vistill.answers.judge import judge
from vistill.answers.verdict import Verdict
from vistill.errors import DataError, closest, quote_command
from vistill.registry import load_plugins

#: Columns in which a file may say what the verdict should be.
EXPECTED = ("correct", "official_correct")


def judge_file(path: Path, checker: str, take: str) -> Iterator[tuple[dict[str, Any], Verdict]]:
    """The rows of a file with their verdicts; a row may name its own `checker` and `take`."""
    for number, row in read_rows(path):
        choices = row.get("choices") or ()
        where = f"{path}:{number}"
        taken = row.get("take", take)
        if taken not in ("first", "last"):
            raise row_error(where, f"take is {taken!r:.40}, not first or last")
        yield row, judge(row["reply"], row["gold"], choices, row.get("checker", checker), taken)


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a JSON Lines file with their line numbers.

    Raises:
        DataError: D102, the file cannot be read; D104, a row lacks `reply` or `gold`.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable_file_error(path, error) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                "D102",
                f"the line is not JSON: {error}",
                where=where,
                fix="write one JSON object per line",
            ) from error
        yield number, checked(row, where)


def unreadable_file_error(path: Path, error: OSError | UnicodeDecodeError) -> DataError:
    """D102 with the command that converts the file, or a file of a similar name."""
    if isinstance(error, UnicodeDecodeError):
        return encoding_error(path)
    names = [file.name for file in path.parent.glob("*.jsonl")] if path.parent.is_dir() else []
    near = closest(path.name, names)
    fix = quote_command("vistill", "judge", path.with_name(near[0])) if near else ""
    what = f"{path} cannot be read: {error.strerror}"
    return DataError("D102", what, fix=fix or "vistill judge FILE.jsonl")


def encoding_error(path: Path) -> DataError:
    """D102 for a file that is not UTF-8."""
    new = path.with_name(f"{path.stem}.utf8{path.suffix}")
    convert = quote_command("iconv", "-f", "LATIN1", "-t", "UTF-8", path)
    convert += f" > {shlex.quote(str(new))}"
    again = quote_command("vistill", "judge", new)
    return DataError("D102", f"{path} is not UTF-8", fix=f"{convert}   and then   {again}")


def checked(row: Any, where: str) -> dict[str, Any]:
    """A row whose columns have the right types (D104)."""
    if not isinstance(row, dict):
        raise row_error(where, "the line is no JSON object")
    if not isinstance(row.get("reply"), str):
        raise row_error(where, "`reply` is not text")
    gold = row.get("gold")
    if isinstance(gold, (int, float)) and not isinstance(gold, bool):
        row = {**row, "gold": str(gold)}
    elif not isinstance(gold, str) and not (
        isinstance(gold, list) and gold and all(isinstance(g, (str, int, float)) for g in gold)
    ):
        raise row_error(where, "`gold` is neither a text nor a list of texts")
    if not isinstance(row.get("choices") or [], list):
        raise row_error(where, "`choices` is no list")
    return row


def row_error(where: str, what: str) -> DataError:
    """D104 for a row that cannot be judged."""
    return DataError(
        "D104",
        what,
        where=where,
        why="a row has a reply, a gold answer and, for multiple choice, its options",
        fix='write a row such as   {"reply": "The answer is B.", "gold": "B", '
        '"choices": ["30", "40"]}',
    )


def print_verdicts(path: Path, checker: str, take: str, plugins: Sequence[str]) -> None:
    """Print one JSON line per row, and a summary to the terminal."""
    load_plugins(plugins)
    counts: Counter[str] = Counter()
    for row, verdict in judge_file(path, checker, take):
        known = {"id": row["id"]} if "id" in row else {}
        print(json.dumps({**known, **verdict.to_dict()}, ensure_ascii=False))
        counts.update(rows=1, correct=verdict.correct, unparsed=verdict.unparsed)
        for name in EXPECTED:
            if isinstance(row.get(name), bool):
                counts.update(expected=1, agree=row[name] == verdict.correct)
    text = f"{counts['rows']:,} replies: {counts['correct']:,} correct, "
    text += f"{counts['unparsed']:,} without an answer"
    if counts["expected"]:
        text += f"; {counts['agree']:,} of {counts['expected']:,} as the file expects"
    print(text, file=sys.stderr)

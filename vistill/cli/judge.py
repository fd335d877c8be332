"""`vistill judge FILE`: the verdict of a checker on each reply of a JSON Lines file."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast, get_args

from vistill.answers.extract import Take
from vistill.answers.judge import Question
from vistill.answers.values import has_decimal_comma
from vistill.answers.verdict import Verdict
from vistill.cli.verbs import naming_source
from vistill.data.gold import read_options
from vistill.data.judging import read_question, verdict_by_name
from vistill.data.option_indices import numbers_are_values
from vistill.data.sources import check_source_exists
from vistill.data.text_files import read_text_file
from vistill.errors import ConfigError, DataError, closest, quote_command
from vistill.registry import checkers, load_plugins

#: Keys of a row that say how it is judged.
KEYS = ("reply", "gold", "choices", "checker", "take")
#: What other programs call the reply and the gold answer, in lower case.
OTHER_NAMES = {
    "reply": ("reply", "response", "prediction", "pred", "output", "completion", "generated_text"),
    "gold": ("gold", "answer", "label", "target", "ground_truth", "reference", "solution"),
}
#: Columns in which a file may say what the verdict should be.
EXPECTED = ("correct", "official_correct")


def judge_file(path: Path, checker: str, take: str) -> Iterator[tuple[dict[str, Any], Verdict]]:
    """The rows of a file with their verdicts; a row may name its own `checker` and `take`.

    Raises:
        DataError: D104, a row cannot be judged; no verdict comes before it.
        ConfigError: C105, there is no checker of that name.
    """
    rows = list(read_rows(path))
    if not rows:
        raise DataError(
            "D102",
            "the file holds no reply",
            where=str(path),
            why="verdicts on nothing would look like a result",
            fix="write the replies into the file, a line such as   "
            '{"reply": "The answer is B.", "gold": "B", "choices": ["30", "40"]}',
        )
    are_values = rows_hold_values([row for _, row in rows])
    asked = [ask(row, f"{path}:{number}", checker, take, are_values) for number, row in rows]
    for (_, row), (golds, question, name) in zip(rows, asked, strict=True):
        yield row, verdict_by_name(row["reply"], golds, question, name)


def rows_hold_values(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether whole numbers among the gold answers are values, not indices of options."""
    golds, options = [], []
    for row in rows:
        with suppress(DataError):  # `ask` refuses the row and names its line
            options.append(read_options(row.get("choices"), ""))
            golds.append(row.get("gold"))
    return numbers_are_values(golds, options)


def ask(
    row: dict[str, Any], where: str, checker: str, take: str, are_values: bool
) -> tuple[str | tuple[str, ...], Question, str]:
    """The gold answers of a row, its options with the commitment that counts, and its checker."""
    name, taken = row.get("checker"), row.get("take")
    name, taken = checker if name is None else name, take if taken is None else taken
    if taken not in get_args(Take):
        raise row_error(where, f"take is {taken!r:.40}, not first or last")
    if not isinstance(name, str):
        raise row_error(where, f"checker is {name!r:.40}, not a name")
    if name not in checkers:
        raise unknown_checker_error(where, name)
    if "gold" not in row:
        keys = ", ".join(map(str, row))
        why = f"the keys of the row: {keys:.200}{rename_hint('gold', row)}"
        raise row_error(where, "the row has no `gold`", why)
    try:
        golds, options = read_question(row.get("gold"), row.get("choices"), where, are_values)
    except DataError as error:
        raise row_error(where, error.what, error.why) from error
    return golds, Question(options, cast(Take, taken)), name


def unknown_checker_error(where: str, name: str) -> ConfigError:
    """C105 for the checker of a row."""
    return ConfigError(
        "C105",
        f"there is no checker {name!r:.40}",
        where=where,
        why=f"checkers: {', '.join(checkers.names())}",
        fix="name one of these in the row, or leave it out",
    )


def check_options(path: Path, checker: str, take: str) -> None:
    """Refuse an unknown `--take` (C002) or `--checker` (C105)."""
    if take not in get_args(Take):
        fix = quote_command("vistill", "judge", path, "--take", "last")
        raise ConfigError("C002", f"--take is {take!r:.40}", why="it is first or last", fix=fix)
    near = next(iter(closest(checker, checkers.names())), "auto")
    fix = quote_command("vistill", "judge", path, "--checker", near)
    checkers.require("checker", checker, fix)


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file with their line numbers, in every format that training reads.

    Raises:
        DataError: D102, the file cannot be read; D104, a row lacks `reply`.
    """
    with naming_source(str(path)):
        check_source_exists(str(path))
        for number, row in read_text_file(path):
            if isinstance(row, DataError):
                raise row
            yield number, checked(row, f"{path}:{number}")


def checked(row: dict[str, Any], where: str) -> dict[str, Any]:
    """A row with a reply (D104)."""
    if not isinstance(row.get("reply"), str):
        keys = ", ".join(map(str, row)) or "none"
        why = f"the keys of the row: {keys:.200}{rename_hint('reply', row)}"
        shown = f": {row['reply']!r:.40}" if "reply" in row else ""
        raise row_error(where, f"`reply` is not text{shown}", why)
    for key in row:
        near = [] if key in KEYS else closest(str(key), KEYS, cutoff=0.75)
        if near and near[0] not in row:
            raise row_error(where, f"unknown key {key!r:.40}", f"did you mean {near[0]}?")
    return row


def rename_hint(key: str, row: dict[str, Any]) -> str:
    """Which key of a row is probably the missing one; empty if none is."""
    names = {str(name).lower(): name for name in row if name != key}
    near = next((names[name] for name in OTHER_NAMES[key] if name in names), None)
    return f"; rename {near} to {key}" if near else ""


def row_error(where: str, what: str, why: str = "") -> DataError:
    """D104 for a row that cannot be judged."""
    return DataError(
        "D104",
        what,
        where=where,
        why=why or "a row has a reply, a gold answer and, for multiple choice, its options",
        fix='write a row such as   {"reply": "The answer is B.", "gold": "B", '
        '"choices": ["30", "40"]}',
    )


def print_verdicts(path: Path, checker: str, take: str, plugins: Sequence[str]) -> None:
    """Print one JSON line per row, and a summary to the terminal."""
    load_plugins(plugins)
    check_options(path, checker, take)
    counts: Counter[str] = Counter()
    for row, verdict in judge_file(path, checker, take):
        known = {key: row[key] for key in ("id", "gold") if key in row}
        print(json.dumps({**known, **verdict.to_dict()}, ensure_ascii=False))
        counts.update(rows=1, correct=verdict.correct, unparsed=verdict.unparsed)
        comma = not row.get("choices") and has_decimal_comma(str(row["gold"]))
        counts.update(commas=comma)
        for name in EXPECTED:
            if isinstance(row.get(name), bool):
                counts.update(expected=1, agree=row[name] == verdict.correct)
    text = f"{counts['rows']:,} replies: {counts['correct']:,} correct, "
    text += f"{counts['unparsed']:,} without an answer"
    if counts["expected"]:
        text += f"; {counts['agree']:,} of {counts['expected']:,} as the file expects"
    if counts["commas"]:
        text += f"\n{counts['commas']:,} gold answers look like decimals with a comma and are read "
        text += "as two numbers: if 3,5 means 3.5, write 3.5"
    print(text, file=sys.stderr)

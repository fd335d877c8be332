"""Rows of a file, of a data set on the hub, or of its local cache; a line that is no row comes as its error."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vistill.data.settings import DataSettings
from vistill.errors import DataError, MissingExtraError, suggest

HUB = re.compile(r"^hf:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:\[(?P<split>[^\]]+)\])?$")

Rows = Iterator[tuple[int, dict[str, Any] | DataError]]


def rows_of(source: str) -> Rows:
    """(line, row) pairs of a source."""
    if source.startswith("hf:"):
        yield from hub_rows(source)
    elif source.endswith(".parquet"):
        yield from dataset_rows("parquet", data_files=source, split="train")
    else:
        yield from json_lines(Path(source))


def json_lines(path: Path) -> Rows:
    """Rows of a JSON Lines file (D102)."""
    if not path.is_file():
        raise DataError(
            "D102",
            f'data file "{path}" does not exist',
            why="looked for a .jsonl file, a .parquet file, `hf:owner/name[split]` or `diagrams`",
            fix="data.train=FILE.jsonl",
        )
    with path.open("rb") as handle:
        for line, text in enumerate(handle, 1):
            if text.strip():
                yield line, parsed(text, f"{path}:{line}")


def parsed(text: bytes, where: str) -> dict[str, Any] | DataError:
    """One line as a row, or as the error it is (D102)."""
    try:
        row = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return DataError("D102", "a line is not JSON", where=where, why=str(error)[:200], fix="correct the line")
    if not isinstance(row, dict):
        return DataError("D102", "a line is not a JSON object", where=where, why=f"{row!r:.40}", fix="correct the line")
    return row


def check_columns(source: str, settings: DataSettings) -> None:
    """D101 for a column that no row has: that is a wrong name, not a bad row."""
    wanted = {key: name for key, name in vars(settings.columns).items() if name}
    found: dict[str, None] = {}
    for _, row in rows_of(source):
        if isinstance(row, Mapping):
            found |= dict.fromkeys(row)
        if source.startswith("hf:") or source.endswith(".parquet") or all(n in found for n in wanted.values()):
            break
    for key, name in wanted.items():
        if found and name not in found and not (key == "images" and settings.text_only != "error"):
            close = suggest(name, list(found), cutoff=0.8)
            raise DataError(
                "D101",
                f'column "{name}" not in {source}',
                why=f"columns found: {', '.join(found)}   {close}".rstrip(),
                fix=f"data.columns.{key}={close.split(chr(34))[1] if close else 'COLUMN'}"
                + ("" if key == "prompt" else f"   or leave it out: data.columns.{key}="),
            )


def hub_rows(source: str) -> Rows:
    """Rows of a data set on the hub, or in its local cache."""
    match = HUB.match(source)
    if match is None:
        raise DataError(
            "D102", f'"{source}" is not of the form hf:owner/name[split]', fix="hf:hiyouga/geometry3k[train]"
        )
    yield from dataset_rows(match["name"], split=match["split"] or "train")


def dataset_rows(name: str, **how: str) -> Rows:
    """Rows through `datasets` (extra `data`)."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            "E301",
            "this source needs the package `datasets`",
            fix='pip install "vistill[data]" -c constraints.txt',
        ) from error
    for line, row in enumerate(datasets.load_dataset(name, **how), 1):  # pyright: ignore[reportArgumentType,reportCallIssue]
        yield line, dict(row)

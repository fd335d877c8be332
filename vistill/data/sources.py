"""Rows of a file, of a data set on the hub, or of its local cache; a line that is no row comes as its error."""

import codecs
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vistill.data.settings import DataSettings
from vistill.errors import DataError, MissingExtraError, closest

HUB = re.compile(r"^hf:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:\[(?P<split>[^\]]+)\])?$")

Rows = Iterator[tuple[int, dict[str, Any] | DataError]]


def read_source(source: str) -> Rows:
    """(line, row) pairs of a source."""
    if "://" in source:
        raise DataError(
            "D205",
            "the data are given as a URL",
            where=source,
            why="data never reaches the network by itself",
            fix="download it: data.train=FILE.jsonl   or, on the hub,   data.train=hf:OWNER/NAME[SPLIT]",
        )
    if source.startswith("hf:"):
        yield from read_hub_rows(source)
    elif source.endswith(".parquet"):
        yield from read_dataset_rows("parquet", data_files=source, split="train")
    else:
        yield from read_json_lines(Path(source))


def read_json_lines(path: Path) -> Rows:
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
                yield line, parse_line(text.removeprefix(codecs.BOM_UTF8), f"{path}:{line}")


def parse_line(text: bytes, where: str) -> dict[str, Any] | DataError:
    """One line as a row, or as the error it is (D102)."""
    try:
        row = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return DataError(
            "D102", "a line is not JSON", where=where, why=str(error)[:200], fix="correct the line"
        )
    if not isinstance(row, dict):
        return DataError(
            "D102",
            "a line is not a JSON object",
            where=where,
            why=f"{row!r:.40}",
            fix="correct the line",
        )
    return row


#: What data sets call their columns, for a name that is not there.
USUAL_COLUMNS = {
    "prompt": ("question", "prompt", "problem", "query", "instruction", "text"),
    "images": ("images", "image", "pictures", "picture", "img"),
    "answer": ("answer", "solution", "gold", "label", "target"),
    "choices": ("choices", "options"),
    "response": ("response", "completion", "output"),
}


def column_fix(key: str, name: str, found: Sequence[str]) -> str:
    """Settings that name the column that was probably meant, or none."""
    usual = [column for column in USUAL_COLUMNS.get(key, ()) if column in found]
    near = [*closest(name, found, cutoff=0.8), *usual]
    named = [f"data.columns.{key}={near[0]}"] if near else []
    none = [] if key == "prompt" else [f"data.columns.{key}="]
    return (
        "   or   ".join([*named, *none])
        or f"data.columns.{key}=COLUMN   one of: {', '.join(found)}"
    )


def check_columns(source: str, settings: DataSettings) -> None:
    """D101 for a column that no row has: that is a wrong name, not a bad row."""
    wanted = {key: name for key, name in vars(settings.columns).items() if name}
    found: dict[str, None] = {}
    for _, row in read_source(source):
        if isinstance(row, Mapping):
            found |= dict.fromkeys(row)
        if (
            source.startswith("hf:")
            or source.endswith(".parquet")
            or all(n in found for n in wanted.values())
        ):
            break
    for key, name in wanted.items():
        if found and name not in found and not (key == "images" and settings.text_only != "error"):
            raise DataError(
                "D101",
                f'column "{name}" not in {source}',
                why=f"columns found: {', '.join(found)}",
                fix=column_fix(key, name, list(found)),
            )


def read_hub_rows(source: str) -> Rows:
    """Rows of a data set on the hub, or in its local cache."""
    match = HUB.match(source)
    if match is None:
        raise DataError(
            "D102",
            f'"{source}" is not of the form hf:owner/name[split]',
            fix="hf:hiyouga/geometry3k[train]",
        )
    yield from read_dataset_rows(match["name"], split=match["split"] or "train")


def read_dataset_rows(name: str, **how: str) -> Rows:
    """Rows through `datasets` (extra `data`)."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MissingExtraError(
            "E301",
            "this source needs the package `datasets`",
            why="`hf:` and .parquet are read by it; a .jsonl file with a folder of pictures needs nothing",
            fix='pip install "vistill[data]"',
        ) from error
    try:
        made = datasets.load_dataset(name, **how)  # pyright: ignore[reportArgumentType,reportCallIssue]
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(
            "D102",
            f'the data set "{how.get("data_files", name)}" cannot be read',
            why=f"{type(error).__name__}: {str(error)[:200]}",
            fix="data.train=hf:OWNER/NAME[SPLIT] as the hub spells them, or data.train=FILE.jsonl",
        ) from error
    line = 0
    for batch in made.with_format("arrow").iter(batch_size=64):  # pyright: ignore[reportAttributeAccessIssue]
        for row in (
            batch.to_pylist()
        ):  # encoded pictures and bare paths: nothing is opened but by our own rules
            line += 1
            yield line, row

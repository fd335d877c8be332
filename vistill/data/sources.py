"""Read rows of a file, of a data set on the hub, or of its local cache.

A line that is not a row is yielded as the error that describes it.
"""

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
    """Read (line, row) pairs of a source."""
    if "://" in source:
        raise DataError(
            "D205",
            "the data source is a URL",
            where=source,
            why="vistill does not download data from URLs",
            fix="download it: data.train=FILE.jsonl"
            "   or, on the hub,   data.train=hf:OWNER/NAME[SPLIT]",
        )
    if source.startswith("hf:"):
        yield from read_hub_rows(source)
    elif source.endswith(".parquet"):
        yield from read_dataset_rows("parquet", data_files=source, split="train")
    else:
        yield from read_json_lines(Path(source))


def read_json_lines(path: Path) -> Rows:
    """Read rows of a JSON Lines file (D102)."""
    if not path.is_file():
        raise DataError(
            "D102",
            f'data file "{path}" does not exist',
            why="a source is a .jsonl file, a .parquet file, `hf:owner/name[split]` or `diagrams`",
            fix="data.train=FILE.jsonl",
        )
    with path.open("rb") as handle:
        for line, text in enumerate(handle, 1):
            if text.strip():
                yield line, parse_line(text.removeprefix(codecs.BOM_UTF8), f"{path}:{line}")


def parse_line(text: bytes, where: str) -> dict[str, Any] | DataError:
    """Parse one line as a row; return a D102 error for a bad line."""
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


#: Usual column names of data sets, to suggest one for a missing column.
USUAL_COLUMNS = {
    "prompt": ("question", "prompt", "problem", "query", "instruction", "text"),
    "images": ("images", "image", "pictures", "picture", "img", "image_path", "problem_image_0"),
    "answer": ("answer", "solution", "gold", "label", "target", "ground_truth", "reference"),
    "choices": ("choices", "options"),
    "response": ("response", "completion", "output"),
    "thoughts": ("thoughts", "thought", "reasoning_images", "reasoning_image_0", "visual_thoughts"),
    "boxes": ("boxes", "bboxes", "bbox"),
}


def column_fix(key: str, name: str, columns: Sequence[str]) -> str:
    """Settings that name a similar or usual column, or that leave the column empty."""
    usual = [column for column in USUAL_COLUMNS.get(key, ()) if column in columns]
    candidates = [*closest(name, columns, cutoff=0.8), *usual]
    renamed = [f"data.columns.{key}={candidates[0]}"] if candidates else []
    empty = [] if key == "prompt" else [f"data.columns.{key}="]
    return (
        "   or   ".join([*renamed, *empty])
        or f"data.columns.{key}=COLUMN   one of: {', '.join(columns)}"
    )


def check_columns(source: str, settings: DataSettings) -> None:
    """D101 for a column that no row has: a wrong name, not a bad row."""
    named = {key: name for key, name in vars(settings.columns).items() if name}
    columns: dict[str, None] = {}
    for _, row in read_source(source):
        if isinstance(row, Mapping):
            columns |= dict.fromkeys(row)
        if (
            source.startswith("hf:")
            or source.endswith(".parquet")
            or all(n in columns for n in named.values())
        ):
            break
    for key, name in named.items():
        may_be_missing = key == "images" and settings.text_only != "error"
        if columns and name not in columns and not may_be_missing:
            raise DataError(
                "D101",
                f'column "{name}" not in {source}',
                why=f"columns found: {', '.join(columns)}",
                fix=column_fix(key, name, list(columns)),
            )


def read_hub_rows(source: str) -> Rows:
    """Read rows of a data set on the hub, or of its local cache."""
    match = HUB.match(source)
    if match is None:
        raise DataError(
            "D102",
            f'"{source}" does not have the form hf:owner/name[split]',
            fix="hf:hiyouga/geometry3k[train]",
        )
    yield from read_dataset_rows(match["name"], split=match["split"] or "train")


def read_dataset_rows(name: str, **options: str) -> Rows:
    """Read rows with the package `datasets` (extra `data`)."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MissingExtraError(
            "E301",
            "this source needs the package `datasets`",
            why="it reads `hf:` and .parquet; a .jsonl file with an image folder needs no package",
            fix='pip install "vistill[data]"',
        ) from error
    try:
        loaded = datasets.load_dataset(name, **options)  # pyright: ignore[reportArgumentType,reportCallIssue]
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(
            "D102",
            f'the data set "{options.get("data_files", name)}" cannot be read',
            why=f"{type(error).__name__}: {str(error)[:200]}",
            fix="data.train=hf:OWNER/NAME[SPLIT], spelled as on the hub, or data.train=FILE.jsonl",
        ) from error
    line = 0
    for batch in loaded.with_format("arrow").iter(batch_size=64):  # pyright: ignore[reportAttributeAccessIssue]
        # encoded images and paths: only vistill opens a file
        for row in batch.to_pylist():
            line += 1
            yield line, row

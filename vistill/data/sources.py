"""Read rows of a file, of a data set on the hub, or of its local cache.

The content of a file decides how it is read; its name decides only between JSON and CSV or TSV.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vistill.data.column_groups import matching_columns, picture_columns
from vistill.data.layouts import Layout, value_at
from vistill.data.settings import Columns, DataSettings
from vistill.data.text_files import Rows, read_text_file
from vistill.errors import (
    DataError,
    MissingExtraError,
    closest,
    quote_command,
    quote_path,
    quote_setting,
    suggest,
)
from vistill.runs.hub import ask_hub, is_offline, offline_is_set

HUB = re.compile(
    r"^hf:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^\[\]]+))?(?:\[(?P<split>[^\]]+)\])?$"
)
PARQUET = b"PAR1"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
#: Most bytes of a file whose lines are counted before its rows are read.
MAX_COUNTED = 1 << 30
#: Files that may hold rows, to name those of a folder.
DATA_SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".gz")


def read_source(source: str) -> Rows:
    """Read (line, row) pairs of a source."""
    if "://" in source:
        raise DataError(
            "D205",
            "the data source is a URL",
            where=source,
            why="vistill does not download data from URLs",
            fix="download it: data.train=FILE.jsonl"
            "   or, on the hub,   'data.train=hf:OWNER/NAME[SPLIT]'",
        )
    if source.startswith("hf:"):
        yield from read_hub_rows(source)
        return
    paths = files_of(source)
    for path in paths:
        with path.open("rb") as handle:
            is_parquet = handle.read(4) == PARQUET
        rows = read_parquet(path) if is_parquet else read_text_file(path)
        yield from rows if paths == [Path(source)] else rows_of_pattern(rows, path)


def rows_of_pattern(rows: Rows, path: Path) -> Rows:
    """Rows of one of the files that a pattern matches; a fix keeps the others and the pattern."""
    try:
        for line, row in rows:
            if isinstance(row, DataError):
                row.fix = fix_in_place(row.fix, path)
            yield line, row
    except DataError as error:
        error.fix = fix_in_place(error.fix, path)
        error.args = (error.render(),)
        raise


def fix_in_place(text: str, path: Path) -> str:
    """A fix that writes a converted copy, as one that keeps the file's name.

    The copy would match the pattern too, and a setting that names it alone would lose the others.
    """
    convert = re.fullmatch(r"(iconv .+ UTF-8) \S.* > \S.*   and then   \S.*", text)
    if convert is None:
        return text
    file, original = quote_path(path), quote_path(path.with_name(f"{path.name}.orig"))
    return f"cp {file} {original} && {convert.group(1)} {original} > {file}"


def count_rows(source: str, limit: int | None = None) -> int | None:
    """The number of rows of a source if it is cheap to know, at most `limit`. Only shown.

    Lines of JSON Lines files, and what Parquet files state. None for other sources.
    """
    if "://" in source or source.startswith("hf:"):
        return None
    counts = [count_rows_of_file(path) for path in files_of(source)]
    if any(count is None for count in counts):
        return None
    total = sum(count or 0 for count in counts)
    return total if limit is None else min(total, limit)


def count_rows_of_file(path: Path) -> int | None:
    """The rows of a file; None if counting them would mean to parse it, or if it is huge."""
    try:
        with path.open("rb") as handle:
            head = handle.read(4)
            if head == PARQUET:
                from pyarrow import parquet

                return parquet.ParquetFile(path).metadata.num_rows
            if path.suffix not in (".jsonl", ".ndjson") or path.stat().st_size > MAX_COUNTED:
                return None
            if not head.lstrip(BYTE_ORDER_MARK).startswith(b"{"):
                return None
            handle.seek(0)
            count, last = 0, b""
            for block in iter(lambda: handle.read(1 << 20), b""):
                count, last = count + block.count(b"\n"), block
            return count + (not last.endswith(b"\n"))
    except (OSError, ImportError, ValueError):  # reading the rows reports it
        return None


def files_of(source: str) -> list[Path]:
    """The file of that name; only if there is none, the files that the name matches as a pattern.

    Raises:
        DataError: D102, there is no such file.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    matching = [file for file in matching_paths(path) if file.is_file()]
    if matching:
        return matching
    raise no_file_error(path)


def matching_paths(path: Path) -> list[Path]:
    """The paths that match a pattern: `*` in the name of the file, or of its folders."""
    first = next((i for i, part in enumerate(path.parts) if "*" in part), None)
    if first is None:
        return []
    return sorted(Path(*path.parts[:first]).glob("/".join(path.parts[first:])))


def check_source_exists(source: str, key: str = "data.train") -> None:
    """D102 if a source is a file that does not exist; the fix sets `key`."""
    try:
        files_of(source)
    except DataError as error:
        error.fix = error.fix.replace("data.train=", f"{key}=")
        error.args = (error.render(),)
        raise


def no_file_error(path: Path) -> DataError:
    """D102 with a file of a similar name, or the files of a folder."""
    folder = path if path.is_dir() else path.parent
    names = [
        file.name
        for file in (sorted(folder.iterdir())[:5000] if folder.is_dir() else [])
        if file.suffix.lower() in DATA_SUFFIXES and file.is_file()
    ]
    similar = names if path.is_dir() else closest(path.name, names, cutoff=0.6)
    hint = "" if path.is_dir() else suggest(path.name, names)
    fix = quote_setting("data.train", folder / similar[0]) if similar else "data.train=FILE.jsonl"
    what = (
        f'data source "{path}" is a folder'
        if path.is_dir()
        else f'data file "{path}" does not exist'
    )
    kinds = (
        "a source is a file (JSON Lines, JSON, CSV, TSV, Parquet), `hf:owner/name[split]` or "
        "`diagrams`"
    )
    place = "" if path.is_absolute() else f"; looked for in {Path.cwd()}"
    return DataError("D102", what, why=f"{kinds}{place}   {hint}".rstrip(), fix=fix)


#: Usual column names of data sets, to suggest one for a missing column.
USUAL_COLUMNS = {
    "prompt": ("question", "prompt", "problem", "query", "instruction", "text"),
    "images": (
        "images",
        "decoded_image",
        "image",
        "pictures",
        "picture",
        "img",
        "image_path",
        "img_path",
        "image_file",
        "imgname",
        "file_name",
        "problem_image_0",
    ),
    "answer": (
        "answer",
        "solution",
        "gold",
        "label",
        "target",
        "ground_truth",
        "reference",
        "answers",
        "reward_model",
        "correct_option",
        "correct_answer",
        "correct_choice",
    ),
    "choices": ("choices", "options"),
    "response": ("response", "completion", "output"),
    "thoughts": ("thoughts", "thought", "reasoning_images", "reasoning_image_0", "visual_thoughts"),
    "boxes": ("boxes", "bboxes", "bbox"),
}


def column_fix(
    key: str, name: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> str:
    """Settings that name a similar or usual column, or that leave the column empty.

    Rows without pictures are refused (D204) unless the recipe says what to do with them.
    """
    usual = [column for column in USUAL_COLUMNS.get(key, ()) if column in columns]
    usual += picture_columns(rows) if key == "images" else []
    candidates = [*closest(name, columns, cutoff=0.8), *usual]
    renamed = [quote_setting(f"data.columns.{key}", candidates[0])] if candidates else []
    named = renamed or [f"data.columns.{key}=COLUMN   one of: {', '.join(columns)}"]
    if key == "images":
        plain = "data.columns.images= data.text_only=plain"
        return f"{named[0]}   or, for questions without pictures,   {plain}"
    empty = [] if key == "prompt" else [f"data.columns.{key}="]
    return "   or   ".join([*renamed, *empty] or named)


def check_columns(source: str, settings: DataSettings, layout: Layout) -> None:
    """D101 for a column that no row has: a wrong name, not a bad row."""
    named = [
        (key, column)
        for key, name in vars(layout.columns).items()
        if name and (not layout.name or key not in ("prompt", "images", "response"))
        for column in layout.source_columns(name)
    ]
    named += misspelt_candidates(settings, layout)
    wanted = {column for _, column in named}
    columns: dict[str, None] = {}
    present: set[str] = set()
    first = list[Mapping[str, Any]]()
    columnar = is_columnar(source)
    for line, row in read_source(source):
        if isinstance(row, Mapping):
            columns |= dict.fromkeys(map(str, row))
            first += [row] if len(first) < 20 else []
            values = layout_keys(layout)
            present |= {n for n in wanted if n in row or n in values or has_inner(row, n)}
            present |= {n for n in wanted if matching_columns(row, n)}
        if present == wanted or (columnar and line >= 64):
            break
    for key, name in named:
        may_be_missing = key == "images" and settings.text_only != "error"
        if columns and name not in present and not may_be_missing:
            group = [column for other, column in named if other == key and column in present]
            fix = quote_setting(f"data.columns.{key}", ",".join(group))
            raise DataError(
                "D101",
                f'column "{name}" not in {source}',
                why=f"columns found: {', '.join(columns)}",
                fix=fix if group else column_fix(key, name, list(columns), first),
            )


def misspelt_candidates(settings: DataSettings, layout: Layout) -> list[tuple[str, str]]:
    """Columns of question and images that a recipe names and a detected format does not read."""
    if not layout.name:
        return []
    default, named = Columns(), settings.columns
    pairs = [("prompt", named.prompt, default.prompt), ("images", named.images, default.images)]
    return [
        (key, name) for key, name, usual in pairs if name not in ("", usual) and "," not in name
    ]


def is_columnar(source: str) -> bool:
    """Whether all rows of a source have the same columns."""
    if source.startswith("hf:"):
        return True
    with files_of(source)[0].open("rb") as handle:
        return handle.read(4) == PARQUET


def layout_keys(layout: Layout) -> tuple[str, ...]:
    """Columns that a layout adds to every row."""
    return ("response",) if layout.turns else ()


def has_inner(row: Mapping[str, Any], name: str) -> bool:
    """Whether a dotted name leads into a mapping of the row."""
    return "." in name and value_at(row, name) is not None


def read_hub_rows(source: str) -> Rows:
    """Read rows of a data set on the hub, or of its local cache."""
    match = HUB.match(source)
    if match is None:
        raise DataError(
            "D102",
            f'"{source}" does not have the form hf:owner/name[split]',
            fix="'data.train=hf:OWNER/NAME[SPLIT]'   such as hf:hiyouga/geometry3k[train]",
        )
    name, split = match["name"], match["split"] or "train"
    try:
        import datasets
        import datasets.config
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise missing_package_error("datasets", "`hf:` sources") from error
    ask_hub()
    datasets.config.HF_HUB_OFFLINE = is_offline()
    try:
        loaded = datasets.load_dataset(name, match["config"], split=split)
    except (OSError, ValueError, DatasetsError) as error:
        raise unreadable_hub_data_error(name, error) from error
    yield from numbered(loaded.with_format("arrow").iter(batch_size=64))  # pyright: ignore[reportAttributeAccessIssue]


def unreadable_hub_data_error(name: str, error: Exception) -> DataError:
    """D102 for a data set that is not on the hub, or a hub that does not answer."""
    fix = "'data.train=hf:OWNER/NAME[SPLIT]'   as the hub spells it, or   data.train=FILE.jsonl"
    if is_offline():
        download = quote_command("hf", "download", "--repo-type", "dataset", name)
        online = "unset HF_HUB_OFFLINE" if offline_is_set() else download
        fix = f"data.train=FILE.jsonl   or, with a network,   {online}"
    why = f"{type(error).__name__}: {str(error)[:200]}"
    return DataError("D102", f'the data set "{name}" cannot be read', why=why, fix=fix)


def read_parquet(path: Path) -> Rows:
    """Read rows of a Parquet file with pyarrow (extra `data`)."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise missing_package_error("pyarrow", "Parquet files") from error
    try:
        yield from numbered(parquet.ParquetFile(path).iter_batches(batch_size=64))
    except (OSError, ValueError, ArrowException) as error:
        raise DataError(
            "D102",
            f'the Parquet file "{path}" cannot be read',
            why=f"{type(error).__name__}: {str(error)[:200]}",
            fix="download it again, or   data.train=FILE.jsonl",
        ) from error


def numbered(batches: Any) -> Rows:
    """Rows of Arrow batches; encoded images and paths stay: only vistill opens them."""
    line = 0
    for batch in batches:
        for row in batch.to_pylist(maps_as_pydicts="lossy"):
            line += 1
            yield line, row


def missing_package_error(package: str, what: str) -> MissingExtraError:
    """E301 for a package of the extra `data`."""
    return MissingExtraError(
        "E301",
        f"{what} need the package `{package}`",
        why="JSON Lines, JSON, CSV and TSV with an image folder need no package",
        fix='pip install "vistill[data]"',
    )

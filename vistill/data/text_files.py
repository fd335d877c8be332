"""Rows of text files: JSON Lines, JSON arrays, pretty-printed JSON, CSV and TSV, plain or gzip.

A line that is not a row is yielded as the error that describes it.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from vistill.errors import DataError, file_next_to, quote_path, quote_setting

Rows = Iterator[tuple[int, dict[str, Any] | DataError]]

GZIP = b"\x1f\x8b"
#: Most bytes of one line, and of a file that is read as a whole.
MAX_LINE, MAX_WHOLE = 200_000_000, 2_000_000_000
#: First bytes of what is not read: name, and the command that converts {file} to {new}.
OTHER_FILES = (
    (b"\x28\xb5\x2f\xfd", "Zstandard file", "zstd -d {file} -o {new}"),
    (b"BZh", "bzip2 file", "bunzip2 -c {file} > {new}"),
    (b"\xfd7zXZ", "xz file", "xz -dc {file} > {new}"),
    (b"PK\x03\x04", "ZIP archive or spreadsheet", "python -m zipfile -e {file} ."),
    (b"ARROW1", "Arrow file", ""),
    (b"\x80\x04", "pickle", ""),
    (b"\x80\x05", "pickle", ""),
    (b"\x93NUMPY", "NumPy array", ""),
    (b"SQLite format 3", "SQLite database", ""),
    (b"\x89HDF", "HDF5 file", ""),
)
SUFFIXES = {".csv": ",", ".tsv": "\t"}


def open_text(path: Path) -> BinaryIO:
    """Open a file of text as bytes; a gzip file unpacked, whatever its name."""
    return cast("BinaryIO", gzip.open(path, "rb")) if is_gzip(path) else path.open("rb")


def is_gzip(path: Path) -> bool:
    """Whether a file is packed with gzip, whatever its name."""
    with path.open("rb") as handle:
        return handle.read(2) == GZIP


def read_text_file(path: Path) -> Rows:
    """Read (line, row) pairs of a text file (D102). Rows of a JSON array are numbered from 1."""
    try:
        with open_text(path) as handle:
            head = handle.read(4096)
        check_head(head, path)
        name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
        if name.suffix.lower() in SUFFIXES:
            yield from read_table(path, name.suffix.lower())
        else:
            document = objects_in(path) if may_be_document(head, path) else None
            if document is None:
                check_not_damaged(head, path)
                yield from read_json_lines(path)
            else:
                yield from document_rows(document, path)
    except UnicodeDecodeError as error:
        raise encoding_error(path, "UTF-16", str(error)[:200]) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            "D102",
            f'the gzip file "{path}" is damaged',
            why=str(error)[:200],
            fix=f"download it again; it is tested by   gunzip -t < {quote_path(path)}",
        ) from error


def check_head(head: bytes, path: Path) -> None:
    """D102 for a file that is no text, or in an encoding that is not known."""
    for magic, kind, command in OTHER_FILES:
        if head.startswith(magic):
            raise unread_file_error(path, kind, command)
    utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    zeros = 0 if utf16 else head.count(b"\0")
    if zeros * 3 > len(head):
        order = "LE" if head[1:2] == b"\0" else "BE"
        raise encoding_error(path, f"UTF-16{order}", "every other byte is null")
    if zeros * 20 > len(head):
        raise unread_file_error(path, "binary file", "")


def unread_file_error(path: Path, kind: str, command: str) -> DataError:
    """D102 for a file of a kind that is not read."""
    inner = Path(path.stem)
    new = file_next_to(path, f"{inner.stem}.unpacked{inner.suffix or '.jsonl'}")
    quoted = command.format(file=quote_path(path), new=quote_path(new))
    setting = quote_setting("data.train", new)
    setting = setting if "{new}" in command else "data.train=FILE.jsonl"
    convert = f"{quoted}   and then   {setting}" if command else ""
    return DataError(
        "D102",
        f'"{path}" is a {kind}, which is not read',
        why="data files are JSON Lines, JSON, CSV, TSV (also in gzip) and Parquet",
        fix=convert or "save the rows as JSON Lines or Parquet: data.train=FILE.jsonl",
    )


def encoding_error(path: Path, encoding: str, why: str, where: str = "") -> DataError:
    """D102 for a file that is not UTF-8, with the command that converts it."""
    packed = is_gzip(path)
    name = path.with_suffix("") if packed and path.suffix.lower() == ".gz" else path
    new = file_next_to(path, f"{name.stem}.utf8{name.suffix}")
    read = f"gunzip -c < {quote_path(path)} | " if packed else ""
    source = "" if packed else f" {quote_path(path)}"
    convert = f"{read}iconv -f {encoding} -t UTF-8{source} > {quote_path(new)}"
    return DataError(
        "D102",
        "the file is not UTF-8",
        where=where or str(path),
        why=why,
        fix=f"{convert}   and then   {quote_setting('data.train', new)}",
    )


def read_json_lines(path: Path) -> Rows:
    """Read rows of a JSON Lines file; UTF-16 by its byte order mark."""
    with open_text(path) as handle:
        if utf16_of(handle.read(2)):
            lines = (line.encode() for line in whole_text(path).split("\n"))
        else:
            handle.seek(0)
            lines = iter(lambda: handle.readline(MAX_LINE), b"")
        for line, text in enumerate(lines, 1):
            if len(text) >= MAX_LINE:
                raise unread_file_error(path, f"file with a line of {MAX_LINE:,} bytes or more", "")
            if text.strip():
                yield line, parse_line(text.removeprefix(codecs.BOM_UTF8), path, line)


def utf16_of(head: bytes) -> str:
    """UTF-16 for a file with its byte order mark; empty otherwise."""
    return "utf-16" if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else ""


def parse_line(text: bytes, path: Path, line: int) -> dict[str, Any] | DataError:
    """Parse one line as a row; return a D102 error for a bad line."""
    where = f"{path}:{line}"
    try:
        row = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        return encoding_error(path, guessed_encoding(text), str(error)[:200], where)
    except (ValueError, RecursionError) as error:
        return DataError(
            "D102",
            "a line is not JSON",
            where=where,
            why=str(error)[:200],
            fix=line_fix(path, line),
        )
    if not isinstance(row, dict):
        return DataError(
            "D102",
            "a line is not a JSON object",
            where=where,
            why=f"{row!r:.40}",
            fix=line_fix(path, line),
        )
    return row


def guessed_encoding(text: bytes) -> str:
    """Windows' encoding where its own characters occur, Latin-1 otherwise."""
    return "WINDOWS-1252" if re.search(rb"[\x80-\x9f]", text) else "LATIN1"


def line_fix(path: Path, line: int) -> str:
    """A command that shows the line, and what to do."""
    plain = plain_text_command(path)
    file = quote_path(path)
    command = f"{plain} | sed -n {line}p" if plain else f"sed -n {line}p {file}"
    return f"correct or delete the line; it is shown by   {command}"


def plain_text_command(path: Path) -> str:
    """A command that prints a file unpacked, in UTF-8 without a mark; empty for a plain one."""
    file = quote_path(path)
    steps = [f"gunzip -c < {file}"] if is_gzip(path) else []
    with open_text(path) as handle:
        head = handle.read(3)
    if utf16_of(head[:2]):
        source = "" if steps else f" {file}"
        steps.append(f"iconv -f UTF-16 -t UTF-8{source}")
    elif head == codecs.BOM_UTF8:
        source = "" if steps else f" < {file}"
        steps.append(f"tail -c +4{source}")
    return " | ".join(steps)


def whole_text(path: Path) -> str:
    """The text of a file that is read as a whole."""
    with open_text(path) as handle:
        data = handle.read(MAX_WHOLE + 1)
    if len(data) > MAX_WHOLE:
        raise unread_file_error(path, f"JSON document of more than {MAX_WHOLE:,} bytes", "")
    try:
        return data.decode(utf16_of(data[:2]) or "utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = utf16_of(data[:2]).upper() or guessed_encoding(data)
        line = data.count(b"\n", 0, error.start) + 1
        where = f"{path}:{line}" if encoding != "UTF-16" else ""
        raise encoding_error(path, encoding, str(error)[:200], where) from error


def may_be_document(head: bytes, path: Path) -> bool:
    """Whether a file begins like a JSON array, or like JSON objects over several lines."""
    text = head.decode(utf16_of(head[:2]) or "utf-8-sig", errors="replace").lstrip()
    first_line = text.partition("\n")[0].strip()
    if text.startswith("["):
        return True
    if not text.startswith("{") or len(first_line) > 4000:
        return False
    try:
        first = json.loads(first_line)
    except (ValueError, RecursionError):
        return True
    return path.suffix.lower() == ".json" and rows_inside(first) is not None


def objects_in(path: Path) -> list[Any] | None:
    """The objects of a JSON document or of pretty-printed objects; None if it is neither."""
    try:
        text = whole_text(path)
    except DataError:
        return None
    decoder, at, objects = json.JSONDecoder(), 0, list[Any]()
    space = re.compile(r"[\s,]*")
    try:
        while (at := space.match(text, at).end()) < len(text):  # pyright: ignore[reportOptionalMemberAccess]
            value, at = decoder.raw_decode(text, at)
            objects.append(value)
    except (ValueError, RecursionError):
        return None
    if len(objects) == 1:
        return rows_inside(objects[0]) or ([objects[0]] if isinstance(objects[0], dict) else None)
    return objects if objects and all(isinstance(item, dict) for item in objects) else None


def document_rows(document: list[Any], path: Path) -> Rows:
    """Rows of a JSON document, numbered from 1; an error for an item that is no object."""
    for number, item in enumerate(document, 1):
        where = f"{path}:{number}"
        yield (
            number,
            item
            if isinstance(item, dict)
            else DataError(
                "D102",
                "an item of the array is not a JSON object",
                where=where,
                why=f"{item!r:.40}",
                fix="correct or delete the item",
            ),
        )


def check_not_damaged(head: bytes, path: Path) -> None:
    """D102 for a JSON array, or objects over several lines, with a mistake."""
    text = head.decode(utf16_of(head[:2]) or "utf-8-sig", errors="replace").lstrip()
    first_line = text.partition("\n")[0].strip()
    if first_line not in ("[", "{", "[{"):
        return
    try:
        json.loads(whole_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(
            "D102",
            f'the JSON document "{path}" is damaged',
            why=str(error)[:200],
            fix=f"correct it; the place is shown by   {json_tool(path)} > /dev/null",
        ) from error


def json_tool(path: Path) -> str:
    """A command that names the place of a mistake in a JSON document."""
    plain, tool = plain_text_command(path), "python -m json.tool"
    return f"{plain} | {tool}" if plain else f"{tool} {quote_path(path)}"


def rows_inside(document: Any) -> list[Any] | None:
    """The rows of a JSON document: an array of objects, or a mapping whose one list holds them."""
    if isinstance(document, list):
        objects = sum(isinstance(item, Mapping) for item in document)
        return document if document and 2 * objects >= len(document) else None
    if isinstance(document, Mapping):
        lists = [
            rows
            for value in document.values()
            if isinstance(value, list) and (rows := rows_inside(value))
        ]
        plain = [value for value in document.values() if not isinstance(value, list)]
        is_wrapper = len(lists) == 1 and all(isinstance(v, str | int | float | None) for v in plain)
        turns = {"role", "content", "from", "value", "type"}
        is_row = bool(lists) and bool(turns & set(lists[0][0]))
        return lists[0] if is_wrapper and not is_row else None
    return None


def read_table(path: Path, suffix: str) -> Rows:
    """Read rows of a CSV or TSV file by its header; an empty cell is no value."""
    csv.field_size_limit(MAX_LINE)
    text = whole_text(path)
    delimiter = SUFFIXES[suffix]
    header = text.partition("\n")[0]
    if suffix == ".csv" and delimiter not in header:
        delimiter = max(";\t,", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names = [name.strip() for name in reader.fieldnames or []]
    reader.fieldnames = names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            "D102",
            f'two columns of "{path}" have the name {twice!r}',
            why="a row would keep the last one only",
            fix="rename one of them in the first line of the file",
        )
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            why = f"{error}; the rows after it cannot be told apart"
            raise table_error(path, reader.line_num, why) from error
        if row is None:
            return
        yield reader.line_num, table_row(row, path, reader.line_num)


def table_row(row: dict[Any, Any], path: Path, line: int) -> dict[str, Any] | DataError:
    """A row of a table; an error where it has more cells than the header."""
    if None in row:
        return table_error(path, line, "it has more cells than the first line has names")
    return {name: value or None for name, value in row.items()}


def table_error(path: Path, line: int, why: str) -> DataError:
    """D102 for a line of a table."""
    return DataError(
        "D102",
        "a row of the table cannot be read",
        where=f"{path}:{line}",
        why=why,
        fix=line_fix(path, line),
    )

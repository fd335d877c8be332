"""The rows of a benchmark from a folder or the hub, and which of them are asked."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vistill.data.images import BytesImage, FileImage, file_digest, pixel_digest
from vistill.data.keys import keyed_seed
from vistill.data.rows import RowReader, with_hashes
from vistill.data.settings import Columns, DataSettings
from vistill.data.sources import read_source
from vistill.errors import DataError, MissingExtraError
from vistill.evaluation.benchmarks.benchmark import Benchmark, BenchmarkRow
from vistill.evaluation.benchmarks.protocols import Protocol
from vistill.evaluation.benchmarks.stored_rows import check_row, decoded_cells
from vistill.types import Prompt

SUFFIXES = (".jsonl", ".parquet", ".json", ".csv", ".tsv", ".jsonl.gz")
OURS = "ours"


@dataclass(frozen=True)
class BenchmarkRows:
    """The rows of a benchmark that are asked, and what is not."""

    benchmark: Benchmark
    rows: list[BenchmarkRow]
    source: str
    root: Path
    """The folder of the pictures."""
    available: int
    """Rows of the source that can be read."""
    subset: str = ""
    """`ours` if these rows are not the benchmark's whole, nor rows that a paper names."""
    failed: list[dict[str, str]] = field(default_factory=list)
    """Rows that cannot be read, with code and reason: they count in no score."""


def find_source(benchmark: Benchmark, data: Path | None) -> list[str]:
    """The sources of a benchmark: a file of the folder, or the data set of the hub.

    Args:
        benchmark: whose rows.
        data: a folder that holds `NAME/data.jsonl` or `NAME.jsonl` (Parquet, JSON, CSV and TSV
            too); None reads the hub or its local cache.

    Raises:
        DataError: D102, the folder does not hold the benchmark, or the hub has no copy.
    """
    name = benchmark.name
    if data is None:
        if benchmark.hub_sources:
            return benchmark.hub_sources
        raise absent_error(benchmark, "the hub has no copy of it")
    stems = [data / name / "data", data / name]
    files = [Path(f"{stem}{suffix}") for stem in stems for suffix in SUFFIXES]
    present = [file for file in files if file.is_file()]
    if not present:
        raise absent_error(benchmark, f"looked for {data / name / 'data.jsonl'} and the like")
    return [str(present[0])]


def absent_error(benchmark: Benchmark, why: str) -> DataError:
    """D102 for a benchmark that is not here."""
    return DataError(
        "D102",
        f"the benchmark {benchmark.name} is not here",
        why=f"{why}; docs/benchmarks.md says where its rows come from",
        fix=f"--data FOLDER   that holds {benchmark.name}/data.jsonl",
    )


def read_benchmark(
    benchmark: Benchmark, data: Path | None, protocol: str, limit: int | None
) -> BenchmarkRows:
    """The rows that are asked under a protocol.

    Raises:
        DataError: D101, the source lacks a column; D102, it is absent, empty or has an id twice.
    """
    sources = find_source(benchmark, data)
    rows: list[BenchmarkRow] = []
    failed: list[dict[str, str]] = []
    for source in sources:
        for line, raw in read_source(source):
            where = f"{source}:{line}"
            if isinstance(raw, DataError):
                failed.append(failure(where, raw))
                continue
            row = read_row(benchmark, raw, where, failed)
            if row is not None:
                rows.append(row if row.id else replace(row, id=f"{benchmark.name}_{line - 1:05d}"))
    available = len(rows)
    rows = [row for row in rows if benchmark.is_asked(row)]
    check_rows(benchmark, rows, sources[0])
    bounds = (limit, benchmark.paper_rows.get(protocol))
    wanted = min((bound for bound in bounds if bound is not None), default=len(rows))
    chosen = choose_groups(rows, wanted)
    is_whole = sum(map(benchmark.is_counted, chosen)) >= benchmark.rows
    root = Path(sources[0]).parent if data is not None else Path()
    subset = "" if is_whole else OURS
    return BenchmarkRows(benchmark, chosen, sources[0], root, available, subset, failed)


def read_row(
    benchmark: Benchmark, raw: Mapping[str, Any], where: str, failed: list[dict[str, str]]
) -> BenchmarkRow | None:
    """A row, or None after it was counted among the failed ones (D101 for a missing column)."""
    try:
        values = decoded_cells(raw)
        row = benchmark.read_row(values)
        check_row(benchmark, row)
        return row
    except KeyError as error:
        raise DataError(
            "D101",
            f"column {error} not in the rows of {benchmark.name}",
            where=where,
            why=f"columns found: {', '.join(map(str, raw))}",
            fix="write the rows in the columns that docs/benchmarks.md names, or in our form: id, "
            "images, question, answer, choices, group, extra",
        ) from error
    except (DataError, AttributeError, IndexError, TypeError, ValueError) as error:
        failed.append(failure(where, error))
        return None


def failure(where: str, error: Exception) -> dict[str, str]:
    """A row that cannot be read, as plain values."""
    code = error.code if isinstance(error, DataError) else "D104"
    what = error.what if isinstance(error, DataError) else str(error)
    return {"row": where, "code": code, "what": what[:300]}


def check_rows(benchmark: Benchmark, rows: Sequence[BenchmarkRow], source: str) -> None:
    """D102 for a source without rows, and for an id that occurs twice."""
    if not rows:
        raise DataError(
            "D102",
            f"there is no row of {benchmark.name} that can be read",
            where=source,
            why="a score on nothing would look like a result",
            fix="correct the file, or leave the benchmark out",
        )
    name, count = Counter(row.id for row in rows).most_common(1)[0]
    if count > 1:
        raise DataError(
            "D102",
            f"{count} rows of {benchmark.name} have the id {name!r:.60}",
            where=source,
            why="the id keys noise and verdict of a row",
            fix="give each row its own id",
        )


def choose_groups(rows: Sequence[BenchmarkRow], limit: int) -> list[BenchmarkRow]:
    """Whole groups with at most `limit` rows together, at least one group; in order of the file.

    Groups are drawn by a key, so a smaller limit takes a part of what a larger one takes.
    """
    if limit >= len(rows):
        return list(rows)
    sizes = Counter(row.cluster for row in rows)
    order = sorted(sizes, key=lambda name: (keyed_seed("benchmark rows", name), name))
    chosen: set[str] = set()
    total = 0
    for name in order:
        if chosen and total + sizes[name] > limit:
            break
        chosen.add(name)
        total += sizes[name]
    return [row for row in rows if row.cluster in chosen]


def make_prompts(
    part: BenchmarkRows, protocol: Protocol, settings: DataSettings
) -> tuple[list[tuple[BenchmarkRow, Prompt]], list[dict[str, str]]]:
    """Rows with their prompts, and the rows whose prompt cannot be made.

    Args:
        part: the rows.
        protocol: words and system message.
        settings: limits of pictures (`max_image_tokens`, `min_pixels`, `max_pixels`).
    """
    reader = row_reader(part, protocol, settings)
    pairs: list[tuple[BenchmarkRow, Prompt]] = []
    failed: list[dict[str, str]] = []
    for line, row in enumerate(part.rows, 1):
        text = part.benchmark.prompt(row, protocol.name)
        try:
            pairs.append((row, with_hashes(bare_prompt(reader, row, text, line))))
        except DataError as error:
            failed.append(failure(row.id, error))
    return pairs, failed


def row_reader(part: BenchmarkRows, protocol: Protocol, settings: DataSettings) -> RowReader:
    """What makes prompts of the rows of a benchmark."""
    columns = Columns(prompt="question", images="images", answer="", id="id")
    own = replace(
        settings, columns=columns, template="{prompt}", system=protocol.system, text_only="plain"
    )
    return RowReader(own, part.source, part.root, part.root)


def bare_prompt(reader: RowReader, row: BenchmarkRow, text: str, line: int) -> Prompt:
    """The prompt of a row in some words; its pictures are not opened."""
    raw = {"question": text, "images": list(row.images), "id": row.id}
    return reader.undecoded_prompt(raw, line)


def picture_digests(prompt: Prompt) -> list[str]:
    """The hash of each picture of a prompt, in order."""
    digests: list[str] = []
    for image in prompt.images:
        if isinstance(image, FileImage):
            digests.append(image.digest or file_digest(image.data()))
        elif isinstance(image, BytesImage):
            digests.append(file_digest(image.data()))
        else:
            digests.append(pixel_digest(image.load()))
    return digests


def find_present(
    benchmarks: Sequence[Benchmark], data: Path | None, protocol: str, limit: int | None
) -> tuple[list[BenchmarkRows], dict[str, str]]:
    """The benchmarks of a suite that are here, and by name why the others are not.

    A folder that holds a damaged file is an error; a data set that the hub does not give is not
    here.
    """
    present: list[BenchmarkRows] = []
    missing: dict[str, str] = {}
    for benchmark in benchmarks:
        try:
            find_source(benchmark, data)
        except DataError as error:
            missing[benchmark.name] = error.what
            continue
        try:
            present.append(read_benchmark(benchmark, data, protocol, limit))
        except (DataError, MissingExtraError) as error:
            if data is not None or error.code not in ("D102", "E301"):
                raise
            missing[benchmark.name] = error.what
    return present, missing

"""Load prompts from wherever the recipe says; every bad row is found before step 1 and set aside with its reason."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vistill.data.diagrams import Diagram, diagrams
from vistill.data.keys import epoch_order
from vistill.data.rows import RowReader
from vistill.data.settings import DataSettings
from vistill.errors import DataError, MissingExtraError
from vistill.types import Prompt

HUB = re.compile(r"^hf:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:\[(?P<split>[^\]]+)\])?$")


@dataclass(frozen=True)
class Quarantined:
    """A row that is not used, and why."""

    where: str
    code: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        """One line of `quarantine.jsonl`."""
        return {"where": self.where, "code": self.code, "reason": self.reason}


@dataclass(frozen=True)
class LoadedData:
    """Good rows, bad rows, and the procedural items where there are any."""

    prompts: list[Prompt]
    quarantined: list[Quarantined]
    diagrams: list[Diagram]
    dropped_text_only: int = 0


def load_both(settings: DataSettings) -> tuple[LoadedData, LoadedData]:
    """Training and evaluation rows. Evaluation rows come from their own source, or are held out, or there are none."""
    train = load_source(settings.train, settings, "train", settings.limit)
    if settings.eval or settings.train == "diagrams":
        return train, load_source(settings.eval or "diagrams", settings, "test", None)
    return hold_out(train, settings.holdout)


def load_source(source: str, settings: DataSettings, split: Literal["train", "test"], limit: int | None) -> LoadedData:
    """Diagrams, a file, or a hub data set."""
    if source == "diagrams":
        count = settings.diagrams.train if split == "train" else settings.diagrams.eval
        return procedural(settings, split, count)
    return load_rows(source, settings, limit)


def hold_out(data: LoadedData, count: int) -> tuple[LoadedData, LoadedData]:
    """Set rows aside by a permutation that depends on nothing but their number."""
    if count >= len(data.prompts):
        raise DataError(
            "D102",
            f"data.holdout={count}, but there are {len(data.prompts)} rows",
            fix="data.holdout=0, or a smaller number",
        )
    aside = {int(i) for i in epoch_order(0, 0, len(data.prompts))[:count]}
    kept = [p for i, p in enumerate(data.prompts) if i not in aside]
    held = [p for i, p in enumerate(data.prompts) if i in aside]
    return replace(data, prompts=kept), LoadedData(held, [], [])


def procedural(settings: DataSettings, split: Literal["train", "test"], count: int) -> LoadedData:
    """Diagrams as a data set."""
    items = diagrams(split, count, settings.diagrams.seed, settings.diagrams.options)
    prompts = [item.prompt(f"{split}-{settings.diagrams.seed}-{i}") for i, item in enumerate(items)]
    return LoadedData(prompts, [], items)


def load_rows(source: str, settings: DataSettings, limit: int | None) -> LoadedData:
    """Rows of a file or a hub data set, all pictures decoded once."""
    folder = Path(source).parent if not source.startswith("hf:") else Path()
    reader = RowReader(settings, source, Path(settings.images) if settings.images else folder)
    good: list[Prompt] = []
    bad: list[Quarantined] = []
    without = 0
    total = 0
    for line, row in rows_of(source):
        if limit is not None and len(good) >= limit:
            break
        total += 1
        prompt = read_row(reader, row, line, bad, settings)
        if prompt is None:
            continue
        if not prompt.images and settings.text_only != "plain":
            without += 1
            if settings.text_only == "error":
                raise no_image(prompt, source)
            continue
        good.append(prompt)
    if total == 0:
        raise DataError(
            "D102", "the data set is empty", where=source, fix="data.train=FILE.jsonl with at least one row"
        )
    check_bad_share(bad, total, settings, source)
    check_unique(good, source)
    return LoadedData(good, bad, [], without)


def read_row(
    reader: RowReader, row: dict[str, Any], line: int, bad: list[Quarantined], settings: DataSettings
) -> Prompt | None:
    """One row, or None with a quarantine entry. A wrong column name is never a bad row: it stops the run."""
    try:
        prompt = reader.prompt(row, line)
        for image in (*prompt.images, *prompt.thoughts):
            image.load()
    except DataError as error:
        if error.code == "D101" or settings.on_bad_row == "stop":
            raise
        bad.append(Quarantined(error.where or f"{reader.source}:{line}", error.code, f"{error.what}; {error.why}"))
        return None
    return prompt


def rows_of(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) pairs of a source."""
    if source.startswith("hf:"):
        yield from hub_rows(source)
    elif source.endswith(".parquet"):
        yield from dataset_rows("parquet", data_files=source, split="train")
    else:
        yield from json_lines(Path(source))


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSON Lines file (D102)."""
    if not path.is_file():
        raise DataError(
            "D102",
            f'data file "{path}" does not exist',
            why="looked for a .jsonl file, a .parquet file, `hf:owner/name[split]` or `diagrams`",
            fix="data.train=FILE.jsonl",
        )
    with path.open(encoding="utf-8") as handle:
        for line, text in enumerate(handle, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                raise DataError("D102", "a line is not JSON", where=f"{path}:{line}", why=str(error)) from error
            if not isinstance(row, dict):
                raise DataError("D102", "a line is not a JSON object", where=f"{path}:{line}")
            yield line, row


def hub_rows(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a data set on the hub, or in its local cache."""
    match = HUB.match(source)
    if match is None:
        raise DataError(
            "D102", f'"{source}" is not of the form hf:owner/name[split]', fix="hf:hiyouga/geometry3k[train]"
        )
    yield from dataset_rows(match["name"], split=match["split"] or "train")


def dataset_rows(name: str, **how: str) -> Iterator[tuple[int, dict[str, Any]]]:
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


def no_image(prompt: Prompt, source: str) -> DataError:
    """D204."""
    return DataError(
        "D204",
        f"a row of {source} has no image",
        where=prompt.labels.get("row", prompt.id),
        why="visual advantage is undefined without a picture; such rows count as plain distillation",
        fix="data.text_only=drop   or   data.text_only=plain",
    )


def check_bad_share(bad: Sequence[Quarantined], total: int, settings: DataSettings, source: str) -> None:
    """Stop where too many rows are bad."""
    if len(bad) > settings.max_bad_share * total:
        first = bad[0]
        error = DataError(
            first.code,
            f"{len(bad)} of {total} rows cannot be used (limit {settings.max_bad_share:.1%})",
            where=first.where,
            why=f"first: {first.reason}",
            fix=f"mend the rows, or allow them: data.max_bad_share={len(bad) / total + 0.005:.2f}",
            note="every bad row is in quarantine.jsonl of the run folder",
        )
        error.bad_rows = [row.to_dict() for row in bad]
        raise error


def check_unique(prompts: Sequence[Prompt], source: str) -> None:
    """Prompt ids key the sampling noise, so they must differ."""
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise DataError("D102", f'two rows have the id "{prompt.id}"', where=source, fix="data.columns.id= (empty)")
        seen.add(prompt.id)

"""Load prompts from wherever the recipe says; every bad row is found before step 1 and set aside with its reason."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vistill.data.diagrams import Diagram, diagrams
from vistill.data.keys import keyed_seed
from vistill.data.rows import RowReader
from vistill.data.settings import DataSettings
from vistill.data.sources import check_columns, read_source
from vistill.data.stored_prompts import PREFIX, read_prompts
from vistill.errors import ConfigError, DataError
from vistill.types import Prompt

#: Rows that may all be bad before nothing more is read: then it is no odd row.
FIRST_ROWS = 20


@dataclass(frozen=True)
class QuarantinedRow:
    """A row that is not used, and why."""

    where: str
    code: str
    reason: str
    fix: str = ""

    def to_dict(self) -> dict[str, str]:
        """One line of `quarantine.jsonl`."""
        return {"where": self.where, "code": self.code, "reason": self.reason}


@dataclass(frozen=True)
class LoadedData:
    """Good rows, bad rows, and the procedural items where there are any."""

    prompts: list[Prompt]
    quarantined: list[QuarantinedRow]
    diagrams: list[Diagram]
    dropped_text_only: int = 0


def load_train_and_eval(settings: DataSettings) -> tuple[LoadedData, LoadedData]:
    """Training and evaluation rows. Evaluation rows come from their own source, or are held out, or there are none."""
    train = load_source(settings.train, settings, "train", settings.limit)
    if settings.eval or settings.train == "diagrams":
        return train, load_source(settings.eval or "diagrams", settings, "test", None)
    return hold_out(train, settings.holdout)


def load_source(
    source: str, settings: DataSettings, split: Literal["train", "test"], limit: int | None
) -> LoadedData:
    """Diagrams, prompts of an earlier run, a file, or a hub data set."""
    if source == "diagrams":
        count = settings.diagrams.train if split == "train" else settings.diagrams.eval
        return load_diagrams(settings, split, count)
    if source.startswith(PREFIX):
        return LoadedData(read_prompts(source), [], [])
    return load_rows(source, settings, limit)


def hold_out(data: LoadedData, count: int) -> tuple[LoadedData, LoadedData]:
    """Set rows aside, equal questions always together, in the order of a key of their own.

    A row more or less moves few others, whatever its place. Where groups of equal questions do not add up to `count`,
    the nearest number that they add up to is taken, the smaller of two; one row at least, and never all.

    Raises:
        DataError: D102 where there are no more rows than that, D308 where all rows ask the same.
    """
    if count and count >= len(data.prompts):
        raise DataError(
            "D102",
            f"data.holdout={count}, but there are {len(data.prompts)} rows",
            fix=f"data.holdout={max(0, len(data.prompts) // 5)}",
        )
    groups: dict[str, list[Prompt]] = {}
    for prompt in sorted(data.prompts, key=lambda p: (keyed_seed("holdout", p.asked), p.id)):
        groups.setdefault(prompt.asked, []).append(prompt)
    if count and len(groups) == 1:
        raise DataError(
            "D308",
            f"data.holdout={count}, but all {len(data.prompts)} rows ask the same",
            why="equal questions stay together, so none can be held out while others are learnt from",
            fix="data.eval=FILE with other rows   or   data.holdout=0",
        )
    chosen = choose_groups([len(group) for group in groups.values()], count)
    aside = {p.id for index, group in enumerate(groups.values()) if index in chosen for p in group}
    kept = [p for p in data.prompts if p.id not in aside]
    held = [p for p in data.prompts if p.id in aside]
    return replace(data, prompts=kept), LoadedData(held, [], [])


def choose_groups(sizes: Sequence[int], count: int) -> set[int]:
    """Indices of groups that hold `count` rows, or the nearest number from 1 that they can hold without being all."""
    chosen, left = set[int](), count
    for index, size in enumerate(sizes):
        if size <= left:
            chosen.add(index)
            left -= size
    return chosen if left == 0 else choose_groups_of_nearest_sum(sizes, count)


def choose_groups_of_nearest_sum(sizes: Sequence[int], count: int) -> set[int]:
    """The same where taking whatever fits, in order, does not add up: over all sums there are, as bits of a number."""
    most = min(count + max(sizes), sum(sizes) - 1)
    limit = (1 << (most + 1)) - 1
    reachable, bundles = 1, []  # bit n: some groups hold n rows
    for size, number in sorted(Counter(sizes).items()):
        taken = 1
        while number > 0:  # so many groups of one size as bundles of 1, 2, 4, ... and the rest
            taken = min(taken, number)
            bundles.append((reachable, size, taken))
            reachable |= reachable << (size * taken) & limit
            number, taken = number - taken, 2 * taken
    sums = [n for n in range(1, most + 1) if reachable >> n & 1]
    goal = min(sums, key=lambda n: (abs(n - count), n))
    wanted: Counter[int] = Counter()
    for before, size, taken in reversed(bundles):
        if not before >> goal & 1:
            wanted[size] += taken
            goal -= size * taken
    chosen = set[int]()
    for index, size in enumerate(sizes):
        if wanted[size] > 0:
            chosen.add(index)
            wanted[size] -= 1
    return chosen


def load_diagrams(
    settings: DataSettings, split: Literal["train", "test"], count: int
) -> LoadedData:
    """Diagrams as a data set."""
    items = diagrams(split, count, settings.diagrams.seed, settings.diagrams.options)
    prompts = [item.prompt(f"{split}-{settings.diagrams.seed}-{i}") for i, item in enumerate(items)]
    return LoadedData(prompts, [], items)


def load_rows(source: str, settings: DataSettings, limit: int | None) -> LoadedData:
    """Rows of a file or a hub data set, all pictures decoded once."""
    folder = Path(source).parent if not source.startswith("hf:") else Path()
    reader = RowReader(settings, source, Path(settings.images) if settings.images else folder)
    check_columns(source, settings)
    good: list[Prompt] = []
    bad: list[QuarantinedRow] = []
    seen: Counter[str] = Counter()
    without = 0
    total = 0
    for line, row in read_source(source):
        if limit is not None and len(good) >= limit:
            break
        total += 1
        prompt = read_row(reader, row, line, bad)
        if prompt is None:
            check_first_rows(bad, total, settings, source)
            continue
        if not prompt.images and settings.text_only != "plain":
            without += 1
            if settings.text_only == "error":
                raise no_image_error(prompt, source)
            continue
        good.append(with_unique_id(prompt, seen, settings, source))
    if total == 0:
        raise DataError(
            "D102",
            "the data set is empty",
            where=source,
            fix="data.train=FILE.jsonl with at least one row",
        )
    check_bad_share(bad, total, settings, source)
    if not good:
        raise DataError(
            "D102",
            f"no row of {source} is left",
            why=f"{len(bad):,} cannot be used, {without:,} have no picture",
            fix="data.columns.images=COLUMN   or, where the data has none,   data.text_only=plain",
        )
    return LoadedData(good, bad, [], without)


def read_row(
    reader: RowReader, row: dict[str, Any] | DataError, line: int, bad: list[QuarantinedRow]
) -> Prompt | None:
    """One row with its pictures decoded once, or None with a quarantine entry."""
    try:
        if isinstance(row, DataError):
            raise row
        return reader.prompt(row, line)
    except DataError as error:
        if reader.settings.on_bad_row == "stop":
            raise
        place = error.where or f"{reader.source}:{line}"
        bad.append(QuarantinedRow(place, error.code, f"{error.what}; {error.why}", error.fix))
        return None


def with_unique_id(
    prompt: Prompt, seen: Counter[str], settings: DataSettings, source: str
) -> Prompt:
    """An id of its own for every row: equal rows are counted, equal ids of a named column are an error (D102)."""
    seen[prompt.id] += 1
    number = seen[prompt.id]
    if number == 1:
        return prompt
    if settings.columns.id:
        raise DataError(
            "D102",
            f'two rows have the id "{prompt.id}"',
            where=source,
            why="ids key the sampling noise, so they must differ",
            fix="data.columns.id= (empty: ids by content)",
        )
    return replace(prompt, id=f"{prompt.id}-{number}")


def no_image_error(prompt: Prompt, source: str) -> DataError:
    """D204."""
    return DataError(
        "D204",
        f"a row of {source} has no image",
        where=prompt.labels.get("row", prompt.id),
        why="visual advantage is undefined without a picture; such rows count as plain distillation",
        fix="data.text_only=drop   or   data.text_only=plain",
    )


def check_first_rows(
    bad: Sequence[QuarantinedRow], total: int, settings: DataSettings, source: str
) -> None:
    """Stop at once where all of the first rows are bad, whatever share is allowed."""
    if total == len(bad) == FIRST_ROWS:
        raise bad_rows_error(
            bad, f"the first {total} rows cannot be used, not one", bad[0].fix, source
        )


def check_bad_share(
    bad: Sequence[QuarantinedRow], total: int, settings: DataSettings, source: str
) -> None:
    """Stop where too many rows are bad."""
    if len(bad) > settings.max_bad_share * total:
        what = f"{len(bad)} of {total} rows cannot be used (limit {settings.max_bad_share:.1%})"
        allowed = min(1.0, len(bad) / total + 0.005)
        allow = f"mend the rows, or allow them: data.max_bad_share={allowed:.2f}"
        raise bad_rows_error(bad, what, allow if len(bad) < total else bad[0].fix, source)


def bad_rows_error(bad: Sequence[QuarantinedRow], what: str, fix: str, source: str) -> DataError:
    """The first bad row's code, every bad row attached."""
    first = bad[0]
    error = DataError(
        first.code,
        what,
        where=first.where,
        why=f"first: {first.reason}",
        fix=fix,
        note=f"every bad row of {source} is written into quarantine.jsonl by `vistill train`",
    )
    error.bad_rows = [row.to_dict() for row in bad]
    return error


def check_overlap(train: LoadedData, held: LoadedData, settings: DataSettings) -> None:
    """D308 where an evaluation row asks what a training row asks: the same words about the same pictures."""
    seen = {p.asked: p for p in train.prompts}
    both = [p for p in held.prompts if p.asked in seen]
    if both and settings.overlap == "stop":
        raise DataError(
            "D308",
            f"{len(both)} of {len(held.prompts)} evaluation rows ask what a training row asks",
            where=both[0].labels.get("row", both[0].id),
            why=f"the same question about the same pictures: {seen[both[0].asked].labels.get('row', both[0].asked)};"
            "\naccuracy on them would be memory",
            fix="data.eval=FILE with other rows   or, knowing it,   data.overlap=allow",
        )


def check_rows_per_step(per_step: int, rows: int) -> None:
    """C101 where a prompt would occur twice in one step."""
    if per_step > rows:
        raise ConfigError(
            "C101",
            f"train.prompts_per_step = {per_step}, but only {rows} rows",
            why="a prompt would occur twice in one step, with the same noise and so the same responses",
            fix=f"train.prompts_per_step={rows}",
        )

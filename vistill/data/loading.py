"""Load prompts from the source that the recipe names, and quarantine bad rows before step 1."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vistill.data.decoding import NO_LIMITS, PixelLimits, normalise
from vistill.data.diagrams import Diagram, diagrams
from vistill.data.gold import read_options
from vistill.data.keys import keyed_seed
from vistill.data.known_pictures import KnownPictures
from vistill.data.layouts import Layout, detect_layout
from vistill.data.missing_images import no_image_error
from vistill.data.option_indices import IndexCounts, numbers_are_values
from vistill.data.rows import RowReader, check_texts, column_value
from vistill.data.set_settings import in_set
from vistill.data.settings import DataSettings
from vistill.data.sources import check_columns, count_rows, read_source
from vistill.data.stored_prompts import PREFIX, read_prompts
from vistill.errors import ConfigError, DataError
from vistill.phases import count_items
from vistill.types import DrawnImage, ImageRef, Prompt

#: If this many first rows are all bad, loading stops: the source is wrong, not single rows.
FIRST_ROWS = 20


@dataclass(frozen=True)
class QuarantinedRow:
    """A row that cannot be used, and the reason."""

    where: str
    code: str
    reason: str
    fix: str = ""
    note: str = ""
    """What the fix does besides, for the user."""

    def to_dict(self) -> dict[str, str]:
        """One line of `quarantine.jsonl`."""
        return {"where": self.where, "code": self.code, "reason": self.reason}


@dataclass(frozen=True)
class LoadedData:
    """Good rows, quarantined rows, and the items of procedural diagrams."""

    prompts: list[Prompt]
    quarantined: list[QuarantinedRow]
    diagrams: list[Diagram]
    dropped_text_only: int = 0
    notes: tuple[str, ...] = ()
    """What was detected and how it is read, for the user: a line each."""


def load_train_and_eval(settings: DataSettings) -> tuple[LoadedData, LoadedData]:
    """Load training and evaluation rows.

    Evaluation rows come from `data.eval`, are held out of the training rows, or are absent.
    """
    train = load_source(settings.train, settings, "train", settings.limit)
    if settings.eval or settings.train == "diagrams":
        try:
            return train, load_source(settings.eval or "diagrams", settings, "test", None)
        except DataError as error:
            error.fix = error.fix.replace("data.train=", "data.eval=")
            raise
    return hold_out(train, settings.holdout)


def load_source(
    source: str, settings: DataSettings, split: Literal["train", "test"], limit: int | None
) -> LoadedData:
    """Load diagrams, stored prompts of a run, a file, or a hub data set."""
    if source == "diagrams":
        count = settings.diagrams.train if split == "train" else settings.diagrams.eval
        return load_diagrams(settings, split, count)
    if source.startswith(PREFIX):
        return LoadedData(read_prompts(source), [], [])
    return load_rows(source, settings, limit)


def hold_out(data: LoadedData, count: int) -> tuple[LoadedData, LoadedData]:
    """Hold out `count` rows for evaluation, in the order of a key; equal questions stay together.

    Adding or removing a row changes few other picks. If groups of equal questions do not add up to
    `count`, take the nearest sum, the smaller of two; at least one row, never all.

    Raises:
        DataError: D102 if there are not more than `count` rows, D308 if all rows ask the same.
    """
    if count and count >= len(data.prompts):
        raise DataError(
            "D102",
            f"data.holdout={count}, but there are {len(data.prompts)} rows",
            fix=f"data.holdout={max(0, len(data.prompts) // 5)}",
        )
    groups: dict[str, list[Prompt]] = {}
    for prompt in sorted(data.prompts, key=lambda p: (keyed_seed("holdout", p.question_key), p.id)):
        groups.setdefault(prompt.question_key, []).append(prompt)
    if count and len(groups) == 1:
        raise DataError(
            "D308",
            f"data.holdout={count}, but all {len(data.prompts)} rows ask the same",
            why="equal questions stay together, so holding out one holds out all",
            fix="data.eval=FILE   with other rows   or   data.holdout=0",
        )
    chosen = choose_groups([len(group) for group in groups.values()], count)
    picked = {p.id for i, group in enumerate(groups.values()) if i in chosen for p in group}
    train = [p for p in data.prompts if p.id not in picked]
    held_out = [p for p in data.prompts if p.id in picked]
    return replace(data, prompts=train), LoadedData(held_out, [], [])


def choose_groups(sizes: Sequence[int], count: int) -> set[int]:
    """Choose groups that hold `count` rows in total, or the nearest number; never all groups.

    Takes groups greedily first, which settles most cases in one pass.
    """
    chosen, left = set[int](), count
    for index, size in enumerate(sizes):
        if size <= left:
            chosen.add(index)
            left -= size
    return chosen if left == 0 else choose_groups_of_nearest_sum(sizes, count)


def choose_groups_of_nearest_sum(sizes: Sequence[int], count: int) -> set[int]:
    """Choose groups whose sizes sum to the number nearest to `count`: a subset sum on bits."""
    most = min(count + max(sizes), sum(sizes) - 1)
    limit = (1 << (most + 1)) - 1
    reachable, bundles = 1, []  # bit n is set if some groups hold n rows
    for size, number in sorted(Counter(sizes).items()):
        taken = 1
        while number > 0:  # groups of one size as bundles of 1, 2, 4, ... and the rest
            taken = min(taken, number)
            bundles.append((reachable, size, taken))
            reachable |= reachable << (size * taken) & limit
            number, taken = number - taken, 2 * taken
    sums = [n for n in range(1, most + 1) if reachable >> n & 1]
    goal = min(sums, key=lambda n: (abs(n - count), n))
    to_take: Counter[int] = Counter()
    for before, size, taken in reversed(bundles):
        if not before >> goal & 1:
            to_take[size] += taken
            goal -= size * taken
    chosen = set[int]()
    for index, size in enumerate(sizes):
        if to_take[size] > 0:
            chosen.add(index)
            to_take[size] -= 1
    return chosen


def load_diagrams(
    settings: DataSettings, split: Literal["train", "test"], count: int
) -> LoadedData:
    """Load diagrams as a data set."""
    items = diagrams(split, count, settings.diagrams.seed, settings.diagrams.options)
    prompts = [item.prompt(f"{split}-{settings.diagrams.seed}-{i}") for i, item in enumerate(items)]
    limits = PixelLimits(settings.min_pixels, settings.max_pixels)
    if limits != NO_LIMITS:
        prompts = [with_limits(prompt, limits) for prompt in prompts]
    return LoadedData(prompts, [], items)


def with_limits(prompt: Prompt, limits: PixelLimits) -> Prompt:
    """A diagram whose pictures are drawn and then brought within the pixel limits."""

    def limited(image: ImageRef) -> ImageRef:
        return DrawnImage(lambda: normalise(image.load(), image.name, limits), image.name)

    width, height = prompt.images[0].load().size
    x, y = (new / old for new, old in zip(limits.size(width, height), (width, height), strict=True))
    boxes = tuple((x * b[0], y * b[1], x * b[2], y * b[3]) for b in prompt.boxes)
    thoughts = tuple(map(limited, prompt.thoughts))
    images = list(map(limited, prompt.images))
    return replace(prompt, boxes=boxes, thoughts=thoughts).with_images(images)


def load_rows(source: str, settings: DataSettings, limit: int | None) -> LoadedData:
    """Load rows of a file or a hub data set; decode every image that no start has decoded."""
    check_recipe_texts(settings)
    reader = make_reader(source, settings)
    try:
        return read_all_rows(reader, source, settings, limit)
    finally:
        reader.pictures.cache.save()


def read_all_rows(
    reader: RowReader, source: str, settings: DataSettings, limit: int | None
) -> LoadedData:
    """The good rows and the bad ones (D102 if there is no row, or none can be used)."""
    good: list[Prompt] = []
    bad: list[QuarantinedRow] = []
    seen: Counter[str] = Counter()
    num_text_only = 0
    total = 0
    for line, row in count_items("checking rows", read_source(source), count_rows(source, limit)):
        if limit is not None and len(good) >= limit:
            break
        total += 1
        prompt = read_row(reader, row, line, bad)
        if prompt is None:
            if total == len(bad) == FIRST_ROWS:
                reader.indices.check(settings.index_base)
            check_first_rows(bad, total, settings, source)
            continue
        if not prompt.images and settings.text_only != "plain":
            num_text_only += 1
            if settings.text_only == "error":
                raise no_image_error(prompt, reader)
            continue
        good.append(with_unique_id(prompt, seen, settings, source))
    if total == 0:
        raise DataError(
            "D102",
            "the data set is empty",
            where=source,
            fix="data.train=FILE.jsonl   with at least one row",
        )
    reader.indices.check(settings.index_base)
    check_bad_share(bad, total, settings, source)
    if not good and bad and not num_text_only:
        raise bad_rows_error(bad, f"none of the {total} rows can be used", bad[0].fix, source)
    if not good:
        raise DataError(
            "D102",
            f"no usable row in {source}",
            why=f"{len(bad):,} cannot be used, {num_text_only:,} have no image",
            fix="data.columns.images=COLUMN   or, for data without images,   data.text_only=plain",
        )
    return LoadedData(good, bad, [], num_text_only, notes_of(reader))


def make_reader(source: str, settings: DataSettings) -> RowReader:
    """The reader of a source: its format by the first rows, its columns checked."""
    folder = Path(source).parent if not source.startswith("hf:") else Path()
    first = itertools.islice(read_source(source), FIRST_ROWS)
    rows = [row for _, row in first if isinstance(row, Mapping)]
    layout = detect_layout(rows, settings, source)
    check_columns(source, settings, layout)
    root = Path(settings.images) if settings.images else folder
    are_values = golds_are_values(rows, layout, settings.index_base)
    known = KnownPictures(source)
    return RowReader(settings, source, root, folder, layout, are_values, pictures=known)


def golds_are_values(rows: Sequence[Mapping[str, Any]], layout: Layout, base: int) -> bool:
    """Whether whole numbers among the first gold answers are values, not indices of options."""
    pairs = [gold_and_options(row, layout) for row in rows]
    known = [pair for pair in pairs if pair is not None]
    return numbers_are_values([gold for gold, _ in known], [own for _, own in known], base)


def gold_and_options(row: Mapping[str, Any], layout: Layout) -> tuple[Any, tuple[str, ...]] | None:
    """The gold answer of a row as it stands, and its options; None if these cannot be read."""
    plain = layout.with_groups(row)
    try:
        options = read_options(column_value(plain, layout.columns.choices), "")
    except DataError:
        return None  # reported with its row
    return column_value(plain, layout.columns.answer), options


def check_whole_source(reader: RowReader) -> None:
    """D104 if the gold answers of all rows count the options from another base than the recipe."""
    layout, counts = reader.layout, IndexCounts()
    if layout is None:
        return
    for line, row in read_source(reader.source):
        pair = gold_and_options(row, layout) if isinstance(row, Mapping) else None
        if pair is not None:
            counts.add(*pair, f"{reader.source}:{line}")
    counts.check(reader.settings.index_base)


def check_recipe_texts(settings: DataSettings) -> None:
    """D103 for a special token in a text of the recipe, D104 for half a character."""
    for name in ("system", "template", "response_template"):
        check_texts({f"setting data.{name}": (getattr(settings, name),)}, "the recipe")


def notes_of(reader: RowReader) -> tuple[str, ...]:
    """What was detected in a source, and how many rows a convention changed."""
    counted = [f"{count:,} {kind}" for kind, count in sorted(reader.counts.items())]
    counted += filter(None, [reader.indices.note(reader.settings.index_base)])
    notes = [reader.layout.note] if reader.layout is not None and reader.layout.note else []
    return tuple(f"{reader.source}: {note}" for note in [*notes, *counted])


def read_row(
    reader: RowReader, row: dict[str, Any] | DataError, line: int, bad: list[QuarantinedRow]
) -> Prompt | None:
    """Read one row and decode its images; None for a bad row, which is added to `bad`."""
    try:
        if isinstance(row, DataError):
            raise row
        return reader.prompt(row, line)
    except DataError as error:
        if reader.settings.on_bad_row == "stop":
            if reader.indices.ends or reader.indices.zeros:
                check_whole_source(reader)
            error.fix = f"{error.fix}   or skip such rows: data.on_bad_row=quarantine"
            raise
        where = error.where or f"{reader.source}:{line}"
        bad.append(
            QuarantinedRow(where, error.code, f"{error.what}; {error.why}", error.fix, error.note)
        )
        return None


def with_unique_id(
    prompt: Prompt, seen: Counter[str], settings: DataSettings, source: str
) -> Prompt:
    """Make the id unique: number equal rows; equal ids in the id column are an error (D102)."""
    seen[prompt.id] += 1
    number = seen[prompt.id]
    if number == 1:
        return prompt
    if settings.columns.id:
        raise DataError(
            "D102",
            f'two rows have the id "{prompt.id}"',
            where=source,
            why="ids key the sampling noise, so each row needs its own",
            fix="data.columns.id=   ids are made from the content then",
        )
    return replace(prompt, id=f"{prompt.id}-{number}")


def check_first_rows(
    bad: Sequence[QuarantinedRow], total: int, settings: DataSettings, source: str
) -> None:
    """Stop if all of the first rows are bad, for any `data.max_bad_share`."""
    if total == len(bad) == FIRST_ROWS:
        what = f"none of the first {total} rows can be used"
        raise bad_rows_error(bad, what, bad[0].fix, source)


def check_bad_share(
    bad: Sequence[QuarantinedRow], total: int, settings: DataSettings, source: str
) -> None:
    """Stop if the share of bad rows exceeds `data.max_bad_share`."""
    if len(bad) > settings.max_bad_share * total:
        what = f"{len(bad)} of {total} rows cannot be used (limit {settings.max_bad_share:.1%})"
        allowed = min(1.0, len(bad) / total + 0.005)
        allow = f"{bad[0].fix}   or leave such rows out: data.max_bad_share={allowed:.2f}"
        raise bad_rows_error(bad, what, allow if len(bad) < total else bad[0].fix, source)


def bad_rows_error(bad: Sequence[QuarantinedRow], what: str, fix: str, source: str) -> DataError:
    """An error with the first bad row's code; every bad row is attached."""
    first = bad[0]
    record = f"`vistill train` writes every bad row of {source} to quarantine.jsonl"
    error = DataError(
        first.code,
        what,
        where=first.where,
        why=f"first: {first.reason}",
        fix=fix,
        note="\n".join(filter(None, [first.note, record])),
    )
    error.bad_rows = [row.to_dict() for row in bad]
    return error


def check_overlap(train: LoadedData, held_out: LoadedData, settings: DataSettings) -> None:
    """D308 if an evaluation row asks the same question about the same images as a training row."""
    seen = {p.question_key: p for p in train.prompts}
    both = [p for p in held_out.prompts if p.question_key in seen]
    if both and settings.overlap == "stop":
        first = seen[both[0].question_key]
        error = DataError(
            "D308",
            f"{len(both)} of {len(held_out.prompts)} evaluation rows repeat a training question",
            where=both[0].labels.get("row", both[0].id),
            why="the same question about the same images:"
            f" {first.labels.get('row', first.question_key)};"
            "\naccuracy on such rows would measure memory",
            fix="data.eval=FILE   with other rows   or, to accept it,   data.overlap=allow",
        )
        raise in_set(error, both[0].labels.get("data_set", ""))


def check_rows_per_step(per_step: int, rows: int, holdout: int = 0) -> None:
    """C101 if a prompt would occur twice in one step."""
    if per_step > rows:
        held = f"; data.holdout = {holdout} of {rows + holdout} rows" if holdout else ""
        raise ConfigError(
            "C101",
            f"train.prompts_per_step = {per_step}, but only {rows} rows{held}",
            why="a prompt would occur twice in a step, with the same noise and the same responses",
            fix=f"train.prompts_per_step={rows}",
        )

"""What `vistill init` reads off the rows: columns, choices, answers, rows to evaluate on."""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vistill.cli.data_answers import (
    AnswerFacts,
    AskedRow,
    answer_facts,
    index_base,
    is_maze_gold,
    template_for,
)
from vistill.cli.data_gaps import SampledRow, lacking, pictures_lacking, rows_refused
from vistill.data.column_groups import option_columns, unread_options, value_at
from vistill.data.gold import gold_texts, is_missing, read_options
from vistill.data.layouts import Layout, detect_layout
from vistill.data.settings import Columns, DataSettings
from vistill.data.sources import (
    USUAL_COLUMNS,
    count_rows,
    is_columnar,
    read_source,
)
from vistill.errors import DataError, MissingExtraError

Row = Mapping[str, Any]

#: Rows that are looked at: the first half, and any others of a file that is read to its end.
FIRST = 200
#: Names of evaluation files next to the training file, the first one wins.
HELD = ("val", "valid", "validation", "dev", "eval", "test")
#: Rows held out where nothing says how many there are, and at most.
HOLDOUT = 200
#: Below this, the note on held-out rows says how coarse the accuracy is.
FEW = 50
PROMPTS_PER_STEP = 16
#: Columns, perhaps inside a mapping, that list every accepted answer.
ANSWER_LISTS = ("answers", "gt_answers", "accepted_answers")


@dataclass(frozen=True)
class DataFacts:
    """What a data source holds, as far as `init` needs it."""

    columns: dict[str, str]
    """Our name of a column -> its name in the data."""
    template: str = "{prompt}"
    answers: AnswerFacts = AnswerFacts()
    """The checker, and the sentence that asks for an answer."""
    eval: str = ""
    holdout: int = 0
    judged: bool = True
    """Whether there will be rows with answers to evaluate on."""
    prompts_per_step: int = PROMPTS_PER_STEP
    index_base: int = 0
    """The index of the first option, where gold answers are indices."""
    fix: str = ""
    """What must be done before `vistill check` accepts the data; empty for nothing."""
    notes: list[str] = field(default_factory=list)
    """What to tell the user, a line each."""


def default_columns() -> dict[str, str]:
    """The columns that a recipe has by default."""
    plain = Columns()
    return {"prompt": plain.prompt, "images": plain.images, "answer": plain.answer}


def facts_of(source: str) -> DataFacts:
    """Look at rows of a source; default columns and the reason where that fails."""
    if source == "diagrams":
        return DataFacts(
            default_columns(),
            notes=["diagrams: drawn by the package, with evaluation rows of their own"],
        )
    if source.startswith("hf:"):
        return unseen("a hub data set is not downloaded here")
    try:
        sample, count = sampled_rows(source)
        readable = any(isinstance(row, Mapping) for _, row in sample)
        return found_in(source, sample, count) if readable else unseen("no row can be read")
    except (DataError, MissingExtraError) as error:
        seen = unseen(f"{error.what} ({error.code}); {error.fix}")
        return replace(seen, fix=error.fix) if Path(source).exists() else seen


def sampled_rows(source: str) -> tuple[list[SampledRow], int]:
    """Rows of a source with their numbers, in order, and how many it has.

    The first ones alone of Parquet files; of other files half of them are random (with a fixed
    seed), because a file may be sorted by kind.
    """
    numbered = read_source(source)
    if is_columnar(source):
        rows = [*itertools.islice(numbered, FIRST)]
        return rows, count_rows(source) or len(rows)
    first = [*itertools.islice(numbered, FIRST // 2)]
    chosen, count, draw = list[tuple[int, SampledRow]](), len(first), random.Random(0)  # noqa: S311
    for count, row in enumerate(numbered, len(first) + 1):
        if len(chosen) < FIRST // 2:
            chosen.append((count, row))
        elif (place := draw.randrange(count - len(first))) < len(chosen):
            chosen[place] = (count, row)
    return [*first, *(row for _, row in sorted(chosen, key=lambda item: item[0]))], count


def unseen(reason: str) -> DataFacts:
    """Default columns for data that were not looked at."""
    columns = default_columns()
    guess = ", ".join(f"{key}={name}" for key, name in columns.items())
    notes = [
        f"not looked at: {reason}",
        f"default columns {guess}; correct data.columns where yours differ",
        f"evaluation  {HOLDOUT} training rows held out: set data.holdout to a tenth of the rows if "
        f"there are fewer than {10 * HOLDOUT:,}, or name a set of its own with data.eval",
        "checker  auto: by row; answers  the rows were not looked at, so data.template asks for no "
        "form of the answer",
    ]
    return DataFacts(columns, holdout=HOLDOUT, notes=notes)


def found_in(source: str, sample: Sequence[SampledRow], count: int) -> DataFacts:
    """Columns, template, checker and evaluation rows of data that were read."""
    rows = [row for _, row in sample if isinstance(row, Mapping)]
    layout = detect_layout(rows, DataSettings(train=source), source)
    columns, notes = columns_found(rows, layout)
    names = list(dict.fromkeys(name for row in rows for name in row))
    used = {part for name in columns.values() for part in (name, name.partition(".")[0])}
    used |= {part for name in columns.values() for part in name.split(",")}
    unused = [name for name in names if name not in used]
    mapped = "  ".join(f"{key}={name}" for key, name in columns.items())
    notes = [f"{count:,} rows, {len(sample):,} looked at", f"columns  {mapped}", *notes]
    notes += [layout.note] if layout.name else []
    notes += [f"not used  {', '.join(unused)}"] if unused else []
    asked = asked_rows(rows, layout, columns)
    notes += lacking(columns, names, rows, asked)
    notes += pictures_lacking(columns, rows, layout)
    template, template_notes = template_for(columns, asked)
    answers = answer_facts(source, rows, asked) if columns.get("answer") else AnswerFacts()
    notes += template_notes
    if answers.checker_note:
        notes.append(f"checker  {answers.checker}: {answers.checker_note}")
        notes.append(f"instruction  {answers.instruction_note}")
    kept = {"prompt": "question", "images": "", "answer": ""} | columns
    base, base_notes = index_base(asked)
    notes += base_notes
    settings = DataSettings(
        train=source, columns=Columns(**kept), template=template, index_base=base
    )
    refused, fix = rows_refused(sample, settings, notes)
    notes += refused
    evaluation = evaluation_for(source, count, "answer" in columns)
    notes.append(f"evaluation  {evaluation.pop('note')}")
    left = max(1, count - evaluation["holdout"])
    if left < PROMPTS_PER_STEP:
        notes.append(f"train.prompts_per_step  {left}: there are no more rows")
    per_step = min(PROMPTS_PER_STEP, left)
    return DataFacts(
        kept,
        template,
        answers,
        prompts_per_step=per_step,
        index_base=base,
        fix=fix,
        notes=notes,
        **evaluation,
    )


def columns_found(rows: Sequence[Row], layout: Layout) -> tuple[dict[str, str], list[str]]:
    """Our names of the columns that were found, and notes on columns with odd cells."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    notes = list[str]()
    columns = {key: name for key in USUAL_COLUMNS if (name := column_for(key, names, rows))}
    answer = answer_column(rows, columns.get("answer", ""))
    columns |= {"answer": answer} if answer else {}
    empty = [name for name in USUAL_COLUMNS["images"] if name in names]
    if layout.numbered:
        columns["images"] = ",".join(layout.numbered)
    elif empty:
        columns.setdefault("images", empty[0])
    lettered = () if "choices" in columns else option_columns(rows, columns.get("answer", ""))
    if lettered and not layout.name:
        columns["choices"] = ",".join(lettered)
    elif "choices" not in columns and (note := unread_options(rows)):
        notes.append(note)
    if layout.name:
        columns |= columns_of(layout)
        columns = {key: name for key, name in columns.items() if name}
    unread = [name for name in USUAL_COLUMNS["choices"] if values_of(rows, name)]
    if unread and "choices" not in columns:
        first = values_of(rows, unread[0])[0]
        notes.append(
            f"the column {unread[0]} is not used: most cells are no options (D104), such as "
            f"{first!r:.60}; the questions will show none of them"
        )
    columns = {key: columns[key] for key in USUAL_COLUMNS if key in columns}
    for key, name in columns.items():
        odd = [value for value in values_of(rows, name) if is_refused(key, value)]
        if odd:
            notes.append(
                f"{len(odd)} of {len(rows)} cells of {name} cannot be read as {key} (D104), such "
                f"as {odd[0]!r:.40}: their rows are set aside, up to data.max_bad_share"
            )
    return columns, notes


def columns_of(layout: Layout) -> dict[str, str]:
    """The columns of another trainer's format, as a recipe names them."""
    prompt = layout.turns or DataSettings().columns.prompt
    images = ",".join(layout.source_columns(layout.columns.images))
    return {"prompt": prompt, "images": images, "answer": layout.columns.answer}


def column_for(key: str, names: Sequence[str], rows: Sequence[Row]) -> str | None:
    """The first column with a usual name whose values are mostly of the right kind."""
    lower = {name.lower(): name for name in reversed(names)}
    for usual in USUAL_COLUMNS[key]:
        name = lower.get(usual)
        values = values_of(rows, name) if name else []
        if name and 2 * sum(map(SUITS[key], values)) > len(values):
            return name
    return None


def values_of(rows: Sequence[Row], name: str) -> list[Any]:
    """The cells of a column that hold something."""
    values = [value_at(row, name) for row in rows]
    return [value for value in values if not is_missing(value) and value not in ([], {})]


def is_refused(key: str, value: Any) -> bool:
    """Whether the reader of rows refuses a gold answer or the options in a cell."""
    try:
        if key == "answer":
            gold_texts(value, "")
        elif key == "choices":
            read_options(value, "")
    except DataError:
        return True
    return False


def answer_column(rows: Sequence[Row], usual: str) -> str:
    """The column of the gold answers: one that lists all of them, the usual one, or the mazes.

    A list of accepted answers is better than one of them. It may be inside a mapping.
    """
    names = list(dict.fromkeys(name for row in rows for name in inner_names(row)))
    for name in names:
        if name.rpartition(".")[2].lower() in ANSWER_LISTS and lists_answers(rows, name, usual):
            return name
    if usual:
        return usual
    mazes = [name for name in names if are_mazes(values_of(rows, name))]
    known = [name for name in names if name.rpartition(".")[2].lower() in USUAL_COLUMNS["answer"]]
    inside = [name for name in known if "." in name and values_of(rows, name)]
    return next(iter([*mazes, *inside]), "")


def inner_names(row: Row) -> Iterator[str]:
    """The columns of a row, and the keys of its mappings as `column.key`."""
    for name, value in row.items():
        yield name
        if isinstance(value, Mapping):
            yield from (f"{name}.{key}" for key in value)


def lists_answers(rows: Sequence[Row], name: str, usual: str) -> bool:
    """Whether a column lists several accepted answers, the usual one among them."""
    several = False
    for row in rows:
        value, answer = value_at(row, name), value_at(row, usual) if usual else None
        if not isinstance(value, list):
            return False
        texts = [item.get("answer") if isinstance(item, Mapping) else item for item in value]
        if not is_missing(answer) and answer not in texts:
            return False
        several |= len(value) > 1
    return several


def are_mazes(values: Sequence[Any]) -> bool:
    """Whether all values are mazes."""
    return bool(values) and all(map(is_maze_gold, values))


def asked_rows(rows: Sequence[Row], layout: Layout, columns: Mapping[str, str]) -> list[AskedRow]:
    """Question, gold answer and options of the rows that the columns can read."""
    asked = []
    for row in rows:
        try:
            plain = layout.plain_row(row, "")
        except DataError:
            continue
        name = layout.columns.prompt if layout.name else columns.get("prompt", "")
        question, gold = plain.get(name), value_at(plain, columns.get("answer", ""))
        lettered = columns.get("choices", "").split(",")
        cells = [row.get(letter) for letter in lettered] if len(lettered) > 1 else None
        options = options_in(cells or value_at(plain, lettered[0]))
        asked.append(AskedRow(question if isinstance(question, str) else "", gold, options))
    return asked


def is_gold(value: Any) -> bool:
    """A text, or a gold answer of another convention."""
    return isinstance(value, str) or not is_refused("answer", value)


def is_options(value: Any) -> bool:
    """Options of a question, by a convention."""
    return bool(options_in(value))


def options_in(value: Any) -> tuple[str, ...]:
    """The options in a cell; none if it holds something else."""
    try:
        return read_options(value, "")
    except DataError:
        return ()


def is_picture(value: Any) -> bool:
    """A path, a stored picture, or a list of such."""
    if isinstance(value, (list, tuple)):
        return all(is_picture(item) for item in value)
    return isinstance(value, str | bytes) or (
        isinstance(value, Mapping) and bool({"bytes", "path", "url", "image"} & set(value))
    )


def is_boxes(value: Any) -> bool:
    """One box of four numbers, or a list of boxes."""
    if not isinstance(value, (list, tuple)) or not value:
        return False
    boxes = value if isinstance(value[0], (list, tuple)) else [value]
    return all(
        len(box) == 4 and all(isinstance(side, (int, float)) for side in box) for box in boxes
    )


#: What the values of a column look like.
SUITS: dict[str, Callable[[Any], bool]] = {
    "prompt": lambda value: isinstance(value, str),
    "images": is_picture,
    "answer": is_gold,
    "choices": is_options,
    "response": lambda value: isinstance(value, str),
    "thoughts": is_picture,
    "boxes": is_boxes,
}


def evaluation_for(source: str, count: int, answered: bool) -> dict[str, Any]:
    """`eval`, `holdout`, whether accuracy can be judged, and a line about it."""
    if not answered:
        note = "none: without an answer column there is no accuracy; save.keep_best=none"
        if held := min(HOLDOUT, count // 10):
            settings = f"data.holdout={held} eval.every=50 save.keep_best=accuracy"
            note += f". With a data.columns.answer, set {settings} too"
        return {"eval": "", "holdout": 0, "judged": False, "note": note}
    path = Path(source)
    for name in HELD:
        stem = path.stem.replace("train", name) if "train" in path.stem else name
        other = path.with_name(stem + path.suffix)
        if other != path and other.is_file():
            return {
                "eval": str(other),
                "holdout": 0,
                "judged": True,
                "note": f"{other}, found next to the data",
            }
    held = min(HOLDOUT, count // 10)
    if held == 0:
        note = f"none: {count} rows are too few to hold any out; save.keep_best=none"
        return {"eval": "", "holdout": 0, "judged": False, "note": note}
    note = f"{held} training rows held out; name a set of its own with data.eval"
    if held < FEW:
        note += f" (one of {held} rows is {100 / held:.0f} points of accuracy)"
    return {"eval": "", "holdout": held, "judged": True, "note": note}

"""What `vistill init` reads off the first rows: columns, choices, rows to evaluate on."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vistill.data.gold import read_gold, read_options
from vistill.data.layouts import Layout, detect_layout
from vistill.data.settings import Columns, DataSettings
from vistill.data.sources import USUAL_COLUMNS, is_columnar, read_source
from vistill.errors import DataError, MissingExtraError

#: Rows that are looked at.
FIRST = 200
#: Names of evaluation files next to the training file, the first one wins.
HELD = ("val", "valid", "validation", "dev", "eval", "test")
#: Rows held out where nothing says how many there are, and at most.
HOLDOUT = 200
PROMPTS_PER_STEP = 16


@dataclass(frozen=True)
class DataFacts:
    """What a data source holds, as far as `init` needs it."""

    columns: dict[str, str]
    """Our name of a column -> its name in the data."""
    template: str = "{prompt}"
    eval: str = ""
    holdout: int = 0
    judged: bool = True
    """Whether there will be rows with answers to evaluate on."""
    prompts_per_step: int = PROMPTS_PER_STEP
    notes: list[str] = field(default_factory=list)
    """What to tell the user, a line each."""


def default_columns() -> dict[str, str]:
    """The columns that a recipe has by default."""
    plain = Columns()
    return {"prompt": plain.prompt, "images": plain.images, "answer": plain.answer}


def facts_of(source: str) -> DataFacts:
    """Look at the first rows of a source; default columns and the reason where that fails."""
    if source == "diagrams":
        return DataFacts(
            default_columns(),
            notes=["diagrams: drawn by the package, with evaluation rows of their own"],
        )
    if source.startswith("hf:"):
        return unseen("a hub data set is not downloaded here")
    try:
        rows = [
            row
            for _, row in itertools.islice(read_source(source), FIRST)
            if isinstance(row, Mapping)
        ]
    except (DataError, MissingExtraError) as error:
        return unseen(f"{error.what} ({error.code})")
    if not rows:
        return unseen("no row can be read")
    try:
        return found_in(source, rows)
    except DataError as error:
        return unseen(f"{error.what} ({error.code}); {error.fix}")


def unseen(reason: str) -> DataFacts:
    """Default columns for data that were not looked at."""
    columns = default_columns()
    guess = ", ".join(f"{key}={name}" for key, name in columns.items())
    notes = [
        f"not looked at: {reason}",
        f"default columns {guess}; correct data.columns where yours differ",
        f"evaluation  {HOLDOUT} training rows held out; name a set of its own with data.eval",
    ]
    return DataFacts(columns, holdout=HOLDOUT, notes=notes)


def found_in(source: str, rows: Sequence[Mapping[str, Any]]) -> DataFacts:
    """Columns, template and evaluation rows of data that were read."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    layout = detect_layout(rows, DataSettings(train=source), source)
    columns = {key: name for key in USUAL_COLUMNS if (name := column_for(key, names, rows))}
    if layout.name:
        columns |= columns_of(layout)
        columns = {key: name for key, name in columns.items() if name}
    count = rows_in(source) or len(rows)
    unused = [name for name in names if name not in columns.values()]
    mapped = "  ".join(f"{key}={name}" for key, name in columns.items())
    notes = [f"{count:,} rows, {len(rows):,} looked at", f"columns  {mapped}"]
    notes += [layout.note] if layout.note else []
    notes += [f"not used  {', '.join(unused)}"] if unused else []
    missing = [key for key in ("prompt", "images", "answer") if key not in columns]
    notes += [
        f"no column for {key} among {', '.join(names)}: set data.columns.{key}"
        for key in missing[:1]
    ]
    notes += pictures_noted(columns, rows)
    template, template_notes = template_for(columns, rows)
    notes += template_notes
    evaluation = evaluation_for(source, count, "answer" in columns)
    notes.append(f"evaluation  {evaluation.pop('note')}")
    left = max(1, count - evaluation["holdout"])
    notes += (
        [f"train.prompts_per_step  {left}: there are no more rows"]
        if left < PROMPTS_PER_STEP
        else []
    )
    kept = {"prompt": "question", "images": "", "answer": ""} | columns
    per_step = min(PROMPTS_PER_STEP, left)
    return DataFacts(kept, template, prompts_per_step=per_step, notes=notes, **evaluation)


def columns_of(layout: Layout) -> dict[str, str]:
    """The columns of another trainer's format, as a recipe names them."""
    prompt = layout.turns or DataSettings().columns.prompt
    return {"prompt": prompt, "images": layout.columns.images, "answer": layout.columns.answer}


def column_for(key: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The first column with a usual name and values of the right kind alone."""
    lower = {name.lower(): name for name in reversed(names)}
    for usual in USUAL_COLUMNS[key]:
        name = lower.get(usual)
        values = [row[name] for row in rows if row.get(name) not in (None, "", [])] if name else []
        if values and all(SUITS[key](value) for value in values):
            return name
    return None


def is_gold(value: Any) -> bool:
    """A gold answer of a convention."""
    try:
        return read_gold(value, (), "") is not None
    except DataError:
        return False


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


def pictures_noted(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line about rows without an image."""
    without = sum(not row.get(columns.get("images", "")) for row in rows)
    if not without or "images" not in columns:
        return []
    return [
        f"{without} of {len(rows)} rows have no picture: "
        "text_only=error stops there; drop or plain goes on"
    ]


def template_for(
    columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]
) -> tuple[str, list[str]]:
    """The question's wording, and why: choices are added unless the questions hold them already."""
    if "choices" not in columns:
        return "{prompt}", []
    question = columns.get("prompt", "")
    asked = [row for row in rows if options_in(row.get(columns["choices"]))]
    inside = sum(
        all(option in str(row.get(question)) for option in options_in(row[columns["choices"]]))
        for row in asked
    )
    if inside > len(asked) / 2:
        return "{prompt}", ["template  {prompt}: the questions list their choices already"]
    return "{prompt}\n{choices}", [
        "template  {prompt}\\n{choices}: the choices are listed below the question"
    ]


def evaluation_for(source: str, count: int, answered: bool) -> dict[str, Any]:
    """`eval`, `holdout`, whether accuracy can be judged, and a line about it."""
    if not answered:
        note = "none: without an answer column there is no accuracy; save.keep_best=none"
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
    return {"eval": "", "holdout": held, "judged": True, "note": note}


def rows_in(source: str) -> int:
    """Rows of a file; 0 for Parquet, whose rows hold images."""
    return 0 if is_columnar(source) else sum(1 for _ in read_source(source))

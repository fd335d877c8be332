"""Where prompts come from. Needs no torch, no numpy and no Pillow."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from vistill.data.set_settings import SHARED_WITH_SETS, DataSet, check_name, naming_set
from vistill.errors import ConfigError
from vistill.python_fixes import with_python_fixes
from vistill.ranges import check_ranges, ranged

Version = Literal["text_dominant", "text_lite", "vision_dominant", "vision_only"]


@dataclass(frozen=True)
class Columns:
    """Names of the columns of the data file. Empty means that there is no such column."""

    prompt: str = "question"
    """Column of the question, as text."""
    images: str = "images"
    """Column of the pictures: a path, a list of paths, or pictures stored in the file. Several
    columns with commas: `image_1,image_2`."""
    answer: str = "answer"
    """Column of the gold answer: a text or number, a list (any of them is right), or a letter or
    index of the options. `a.b` leads into a mapping. Accuracy and rewards need it."""
    choices: str = ""
    """Column of the options of a multiple-choice question: a list of texts, or a mapping from
    letters. The answer checker reads it, and `{choices}` of `data.template` shows it. One column
    per option with commas: `A,B,C,D`."""
    checker: str = ""
    """Column of the checker that judges a row, such as `number`; an empty value takes that of the
    recipe."""
    teacher: str = ""
    """Column that says which of several teachers a row has: a teacher's name, or a value that
    `teachers.NAME.rows` lists. Rows without a value have the name of their data set."""
    thoughts: str = ""
    """Column of the visual thoughts for `visual_opsd`: pictures, as in `images`. A `*` stands for
    the number of a round: `reasoning_image_*` reads all rounds in order."""
    boxes: str = ""
    """Column of boxes `[left, top, right, bottom]` in pixels of the first picture. Visual thoughts
    can be drawn from them (`views.thought`)."""
    response: str = ""
    """Column of written responses. `sft` learns from them."""
    id: str = ""
    """Column of row ids, each of which occurs once. The id keys the sampling noise of a row;
    without a column it is the hash of the row's words and pictures."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class DiagramSettings:
    """What the procedural diagrams look like."""

    two_digits: bool = False
    """Draw labels 10..99 instead of 1..9. Two digits are harder to read."""
    versions: tuple[Version, ...] = field(
        default=("text_lite", "vision_dominant", "vision_only"), metadata={"items": 1}
    )
    """Versions to mix, from `text_dominant` (the question states the values too) to `vision_only`
    (the values can only be read off the picture)."""
    thoughts: bool = False
    """Draw a visual thought for each item: its labels, enlarged, in reading order."""
    side: int = ranged(64, 8)
    """Side of the square picture in pixels. A larger picture has more image tokens."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class DiagramData:
    """Procedural diagrams as a data set."""

    train: int = ranged(1280, 1)
    """Number of training items."""
    eval: int = ranged(1024, 0)
    """Number of evaluation items. Their number combinations never occur in training. More items
    make the accuracy more precise and each evaluation slower."""
    seed: int = 0
    """Seed of the items. Another seed draws other items."""
    options: DiagramSettings = field(default_factory=DiagramSettings)

    def __post_init__(self) -> None:
        check_ranges(self)


@with_python_fixes
@dataclass(frozen=True)
class DataSettings:
    """Training and evaluation rows: source, columns, wording, and what to do with bad rows."""

    train: str = "diagrams"
    """Source of the training rows: a file (JSON Lines, JSON, CSV, TSV, also in gzip; Parquet),
    `hf:owner/name[split]`, or `diagrams` (drawn by the package)."""
    eval: str = ""
    """Source of the evaluation rows, of the same kinds. Empty evaluates on the rows that
    `data.holdout` sets aside; with `diagrams` for training, on held-out diagrams."""
    holdout: int = ranged(0, 0)
    """Number of training rows to set aside for evaluation where `data.eval` is empty. Rows with the
    same question stay together, so the number may be the nearest one that they add up to. More rows
    make the accuracy more precise and leave fewer to train on."""
    images: str = ""
    """Folder that holds all images. Paths are relative to it, or absolute and inside it. Empty is
    the data file's own folder."""
    columns: Columns = field(default_factory=Columns)
    template: str = field(default="{prompt}", metadata={"pattern": r"\{prompt\}"})
    """Wording of the question. `{prompt}` and `{choices}` are filled in; `{{` and `}}` are braces.
    Choices are listed one per line as `(A) text`. Example: `{prompt}\\n{choices}`."""
    index_base: int = ranged(0, 0, 1)
    """Number of the first option where a gold answer is the index of an option: 0, or 1 for data
    that count from 1."""
    response_template: str = ""
    """Wording of the response that `sft` learns where a row has none; `{answer}` is filled in.
    Empty makes no response."""
    system: str = ""
    """System message of every prompt. Empty sends none."""
    text_only: Literal["error", "drop", "plain"] = "error"
    """What to do with rows without a picture: `error` stops, `drop` leaves them out, `plain` trains
    on them as plain distillation."""
    on_bad_row: Literal["quarantine", "stop"] = "quarantine"
    """What to do with rows that cannot be used: `quarantine` sets them aside with the reason,
    `stop` stops at the first."""
    max_bad_share: float = ranged(0.01, 0, 1)
    """Share of the rows that may be bad; more stop the run. A larger share tolerates more."""
    overlap: Literal["stop", "allow"] = "stop"
    """What to do where an evaluation row asks what a training row asks: `stop`, or `allow` it."""
    evaluation_only: Literal["stop", "allow"] = "stop"
    """What to do where training rows come from a data set that is for evaluation only, by the list
    of benchmarks or by the page next to the file: `stop`, or `allow` it and record it."""
    benchmarks: str = ""
    """Folder with benchmarks, as `vistill eval --data` reads it. `vistill check` and the start of a
    run report training rows that are rows of them. Empty compares with none."""
    max_image_tokens: int | None = ranged(None, 1)
    """Most image tokens per picture; a larger picture is shrunk. null takes the model's own limit.
    A larger limit shows finer detail and needs more memory and time."""
    min_pixels: int | None = ranged(None, 1, 50_000_000)
    """Fewest pixels of a picture; a smaller one is enlarged once, when it is decoded, so every view
    starts from the enlarged picture. null enlarges none. More pixels are more image tokens."""
    max_pixels: int | None = ranged(None, 1, 50_000_000)
    """Most pixels of a picture; a larger one is shrunk once, when it is decoded, so every view
    starts from the smaller picture. null shrinks none (`data.max_image_tokens` limits tokens)."""
    max_prompt_tokens: int = ranged(8192, 1)
    """Most tokens of a prompt, image tokens included. A longer prompt stops the run before its
    first step: cutting it would cut image tokens."""
    limit: int | None = ranged(None, 1)
    """Use only the first so many usable training rows. null takes all."""
    diagrams: DiagramData = field(default_factory=DiagramData)
    sets: dict[str, DataSet] = field(default_factory=dict)
    """Several data sets that are mixed, by name, in place of `data.train`. A set has its own source
    and `weight`; what it does not name is that of `data`."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.min_pixels is not None and self.max_pixels is not None:
            check_limits(self.min_pixels, self.max_pixels)
        if self.sets:
            check_sets(self)

    @property
    def sources(self) -> str:
        """The sources of the training rows."""
        return ", ".join(one.train for _, one in sorted(self.sets.items())) or self.train

    def of_set(self, name: str) -> "DataSettings":
        """The settings of one data set: its own, and those of `data` for the others."""
        one = self.sets[name]
        own = {f.name: getattr(one, f.name) for f in fields(one) if f.name in SHARED_WITH_SETS}
        columns = {f.name: getattr(one.columns, f.name) for f in fields(one.columns)}
        given = {key: value for key, value in columns.items() if value is not None}
        return replace(
            self,
            sets={},
            train=one.train,
            eval=one.eval,
            columns=replace(self.columns, **given),
            **{key: value for key, value in own.items() if value is not None},
        )


def with_options(settings: DataSettings, options: Mapping[str, Any]) -> DataSettings:
    """Settings with options given by name: fields of their own, or of their columns."""
    names = {f.name for f in fields(Columns)}
    columns = {name: value for name, value in options.items() if name in names}
    rest = {name: value for name, value in options.items() if name not in names}
    return replace(settings, columns=replace(settings.columns, **columns), **rest)


def check_sets(settings: "DataSettings") -> None:
    """C002 for a set without a name or a source, C101 for keys that a mixture does not read."""
    for name, one in settings.sets.items():
        check_name(name, "data.sets")
        if not isinstance(one, DataSet):
            what = f"data.sets.{name} is a {type(one).__name__}"
            raise ConfigError("C002", what, fix=f"data.sets.{name}.train=FILE.jsonl")
        if not one.train:
            what, fix = f"data.sets.{name}.train is missing", f"data.sets.{name}.train=FILE.jsonl"
            raise ConfigError("C002", what, why="each data set has a source of its own", fix=fix)
        with naming_set(name):
            settings.of_set(name)
    for key, default in (("train", "diagrams"), ("eval", "")):
        if getattr(settings, key) != default:
            first = next(iter(settings.sets))
            raise ConfigError(
                "C101",
                f"data.{key} and data.sets are both given",
                why="the rows of a mixture come from data.sets alone",
                fix=f"data.{key}={default}   or, without the mixture,   data.sets=null",
                note=f"a source of a set: data.sets.{first}.{key}",
            )


def check_limits(low: int, high: int) -> None:
    """C101 for pixel limits that no picture satisfies."""
    if low > high:
        raise ConfigError(
            "C101",
            f"data.min_pixels = {low:,} is more than data.max_pixels = {high:,}",
            why="no picture can have both",
            fix=f"data.min_pixels={high}   or   data.max_pixels={low}",
        )

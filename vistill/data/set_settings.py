"""One data set of a mixture: `data.sets.NAME`. Needs no torch, no numpy and no Pillow."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from vistill.errors import ConfigError, VistillError, in_place_of
from vistill.ranges import check_ranges, ranged
from vistill.registry import checkers

AnyError = TypeVar("AnyError", bound=VistillError)


@dataclass(frozen=True)
class SetColumns:
    """Columns of one data set. null takes the name in `data.columns`."""

    prompt: str | None = None
    """Column of the question."""
    images: str | None = None
    """Column of the pictures; empty for a set without pictures."""
    answer: str | None = None
    """Column of the gold answer."""
    choices: str | None = None
    """Column of the options."""
    checker: str | None = None
    """Column of the checker that judges a row."""
    teacher: str | None = None
    """Column that says which teacher a row has."""
    thoughts: str | None = None
    """Column of the visual thoughts."""
    boxes: str | None = None
    """Column of boxes in the first picture."""
    response: str | None = None
    """Column of written responses."""
    id: str | None = None
    """Column of row ids, each of which occurs once in the set."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class SetReward:
    """Rewards of one data set. null takes the value in `reward`."""

    accuracy: float | None = ranged(None, 0)
    """Reward of a right answer."""
    format: float | None = ranged(None, 0)
    """Reward of a response that matches the pattern."""
    pattern: str | None = None
    """Regular expression that a well-formed response contains."""
    answer: Literal["first", "last"] | None = None
    """Which committed answer of a response counts."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class DataSet:
    """One data set of a mixture. null takes the value in `data`."""

    train: str = ""
    """Source of the training rows of the set, as `data.train`."""
    weight: float | Literal["rows"] = ranged("rows", 0, above=True)
    """Share of the prompts of the run, relative to the weights of the other sets. `rows` is the
    number of its training rows: with `rows` in all sets every row occurs equally often."""
    eval: str = ""
    """Source of the evaluation rows of the set. Empty evaluates on the rows that `holdout` sets
    aside."""
    holdout: int | None = ranged(None, 0)
    """Number of training rows of the set to hold out for evaluation."""
    images: str | None = None
    """Folder that holds all images of the set."""
    columns: SetColumns = field(default_factory=SetColumns)
    template: str | None = field(default=None, metadata={"pattern": r"\{prompt\}"})
    """Wording of the question."""
    index_base: int | None = ranged(None, 0, 1)
    """Number of the first option where a gold answer is the index of an option."""
    response_template: str | None = None
    """Wording of the response that `sft` learns where a row has none."""
    system: str | None = None
    """System message of every prompt of the set."""
    text_only: Literal["error", "drop", "plain"] | None = None
    """What to do with rows without a picture; `plain` for a set without pictures."""
    min_pixels: int | None = ranged(None, 1, 50_000_000)
    """Fewest pixels of a picture."""
    max_pixels: int | None = ranged(None, 1, 50_000_000)
    """Most pixels of a picture."""
    limit: int | None = ranged(None, 1)
    """Use only the first so many usable training rows of the set."""
    checker: str = ""
    """What judges responses to rows of the set that name no checker, in evaluation and rewards.
    Empty takes `eval.checker` and `reward.checker`."""
    reward: SetReward = field(default_factory=SetReward)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.checker:
            checkers.require("checker", self.checker)


#: Keys of a data set that replace the key of `data` with the same name, unless they are null.
SHARED_WITH_SETS = (
    "holdout", "images", "template", "index_base", "response_template", "system", "text_only",
    "min_pixels", "max_pixels", "limit",
)  # fmt: skip
#: A name of a data set or a teacher: part of keys, metrics and file names.
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def valid_name(text: str, fallback: str) -> str:
    """A name of a data set or a teacher that is like a text."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_") or fallback
    return name if NAME.fullmatch(name) else f"set_{name}"


def check_name(name: str, group: str) -> None:
    """C002 for the name of a data set or a teacher that cannot be part of a key."""
    if not NAME.fullmatch(name):
        raise invalid_name_error(name, group)


def invalid_name_error(name: str, group: str, where: str = "", rename: str = "") -> ConfigError:
    """C002 for a name that cannot be part of a key.

    Args:
        name: of the data set or the teacher.
        group: that it stands in.
        where: its place in the recipe.
        rename: the command that renames it in its file, if it stands in one.
    """
    return ConfigError(
        "C002",
        f"{group} has the name {name!r:.40}",
        where=where,
        why="a name has letters, digits and _, and begins with a letter: it is part of keys and"
        " metrics",
        fix=rename or in_place_of(valid_name(name, "other"), name),
    )


@contextmanager
def naming_set(name: str) -> Iterator[None]:
    """Name the data set in an error that is raised inside; its fix sets the keys of the set."""
    try:
        yield
    except VistillError as error:
        raise in_set(error, name) from error.__cause__


def in_set(error: AnyError, name: str) -> AnyError:
    """An error whose keys of `data` are those of a data set; unchanged without a name."""
    if name:
        for part in ("what", "why", "fix", "note"):
            setattr(error, part, with_keys_of_set(getattr(error, part), name))
        error.args = (error.render(),)
    return error


def with_keys_of_set(text: str, name: str) -> str:
    """A text whose keys of `data` are those of a data set: `data.sets.NAME.columns.prompt=q`."""
    own = "|".join(f.name for f in fields(DataSet))
    return re.sub(rf"(?<![\w./])data\.(?=(?:{own})\b)", f"data.sets.{name}.", text)


def check_sets_left(data: Mapping[str, Any], where: str) -> None:
    """C101 if null takes out every set of a mixture and nothing else names rows."""
    sets = data.get("sets") or {}
    if sets and all(one is None for one in sets.values()) and not data.get("train"):
        raise ConfigError(
            "C101",
            "data.sets has no set left, and data.train is not given",
            where=where,
            why=f"null takes out {', '.join(sets)}; the rows would be drawn diagrams",
            fix="data.train=FILE.jsonl data.sets=null   or, on purpose,   "
            "data.train=diagrams data.sets=null",
        )

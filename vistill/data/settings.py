"""Where prompts come from. Needs no torch."""

from dataclasses import dataclass, field
from typing import Literal

from vistill.data.diagrams import DiagramSettings
from vistill.ranges import check_ranges, ranged


@dataclass(frozen=True)
class Columns:
    """Names of the columns in the data file; empty where there is none."""

    prompt: str = "question"
    images: str = "images"
    answer: str = "answer"
    choices: str = ""
    thoughts: str = ""
    boxes: str = ""
    response: str = ""
    id: str = ""


@dataclass(frozen=True)
class DiagramData:
    """Procedural diagrams as a data set."""

    train: int = 1280
    """Training items."""
    eval: int = 1024
    """Held-out items; their number combinations never occur in training."""
    seed: int = 0
    options: DiagramSettings = field(default_factory=DiagramSettings)


@dataclass(frozen=True)
class DataSettings:
    """Rows, pictures, columns, templates and what to do with odd rows."""

    train: str = "diagrams"
    """A .jsonl file, `hf:owner/name[split]`, a parquet file, or `diagrams`."""
    eval: str = ""
    """The same for evaluation; empty takes none (diagrams bring their own)."""
    holdout: int = ranged(0, 0)
    """Where `eval` is empty: set so many training rows aside, chosen by a key; equal questions together, so that it may
    be the nearest number that they add up to."""
    images: str = ""
    """Folder that image paths are relative to and may not leave; the data file's folder by default."""
    columns: Columns = field(default_factory=Columns)
    template: str = "{prompt}"
    """How the question is put; `{prompt}` and `{choices}` are filled in."""
    response_template: str = ""
    """Written response where no column has one; `{answer}` is filled in."""
    system: str = ""
    """System message."""
    text_only: Literal["error", "drop", "plain"] = "error"
    """Rows without a picture: stop, leave out, or train as plain distillation."""
    on_bad_row: Literal["quarantine", "stop"] = "quarantine"
    """Rows that cannot be used: set aside with the reason, or stop."""
    max_bad_share: float = ranged(0.01, 0, 1)
    """Share of bad rows above which the run stops."""
    overlap: Literal["stop", "allow"] = "stop"
    """Evaluation rows that ask what a training row asks: stop, or go on."""
    max_image_tokens: int | None = ranged(None, 1)
    """Upper limit of image tokens per picture; larger ones are shrunk."""
    max_prompt_tokens: int = ranged(8192, 1)
    """A longer prompt stops the run before its first step: cutting it would cut image placeholders."""
    limit: int | None = ranged(None, 1)
    """Use only so many training rows."""
    diagrams: DiagramData = field(default_factory=DiagramData)

    def __post_init__(self) -> None:
        check_ranges(self)

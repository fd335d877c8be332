"""The nouns without tensors: prompts, views, passes, rollouts. Needs no torch.

Shape letters used everywhere: G prompt groups, K siblings a prompt, N = G*K rollouts,
R response tokens of all rollouts on one flat axis, P prompt tokens, V shared vocabulary, H hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

PilImage = Any
"""A `PIL.Image.Image`. Only `views/`, `data/` and `models/` look inside, so the nouns need no Pillow."""


class View(StrEnum):
    """What a reader may see of a prompt."""

    FULL = "full"
    PIXELATED = "pixelated"
    TEXT_ONLY = "text_only"
    MASKED = "masked"
    BLACK = "black"
    SWAPPED = "swapped"
    NOISE = "noise"
    DEGRADED = "degraded"
    PRIVILEGED = "privileged"
    PRIVILEGED_NOISE = "privileged_noise"
    PRIVILEGED_BLANK = "privileged_blank"
    PRIVILEGED_MISMATCHED = "privileged_mismatched"
    PRIVILEGED_PROMPTS = "privileged_prompts"


class Reader(StrEnum):
    """Which model reads."""

    STUDENT = "student"
    """The weights that learn."""
    OLD = "old"
    """The student as it was when the step began; never with gradient."""
    TEACHER = "teacher"
    EMA = "ema"
    """A moving average of the student, stored with every checkpoint."""
    REFERENCE = "reference"
    """The student as the run found it."""


class Writer(StrEnum):
    """Who writes the responses."""

    STUDENT = "student"
    TEACHER = "teacher"
    DATA = "data"


class Finish(StrEnum):
    """Why a response ended."""

    STOP = "stop"
    LENGTH = "length"

    def is_truncated(self) -> bool:
        """Whether the response was cut off at the length limit."""
        return self is Finish.LENGTH


@runtime_checkable
class ImageRef(Protocol):
    """A picture that is decoded only when somebody looks."""

    @property
    def name(self) -> str:
        """A short name for messages."""
        ...

    def load(self) -> PilImage:
        """The decoded picture."""
        ...


@dataclass(frozen=True)
class LoadedImage:
    """A picture that is already in memory."""

    image: PilImage
    name: str = "image"

    def load(self) -> PilImage:
        """The picture itself."""
        return self.image


@dataclass(frozen=True)
class DrawnImage:
    """A picture that a function draws on demand (procedural diagrams)."""

    draw: Callable[[], PilImage]
    name: str = "drawn"

    def load(self) -> PilImage:
        """Draw it."""
        return self.draw()


Part = str | ImageRef


@dataclass(frozen=True)
class Prompt:
    """A question with its pictures in place."""

    id: str
    """Unique within a data set; part of the key of the sampling noise."""
    parts: tuple[Part, ...]
    """Text and pictures in reading order."""
    answer: str | None = None
    """The gold answer, or None where the row has none."""
    choices: tuple[str, ...] = ()
    """The options of a multiple choice question; empty for free answers."""
    response: str | None = None
    """A written response, for `sft`."""
    thoughts: tuple[ImageRef, ...] = ()
    """Privileged visual thoughts."""
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    """Regions (left, top, right, bottom) of the first picture, in its pixels; thoughts can be drawn from them."""
    system: str | None = None
    """A system message."""
    labels: dict[str, str] = field(default_factory=dict, hash=False)
    """Facts about the row for reports (question type, version, ...)."""
    content: str = field(default="", compare=False)
    """Hashes of a row that came from a file: of question and pictures, of everything."""

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """The pictures in order."""
        return tuple(part for part in self.parts if not isinstance(part, str))

    @property
    def text(self) -> str:
        """The question without its pictures."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def asked(self) -> str:
        """What is asked, without who answers what: equal for the same question about the same pictures."""
        return self.content.partition("-")[0] or self.id

    def with_images(self, images: Sequence[ImageRef]) -> "Prompt":
        """The same prompt with other pictures in the same places."""
        fresh = iter(images)
        parts = tuple(part if isinstance(part, str) else next(fresh) for part in self.parts)
        assert next(fresh, None) is None, "more pictures than places"
        return replace(self, parts=parts)


@dataclass(frozen=True)
class Pass:
    """One reading of the responses: who reads, what they see, whether gradient flows."""

    reader: Reader
    view: View
    gradient: bool = False
    keep: str = "hidden"
    """`hidden` keeps the hidden states of the response rows, `log_prob` the sampled token's log-probability, `both`."""
    rows: str = ""
    """Name of a boolean signal: gradient is cut at the rows it does not mark; empty means all rows learn."""

    @property
    def name(self) -> str:
        """`reader.view`, the key of the pass in a scored batch."""
        return f"{self.reader}.{self.view}"


@dataclass(frozen=True)
class Rollout:
    """One response, as token ids. Ids travel; text is only for people."""

    ids: tuple[int, ...]
    """Valid response tokens, the first end-of-turn token included."""
    sibling: int
    """Index among the K rollouts of its prompt."""
    finish: Finish
    attempt: int = 0
    """How often an empty response was drawn again."""
    log_probs: tuple[float, ...] | None = field(default=None, compare=False)
    """Log-probability of each id where the engine was asked for it (`Sampling.log_probs`): under the model's own
    distribution over the shared vocabulary at temperature 1, before temperature, nucleus and banned ids, in nats.
    So it is what scoring gives for the same weights and the prompt that the writer read."""


@dataclass(frozen=True)
class RolloutGroup:
    """A prompt and its K sibling rollouts: the unit of work from data to loss."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]

"""Types without tensors: prompts, views, passes, rollouts. Needs no torch.

Shape letters: G prompt groups, K siblings per prompt, N = G*K rollouts, R response tokens of all
rollouts on one flat axis, P prompt tokens, V shared vocabulary, H hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from vistill.notebook_html import images_html, table_html

PilImage = Any
"""A `PIL.Image.Image`, as `Any` so that this module does not import Pillow."""


class View(StrEnum):
    """What a reader sees of a prompt: the built-in views. Views of plug-ins are plain strings."""

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


def view_named(name: View | str) -> View | str:
    """The built-in view of that name; the name itself if it is a view of a plug-in."""
    return next((view for view in View if view == name), str(name))


class Reader(StrEnum):
    """The model that reads."""

    STUDENT = "student"
    """The trained weights."""
    OLD = "old"
    """The student at the beginning of the step; never with gradient."""
    TEACHER = "teacher"
    EMA = "ema"
    """An exponential moving average of the student, stored in every checkpoint."""
    REFERENCE = "reference"
    """The student at the start of the run."""


class Writer(StrEnum):
    """The source of the responses."""

    STUDENT = "student"
    TEACHER = "teacher"
    DATA = "data"


class Finish(StrEnum):
    """The reason why a response ended."""

    STOP = "stop"
    LENGTH = "length"

    def is_truncated(self) -> bool:
        """Whether the length limit cut the response."""
        return self is Finish.LENGTH


@runtime_checkable
class ImageRef(Protocol):
    """An image that is decoded on demand."""

    @property
    def name(self) -> str:
        """A short name for messages."""
        ...

    def load(self) -> PilImage:
        """Decode the image."""
        ...


@dataclass(frozen=True)
class LoadedImage:
    """An image in memory."""

    image: PilImage
    name: str = "image"

    def load(self) -> PilImage:
        """The image itself."""
        return self.image


@dataclass(frozen=True)
class DrawnImage:
    """An image that a function draws on demand (procedural diagrams)."""

    draw: Callable[[], PilImage]
    name: str = "drawn"

    def load(self) -> PilImage:
        """Draw the image."""
        return self.draw()


Part = str | ImageRef


@dataclass(frozen=True)
class Prompt:
    """A question with its images in place."""

    id: str
    """Unique within a data set; part of the key of the sampling noise."""
    parts: tuple[Part, ...]
    """Text and images in reading order."""
    answer: str | tuple[str, ...] | None = None
    """The gold answer; several texts if any of them is right; None if the row has none."""
    choices: tuple[str, ...] = ()
    """The options of a multiple choice question; empty for free answers."""
    response: str | None = None
    """A written response, for `sft`."""
    thoughts: tuple[ImageRef, ...] = ()
    """Privileged visual thoughts."""
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    """Regions (left, top, right, bottom) in pixels of the first image, to draw thoughts from."""
    system: str | None = None
    """A system message."""
    labels: dict[str, str] = field(default_factory=dict, hash=False)
    """Facts about the row for reports (question type, version, ...)."""
    content: str = field(default="", compare=False)
    """`QUESTION_HASH-ROW_HASH`: of question and images, and of the whole row."""

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """The images in order."""
        return tuple(part for part in self.parts if not isinstance(part, str))

    @property
    def golds(self) -> tuple[str, ...]:
        """All accepted forms of the gold answer."""
        if self.answer is None:
            return ()
        return tuple(self.answer) if isinstance(self.answer, tuple | list) else (self.answer,)

    @property
    def gold_text(self) -> str | None:
        """All accepted forms in one text, to show and to store; None without a gold answer."""
        return " | ".join(self.golds) if self.golds else None

    @property
    def text(self) -> str:
        """The question without its images."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def question_key(self) -> str:
        """Equal for the same question about the same images, whatever the answer."""
        return self.content.partition("-")[0] or self.id

    def _repr_html_(self) -> str:
        """The prompt in a notebook: its images and texts."""
        facts = {
            "question": self.text,
            "choices": "\n".join(self.choices),
            "answer": self.gold_text,
            "response": self.response,
            "id": self.id,
        }
        return images_html(self.images) + table_html(facts)

    def with_images(self, images: Sequence[ImageRef]) -> "Prompt":
        """The same prompt with other images in the same places."""
        remaining = iter(images)
        parts = tuple(part if isinstance(part, str) else next(remaining) for part in self.parts)
        assert next(remaining, None) is None, "more images than places"
        return replace(self, parts=parts)


@dataclass(frozen=True)
class Pass:
    """One forward pass over the responses: the reader, its view, and whether gradient flows."""

    reader: Reader
    view: View | str
    """A built-in view, or the name of a view of a plug-in."""
    gradient: bool = False
    keep: str = "hidden"
    """`hidden` keeps the hidden states of the response rows, `log_prob` keeps the sampled tokens'
    log-probabilities, `both` keeps both."""
    rows: str = ""
    """Name of a boolean signal: only the rows it marks get gradient. Empty: all rows."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reader", Reader(self.reader))
        object.__setattr__(self, "view", view_named(self.view))

    @property
    def name(self) -> str:
        """`reader.view`, the key of the pass in a scored batch."""
        return f"{self.reader}.{self.view}"


@dataclass(frozen=True)
class Rollout:
    """One response, as token ids. Text is for display only."""

    ids: tuple[int, ...]
    """Valid response tokens, the first end-of-turn token included."""
    sibling: int
    """Index among the K rollouts of its prompt."""
    finish: Finish
    attempt: int = 0
    """Number of times an empty response was sampled again."""
    log_probs: tuple[float, ...] | None = field(default=None, compare=False)
    """Log-probability of each id in nats, if requested (`Sampling.log_probs`): under the model's
    distribution over the shared vocabulary at temperature 1, before temperature, nucleus and banned
    ids. Scoring gives the same values for the same weights and the writer's prompt."""


@dataclass(frozen=True)
class RolloutGroup:
    """A prompt and its K sibling rollouts: the unit of work from data to loss."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]

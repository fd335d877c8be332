"""What a step reads and writes: prompts, responses, passes. Needs no torch."""

from dataclasses import dataclass, replace

from vistill.lora_settings import LoraSettings
from vistill.planning.shapes import ModelShape
from vistill.training.recipe import Recipe
from vistill.types import Pass, Reader, Writer

#: Assumed for data that is not drawn by the package: tokens of the words of a prompt, and image
#: tokens. `vistill check` prints the true lengths; `--prompt-tokens` sets another one.
TEXT_TOKENS, IMAGE_TOKENS = 150, 600
#: Words around a diagram, and its largest question.
DIAGRAM_TEXT = 32
#: Assumed mean length of a response as a share of `rollout.max_new_tokens`.
MEAN_SHARE = 0.25


@dataclass(frozen=True)
class Workload:
    """Sizes of a step."""

    recipe: Recipe
    passes: tuple[Pass, ...]
    writer: Writer
    teacher_share: float
    """Share of the prompts whose responses the teacher writes before step 1."""
    prompt_tokens: int
    """Tokens of a prompt, those of its images included."""
    image_tokens: int
    response_tokens: int
    """Mean length of a response, for times."""
    longest_response: int
    """Longest response, for memory."""

    @property
    def prompts(self) -> int:
        """Prompts of a step."""
        return self.recipe.train.prompts_per_step

    @property
    def siblings(self) -> int:
        """Responses to a prompt."""
        return 1 if self.writer is Writer.DATA else self.recipe.rollout.per_prompt

    @property
    def responses(self) -> int:
        """Responses of a step."""
        return self.prompts * self.siblings

    @property
    def gradient_passes(self) -> tuple[Pass, ...]:
        """Passes of the student with gradient."""
        return tuple(p for p in self.passes if p.gradient)

    @property
    def scored_passes(self) -> tuple[Pass, ...]:
        """Passes without gradient."""
        return tuple(p for p in self.passes if not p.gradient)

    @property
    def readers(self) -> set[Reader]:
        """Roles that read."""
        return {p.reader for p in self.passes}

    @property
    def lora(self) -> LoraSettings | None:
        """The settings of LoRA, if the run trains adapters."""
        student = self.recipe.student
        return student.lora if student.train == "lora" else None

    @property
    def student_copies(self) -> int:
        """Copies of the student in memory: moving average and reference."""
        return len(self.readers & {Reader.EMA, Reader.REFERENCE})

    def image_tokens_under(self, view: str) -> int:
        """Image tokens of a prompt under a view."""
        return 0 if view == "text_only" else self.image_tokens

    def prompt_tokens_under(self, view: str) -> int:
        """Tokens of a prompt under a view. Thoughts add one image."""
        if view == "text_only":
            return self.prompt_tokens - self.image_tokens
        extra = self.image_tokens if view.startswith("privileged") else 0
        return self.prompt_tokens + extra

    def patches(self, shape: ModelShape, view: str) -> int:
        """Image patches of a prompt under a view."""
        if shape.vision is None:
            return 0
        images = 2 if view.startswith("privileged") else 1
        return images * self.image_tokens_under(view) * shape.vision.merge**2


def prompt_sizes(recipe: Recipe, shape: ModelShape, tokens: int | None = None) -> tuple[int, int]:
    """Tokens of a prompt, and its image tokens: those of a diagram, or assumed ones.

    Args:
        recipe: of the run.
        shape: of the student.
        tokens: of the longest prompt, if it is known.
    """
    data, vision = recipe.data, shape.vision
    if data.sets:  # the longest prompt of any data set
        each = [replace(recipe, data=data.of_set(name)) for name in data.sets]
        return max(prompt_sizes(one, shape, tokens) for one in each)
    image, text = IMAGE_TOKENS, TEXT_TOKENS
    if data.train == "diagrams":
        text = DIAGRAM_TEXT
    if vision is not None:
        cell = vision.patch * vision.merge
        low, high = (data.min_pixels or 0) // cell**2, data.max_pixels
        image = max(image, low) if high is None else min(max(image, low), high // cell**2)
        if data.train == "diagrams":
            image = max(1, round(data.diagrams.options.side / cell)) ** 2
        image = vision.tokens_of_image or image
    if data.max_image_tokens is not None:
        image = min(image, data.max_image_tokens)
    total = min(image + text, data.max_prompt_tokens) if tokens is None else tokens
    return total, min(image, max(0, total - 1)) if tokens is None else max(0, total - text)

"""Check that no prompt is longer than the limit, as every encoder of the run writes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vistill.errors import DataError
from vistill.models.known_lengths import KnownLengths
from vistill.models.loading import VLM, PromptEncoder
from vistill.models.pairs import same_family
from vistill.phases import count_items
from vistill.training.checks.code import views_of
from vistill.types import Prompt, View
from vistill.views import ViewContext, apply_view
from vistill.views.registry import plugin_views

if TYPE_CHECKING:
    from vistill.training.setup import RunSetup

#: An image of fewer tokens is unreadable, so no message advises to shrink images further.
MIN_IMAGE_TOKENS = 16


def measure_prompt_lengths(setup: "RunSetup") -> str:
    """D203 if a prompt exceeds the length limit, also under views that lengthen it."""
    limit = setup.recipe.data.max_prompt_tokens
    drawn = setup.train_data.diagrams or setup.eval_data.diagrams
    if drawn and not plugin_views(views_of(setup.objective)):
        return "short: procedural diagrams"
    context = setup.recipe.view_context(setup.student.family.patch_size)
    overlong = find_overlong_prompts(
        setup.student, context, [*setup.train_prompts, *setup.eval_prompts], limit
    )
    readers = encoders_of(setup)
    for reader in readers:
        views = longer_views(setup) if reader is setup.student else [View.FULL]
        for view in views:
            overlong += find_overlong_prompts(reader, context, setup.train_prompts, limit, view)
    can_limit = all(reader.family.can_limit_image_tokens for reader in readers)
    check_prompt_lengths(overlong, limit, can_limit)
    return f"none longer than {limit:,} tokens"


def longer_views(setup: "RunSetup") -> list[str]:
    """The method's views that can lengthen a prompt: with thoughts, and all of plug-ins."""
    names = views_of(setup.objective)
    has_privileged = any(name.startswith(View.PRIVILEGED) for name in names)
    return [*([str(View.PRIVILEGED)] if has_privileged else []), *plugin_views(names)]


@dataclass(frozen=True)
class OverlongPrompt:
    """A prompt that exceeds the length limit."""

    where: str
    tokens: int
    image_tokens: int
    num_images: int

    def tokens_per_image(self, limit: int) -> int:
        """Tokens that each of its images may take under a limit."""
        return (limit - self.tokens + self.image_tokens) // max(1, self.num_images)


def find_overlong_prompts(
    student: PromptEncoder | VLM,
    context: ViewContext,
    prompts: Sequence[Prompt],
    limit: int,
    view: View | str = View.FULL,
) -> list[OverlongPrompt]:
    """Find the prompts that exceed the length limit."""
    overlong, known = [], KnownLengths(student)
    for prompt in count_items("measuring prompts", prompts):
        tokens, image_tokens = known.of(apply_view(prompt, view, context))
        if tokens > limit:
            thoughts = len(prompt.thoughts) or len(prompt.boxes) if view == View.PRIVILEGED else 0
            where = prompt.labels.get("row", prompt.id)
            num_images = len(prompt.images) + thoughts
            overlong.append(OverlongPrompt(where, tokens, image_tokens, num_images))
    known.cache.save()
    return overlong


def encoders_of(setup: "RunSetup") -> list[PromptEncoder | VLM]:
    """What encodes prompts: the student, and teachers of other families."""
    teachers = setup.teacher_encoders.values()
    return [setup.student, *(one for one in teachers if not same_family(setup.student, one))]


def check_prompt_lengths(
    overlong: Sequence[OverlongPrompt], limit: int, can_limit: bool = True
) -> None:
    """D203 for the longest prompt, with settings under which all of them pass.

    `can_limit` says whether every family supports `data.max_image_tokens`.
    """
    if not overlong:
        return
    longest = max(overlong, key=lambda p: p.tokens)
    per_image = min(p.tokens_per_image(limit) for p in overlong)
    helps = can_limit and per_image >= MIN_IMAGE_TOKENS
    shrink = f"data.max_image_tokens={per_image}   or   " if helps else ""
    count = len(overlong)
    others = f" ({count:,} prompts are too long, this is the longest)" if count > 1 else ""
    text_tokens = longest.tokens - longest.image_tokens
    raise DataError(
        "D203",
        f"prompt longer than the limit: {longest.tokens:,} tokens"
        f" = {longest.image_tokens:,} image + {text_tokens:,} text{others}",
        where=longest.where,
        why=f"data.max_prompt_tokens is {limit:,}; cutting a prompt would cut image placeholders",
        fix=f"{shrink}data.max_prompt_tokens={longest.tokens + 64}",
    )

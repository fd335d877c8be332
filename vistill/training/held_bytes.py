"""What a backward pass holds in memory, and the split of a step that stays within a budget.

Needs no torch: `memory_budget.py` measures these bytes on loaded models, `vistill plan` counts them
from the shape of a model.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vistill.errors import ConfigError
from vistill.training.micro_batches import AUTO_TOKENS, PART_TOKENS, BatchSplit

#: Share of the free memory for saved tensors; the rest is for the loss, temporaries and other
#: processes.
SHARE = {"cuda": 0.8, "cpu": 0.5}
#: Factor on the measured bytes, for temporary tensors.
MARGIN = 1.2
GIB = 2**30


@dataclass(frozen=True)
class HeldBytes:
    """Bytes that all passes with gradient together hold for the backward pass."""

    prompt_token: float
    """Per token of a prompt, its share of the image included."""
    response: float
    """Per response and token of its prompt, in addition to the tokens of the response."""
    response_token: float
    """Per token of a response."""
    weights: float = 0.0
    """Copies of weights in the precision of the step. All readings of a backward pass share them,
    so they count once."""
    recomputed: float = 0.0
    """Per token of a prompt, while one of its layers is computed again, after all responses."""

    def prompt(self, tokens: int) -> float:
        """Bytes of a prompt."""
        return MARGIN * tokens * self.prompt_token

    def one_response(self, prompt_tokens: int, tokens: int) -> float:
        """Bytes of a response."""
        return MARGIN * (prompt_tokens * self.response + tokens * self.response_token)

    def prompt_alone(self, tokens: int) -> float:
        """Bytes of a prompt in its own backward pass, which follows those of its responses."""
        return MARGIN * tokens * (self.prompt_token + self.recomputed)

    def least(self, prompt_tokens: int, tokens: int) -> float:
        """Bytes of the smallest part: the copies, one prompt and one of its responses."""
        both = self.prompt(prompt_tokens) + self.one_response(prompt_tokens, tokens)
        return self.weights + max(both, self.prompt_alone(prompt_tokens))

    def least_without_margin(self, prompt_tokens: int, tokens: int) -> float:
        """The same, without the margin for temporary tensors."""
        return self.weights + (self.least(prompt_tokens, tokens) - self.weights) / MARGIN


@dataclass(frozen=True)
class MemoryMeasurement:
    """What the longest prompt holds, and how long it is."""

    held: HeldBytes
    longest: int
    """Tokens of the longest prompt."""
    can_limit_images: bool = True
    """Whether the family can shrink images to a limit of tokens."""

    def choose_split(
        self,
        budget: float,
        response_tokens: int,
        where: Path,
        limit: float | None = None,
        fits_recomputed: Callable[[], bool] = lambda: False,
    ) -> BatchSplit:
        """The largest split within limits and budget; half of the budget is for prompts.

        Args:
            budget: bytes that a backward pass may hold.
            response_tokens: tokens of the longest response.
            where: the run folder, for messages.
            limit: bytes that a backward pass can hold at all. Up to them the smallest parts are
                taken where the budget is exceeded. None: the budget is the limit.
            fits_recomputed: whether they would fit with gradient checkpointing; asked on an error.

        Raises:
            ConfigError: C104, one prompt with one response exceeds budget and limit.
        """
        held, longest = self.held, self.longest
        if held.least(longest, response_tokens) > budget:
            if not self.holds_one(budget, response_tokens, limit):
                again = fits_recomputed()
                raise self.too_small_error(budget, response_tokens, where, again)
            return BatchSplit(tokens=1, part_tokens=1)
        budget -= held.weights
        # a prompt that needs more than half is alone in its micro-batch; prompts may need less than
        # half
        for_prompts = max(min(budget / 2, held.prompt(AUTO_TOKENS)), held.prompt(longest))
        tokens = min(
            AUTO_TOKENS,
            int(for_prompts / max(1.0, held.prompt(1))),
            max(longest, int(budget / max(1.0, held.prompt_alone(1)))),
        )
        part = int((budget - for_prompts) / (MARGIN * held.response_token))
        if part >= 2 * PART_TOKENS:
            return BatchSplit(tokens=tokens, part_tokens=PART_TOKENS)
        overhead = math.ceil(longest * held.response / held.response_token)
        return BatchSplit(tokens=tokens, part_tokens=part, overhead=overhead)

    def holds_one(self, budget: float, response_tokens: int, limit: float | None) -> bool:
        """Whether one prompt with one response fits: into the budget, or below the limit."""
        if self.held.least(self.longest, response_tokens) <= budget:
            return True
        smallest = self.held.least_without_margin(self.longest, response_tokens)
        return limit is not None and smallest <= limit

    def too_small_error(
        self, budget: float, response_tokens: int, where: Path, fits_recomputed: bool = False
    ) -> ConfigError:
        """C104 with settings that fit; what changes no number comes first."""
        held, longest = self.held, self.longest
        least = held.least(longest, response_tokens)
        for_tokens = (budget - held.weights) / MARGIN
        fits = int(
            (for_tokens - longest * (held.prompt_token + held.response)) / held.response_token
        )
        for_prompt = for_tokens - response_tokens * held.response_token
        shorter = min(
            int(for_prompt / (held.prompt_token + held.response)),
            int(for_tokens / (held.prompt_token + held.recomputed)),
        )
        if longest > for_tokens / (held.prompt_token + held.recomputed):
            fits = 0  # the prompt alone is too long
        image = (
            f"   or data.max_image_tokens={shorter // 2}"
            if shorter >= 16 and self.can_limit_images
            else ""
        )
        smaller = f"   or rollout.max_new_tokens={fits}" if fits >= 1 else image
        again = "train.gradient_checkpointing=true   or " if fits_recomputed else ""
        return ConfigError(
            "C104",
            f"one prompt with one response needs {least / GIB:.3g} GiB, "
            f"the budget is {budget / GIB:.3g} GiB",
            where=str(where),
            why=f"the longest prompt has {longest:,} tokens, a response up to {response_tokens:,};"
            "\nmeasured for the backward pass: "
            f"{held.prompt_token / 1024:,.0f} KiB per prompt token, "
            f"{held.response_token / 1024:,.0f} KiB per response token"
            + (f", {held.weights / GIB:.3g} GiB of weight copies" if held.weights else ""),
            fix=f"{again}train.memory={1.05 * least / GIB:.3g}{smaller}",
            note=what_fits(fits, shorter),
        )


def what_fits(response: int, prompt: int) -> str:
    """The longest response next to this prompt, else the longest prompt next to this response."""
    if response >= 1:
        return f"with this prompt, responses of up to {response:,} tokens fit"
    if prompt >= 1:
        return f"with such a response, prompts of up to {prompt:,} tokens fit"
    return "with such a response no prompt fits, and with this prompt no response"

"""How a step is cut into what fits into memory: whole prompts a micro-batch, responses a part. Never the update."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: Tokens of whole prompts and their responses in a micro-batch, and response tokens that are learnt from at a time,
#: where memory does not ask for less. More would not be faster: the products are large enough.
AUTO_TOKENS, PART_TOKENS = 16_384, 4_096


@dataclass(frozen=True)
class BatchSplit:
    """Limits of micro-batches and of their parts."""

    micro_batch: int | Literal["auto"] = "auto"
    """Prompts a micro-batch, or as many as `tokens` holds."""
    tokens: int = AUTO_TOKENS
    """Tokens of whole prompts with their responses a micro-batch, one prompt at least."""
    part_tokens: int = PART_TOKENS
    """Response tokens whose activations exist together, one response at least."""
    overhead: int = 0
    """Tokens that a response counts for beyond its own, where memory is short: it copies keys of its prompt."""

    def micro_batches(self, sizes: Sequence[int]) -> list[list[int]]:
        """Consecutive prompts of so many tokens in micro-batches."""
        if self.micro_batch == "auto":
            return batched(sizes, self.tokens)
        step = self.micro_batch
        return [list(range(i, min(i + step, len(sizes)))) for i in range(0, len(sizes), step)]

    def parts(self, lengths: Sequence[int]) -> list[list[int]]:
        """Consecutive responses of so many tokens in parts."""
        return batched([n + self.overhead for n in lengths], self.part_tokens)


def batched(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Consecutive indices whose sizes add up to the budget at most; one that is larger stands alone."""
    parts: list[list[int]] = []
    total = 0
    for index, size in enumerate(sizes):
        if not parts or total + size > budget:
            parts.append([])
            total = 0
        parts[-1].append(index)
        total += size
    return parts

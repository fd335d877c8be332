"""How a step is cut to fit into memory: prompts into micro-batches, responses into parts.

The split never changes the update.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: Tokens of prompts and responses in a micro-batch, where memory allows it. More would not be
#: faster.
AUTO_TOKENS = 16_384
#: Response tokens in a part, where memory allows it. More would not be faster.
PART_TOKENS = 4_096


@dataclass(frozen=True)
class BatchSplit:
    """Limits of micro-batches and of their parts."""

    micro_batch: int | Literal["auto"] = "auto"
    """Prompts in a micro-batch; `auto`: as many as fit into `tokens`."""
    tokens: int = AUTO_TOKENS
    """Tokens of prompts and responses in a micro-batch, which holds at least one prompt."""
    part_tokens: int = PART_TOKENS
    """Response tokens in a part, which holds at least one response: their activations coexist."""
    overhead: int = 0
    """Tokens added to each response, where memory is short: it copies keys of its prompt."""

    def micro_batches(self, sizes: Sequence[int]) -> list[list[int]]:
        """Cut prompts into micro-batches.

        Args:
            sizes: tokens of each prompt with its responses.

        Returns:
            Indices of the prompts in each micro-batch, in order.
        """
        if self.micro_batch == "auto":
            return cut_by_size(sizes, self.tokens)
        step = self.micro_batch
        return [list(range(i, min(i + step, len(sizes)))) for i in range(0, len(sizes), step)]

    def parts(self, lengths: Sequence[int]) -> list[list[int]]:
        """Cut responses of these lengths into parts; indices in order."""
        return cut_by_size([n + self.overhead for n in lengths], self.part_tokens)


def cut_by_size(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Consecutive indices in parts of at most the budget; a larger one has its own part."""
    parts: list[list[int]] = []
    total = 0
    for index, size in enumerate(sizes):
        if not parts or total + size > budget:
            parts.append([])
            total = 0
        parts[-1].append(index)
        total += size
    return parts


def halve_micro_batches(micro_batches: Sequence[list[int]], times: int) -> list[list[int]]:
    """Cut every micro-batch into halves `times` times; a single prompt is never cut."""
    parts = [list(part) for part in micro_batches]
    for _ in range(times):
        middles = [(len(part) + 1) // 2 for part in parts]
        halves = [
            half
            for part, middle in zip(parts, middles, strict=True)
            for half in (part[:middle], part[middle:])
        ]
        parts = [half for half in halves if half]
    return parts

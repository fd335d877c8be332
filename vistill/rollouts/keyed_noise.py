"""Keyed sampling noise: one generator per rollout, so the batch composition does not matter.

The noise comes from the CPU on every device, so that a run has the same tokens everywhere. While a
GPU decodes, threads of the CPU draw the noise of the next token.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import torch
from torch import Tensor
from transformers import LogitsProcessor

from vistill.data.keys import keyed_seed
from vistill.functional.running_sums import running_sum

#: Random numbers drawn per rollout at a time. The block size depends on the vocabulary alone, so
#: the noise stream is the same everywhere.
BLOCK_NUMBERS = 16_384
#: Lower bound of the uniform noise. A 0, which comes once in 17 million numbers, would become
#: Gumbel noise of -inf: a nucleus of one token would be empty, and the argmax would be token 0. No
#: other number changes.
SMALLEST_UNIFORM = torch.finfo(torch.float32).tiny
#: Number of most likely tokens that are sorted first for a nucleus.
NUCLEUS_CANDIDATES = 256
#: Devices that decode while threads of the CPU draw the next noise. A CPU has no time left for it.
DRAW_AHEAD = {"cuda"}
#: Threads that draw the rows of one block.
ROW_THREADS = 8


def rollout_seed(seed: int, step: int, prompt_id: str, sibling: int, attempt: int) -> int:
    """The seed of one rollout's noise."""
    return keyed_seed("rollout", seed, step, prompt_id, sibling, attempt)


def mask_outside_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Set logits outside the smallest set of probability `top_p` to -inf; keep the likeliest token.

    Tokens tied with the last one inside stay too, so that the set depends on values alone. Only the
    most likely tokens are sorted: sorting the whole vocabulary for every token would cost more than
    the model.
    """
    if top_p >= 1.0:
        return logits
    probabilities, size = torch.softmax(logits, -1), NUCLEUS_CANDIDATES
    while True:
        top = probabilities.topk(min(size, logits.shape[-1])).values
        before = running_sum(top) - top
        if size >= logits.shape[-1] or bool((before[..., -1] >= top_p).all()):
            break
        size *= 8
    last = (before < top_p).sum(-1, keepdim=True).clamp_min(1) - 1
    return logits.masked_fill(probabilities < top.gather(-1, last), -torch.inf)


class KeyedSampler(LogitsProcessor, ABC):
    """Samples the token itself, by noise that depends on the rollout's seed and the position.

    As a logits processor it masks every other token, so `generate` draws nothing. Its sampling mode
    then only serves to expand one prompt to K siblings, which greedy search refuses.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        temperature: float,
        top_p: float,
        banned: Sequence[int],
        vocabulary: int,
        *,
        log_probs: bool = False,
    ) -> None:
        self.temperature, self.top_p = temperature, top_p
        self.banned, self.vocabulary = torch.tensor(list(banned), dtype=torch.long), vocabulary
        self.log_probs: list[Tensor] | None = [] if log_probs else None
        """Log-probabilities of the chosen ids, one [rows] tensor per token, in nats, at
        temperature 1 over the vocabulary, before nucleus and bans."""
        self.start(seeds)

    @abstractmethod
    def start(self, seeds: Sequence[int]) -> None:
        """Prepare the noise of rollouts with these seeds."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask every token except the chosen one of each row."""
        chosen = self.choose(scores)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen[:, None], 0.0)

    def choose(self, scores: Tensor) -> Tensor:
        """The sampled id of each row. Bans ids in `scores` in place."""
        if self.log_probs is None:
            return self.sample(self.allowed_logits(scores))
        # Before `allowed_logits`, which bans ids in place.
        total = scores[:, : self.vocabulary].float().logsumexp(-1)
        chosen = self.sample(self.allowed_logits(scores))
        self.log_probs.append(scores.gather(-1, chosen[:, None])[:, 0].float() - total)
        return chosen

    def allowed_logits(self, scores: Tensor) -> Tensor:
        """Logits of the vocabulary in float32; those of banned ids are -inf."""
        logits = scores[:, : self.vocabulary].float()
        self.banned = self.banned.to(logits.device)  # once, not for every token
        return logits.index_fill_(1, self.banned, -torch.inf)

    @abstractmethod
    def sample(self, logits: Tensor) -> Tensor:
        """The sampled id of each row of allowed logits [rows, vocabulary], for the next token."""

    @abstractmethod
    def distance_to_choice(self, scores: Tensor, token: int) -> float:
        """How far logits of one row must move, in nats, until `token` is the next choice.

        0 if it is the choice. Like `choose`, it takes the noise of the next token.
        """

    @abstractmethod
    def keep(self, rows: Sequence[int]) -> None:
        """Continue with some of the rows; each keeps its noise stream."""

    waits: bool = True
    """Whether `sample` asks the device for larger nuclei. If not, ask `num_complete`."""

    def num_complete(self) -> Tensor | None:
        """How many of the last tokens of a block are exact; None if all are. See `rewind`."""
        return None

    def rewind(self, count: int) -> None:
        """Forget the last `count` tokens. Take more candidates for their nuclei."""
        raise NotImplementedError(f"{type(self).__name__} is exact at once")


class GeneratorSampler(KeyedSampler):
    """Temperature, nucleus, Gumbel noise from one CPU generator per rollout, argmax.

    `argmax(logits / temperature + Gumbel)` is a sample of the softmax.
    """

    def start(self, seeds: Sequence[int]) -> None:
        """Make one generator per rollout."""
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.block = max(1, BLOCK_NUMBERS // self.vocabulary)
        self.drawn = torch.empty(0)
        self.used = 0
        self.ahead: Callable[[], Tensor] | None = None
        """Waits for the block after this one, if threads draw it."""

    def sample(self, logits: Tensor) -> Tensor:
        """The argmax of the noisy logits."""
        return self.noisy_logits(logits).argmax(-1)

    def distance_to_choice(self, scores: Tensor, token: int) -> float:
        """The distance of the noisy logit of `token` to the largest one."""
        values = self.noisy_logits(self.allowed_logits(scores))[0]
        return float(values.max() - values[token])

    def noisy_logits(self, logits: Tensor) -> Tensor:
        """`logits / temperature + Gumbel`; its argmax is the sample. Temperature 0: no noise."""
        if self.temperature == 0:
            return logits
        logits = mask_outside_nucleus(logits / self.temperature, self.top_p)
        return logits + self.gumbel(logits)

    def keep(self, rows: Sequence[int]) -> None:
        """Continue with some of the rows; each keeps its noise stream."""
        index = list(rows)
        if self.ahead is not None:
            self.ahead = partial(torch.Tensor.clone, self.ahead()[:, index])
        self.generators = [self.generators[row] for row in index]
        if len(self.drawn):
            self.drawn = self.drawn[:, index]

    def gumbel(self, logits: Tensor) -> Tensor:
        """Standard Gumbel noise, one generator per row; from the CPU, so equal on every device."""
        if self.used == len(self.drawn):
            self.drawn, self.used = self.next_block(logits), 0
        self.used += 1
        return self.drawn[self.used - 1].to(logits.device, non_blocking=True)

    def next_block(self, logits: Tensor) -> Tensor:
        """The next block of noise. If the device allows it, start to draw the one after it."""
        vocabulary = logits.shape[-1]
        if logits.device.type not in DRAW_AHEAD:
            return draw_gumbel(self.generators, self.block, vocabulary)
        draw = partial(
            draw_gumbel, self.generators, self.block, vocabulary, row_threads(), logits.is_cuda
        )
        block = draw() if self.ahead is None else self.ahead()
        self.ahead = block_thread().submit(draw).result
        return block


def draw_gumbel(
    generators: Sequence[torch.Generator],
    block: int,
    vocabulary: int,
    threads: ThreadPoolExecutor | None = None,
    is_pinned: bool = False,
) -> Tensor:
    """Standard Gumbel noise [block, rows, vocabulary], each row from its own generator.

    Args:
        generators: one per row.
        block: numbers of tokens.
        vocabulary: entries per token.
        threads: draw the rows in parallel. The numbers are the same.
        is_pinned: allocate memory from which a GPU copies fast.
    """
    drawn = torch.empty(len(generators), block, vocabulary, pin_memory=is_pinned)

    def fill(row: Tensor, generator: torch.Generator) -> None:
        row.uniform_(SMALLEST_UNIFORM, 1.0, generator=generator)

    apply = map if threads is None else threads.map
    for _ in apply(fill, drawn.unbind(0), generators):
        pass  # an error of a row is raised here
    return drawn.log_().neg_().log_().neg_().transpose(0, 1)


@cache
def row_threads() -> ThreadPoolExecutor:
    """The threads that draw rows."""
    return ThreadPoolExecutor(min(ROW_THREADS, os.cpu_count() or 1), "vistill-noise-rows")


@cache
def block_thread() -> ThreadPoolExecutor:
    """The thread that waits for the rows of a block, apart from theirs."""
    return ThreadPoolExecutor(1, "vistill-noise")

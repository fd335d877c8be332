"""Keyed sampling noise: every rollout draws from its own generator, so batch composition cannot matter."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from vistill.data.keys import keyed_seed

#: Random numbers a rollout draws at a time: a function of the vocabulary alone, so the stream is the same everywhere.
BLOCK_NUMBERS = 16_384
#: Uniform noise is drawn from here on. A 0, which comes once in 17 million numbers, would be Gumbel noise of -inf: no
#: token of a nucleus of one would be left, and the first of the vocabulary chosen. No other number changes.
SMALLEST = torch.finfo(torch.float32).tiny
#: Tokens that are looked at first for a nucleus.
NUCLEUS = 256


def rollout_seed(seed: int, step: int, prompt_id: str, sibling: int, attempt: int) -> int:
    """The seed of one rollout's noise."""
    return keyed_seed("rollout", seed, step, prompt_id, sibling, attempt)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Logits outside the smallest set of probability `top_p` become -inf; the most likely token always stays.

    Tokens as likely as the last one inside stay too, so that the set depends on values alone. The most likely ones are
    looked at first: sorting a whole vocabulary at every token would cost more than the model.
    """
    if top_p >= 1.0:
        return logits
    probabilities, size = torch.softmax(logits, -1), NUCLEUS
    while True:
        top = probabilities.topk(min(size, logits.shape[-1])).values
        before = top.cumsum(-1) - top
        if size >= logits.shape[-1] or bool((before[..., -1] >= top_p).all()):
            break
        size *= 8
    last = (before < top_p).sum(-1, keepdim=True).clamp_min(1) - 1
    return logits.masked_fill(probabilities < top.gather(-1, last), -torch.inf)


class KeyedSampler(LogitsProcessor):
    """Chooses the token itself: temperature, nucleus, keyed Gumbel noise, then everything but the argmax is masked.

    `argmax(logits / temperature + Gumbel)` is a sample of the softmax. `generate` then has nothing left to draw, so
    it may expand one prompt to K siblings, which it refuses for plain greedy search.
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
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature, self.top_p = temperature, top_p
        self.banned, self.vocabulary = list(banned), vocabulary
        self.block = max(1, BLOCK_NUMBERS // vocabulary)
        self.drawn = torch.empty(0)
        self.used = 0
        self.log_probs: list[Tensor] | None = [] if log_probs else None
        """Of the chosen ids, one [rows] a token: the model's own at temperature 1 over the vocabulary."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask every token but the chosen one of each row."""
        chosen = self.choose(scores)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen[:, None], 0.0)

    def choose(self, scores: Tensor) -> Tensor:
        """The sampled id of each row."""
        if self.log_probs is None:
            return self.noisy(scores).argmax(-1)
        total = (
            scores[:, : self.vocabulary].float().logsumexp(-1)
        )  # before `noisy`, which bans ids in place
        chosen = self.noisy(scores).argmax(-1)
        self.log_probs.append(scores.gather(-1, chosen[:, None])[:, 0].float() - total)
        return chosen

    def noisy(self, scores: Tensor) -> Tensor:
        """What the sampled id is the largest entry of: `logits / temperature + Gumbel`; at temperature 0 the logits."""
        logits = scores[:, : self.vocabulary].float()
        logits[:, self.banned] = -torch.inf
        if self.temperature == 0:
            return logits
        logits = nucleus(logits / self.temperature, self.top_p)
        return logits + self.gumbel(logits)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows; each keeps its own stream."""
        self.generators = [self.generators[row] for row in rows]
        if len(self.drawn):
            self.drawn = self.drawn[:, list(rows)]

    def gumbel(self, logits: Tensor) -> Tensor:
        """Standard Gumbel noise, one generator a row, drawn on the CPU so that it is the same on every device."""
        if self.used == len(self.drawn):
            drawn = torch.empty(len(self.generators), self.block, logits.shape[-1])
            for row, generator in zip(drawn, self.generators, strict=True):
                row.uniform_(SMALLEST, 1.0, generator=generator)
            self.drawn, self.used = drawn.log_().neg_().log_().neg_().transpose(0, 1), 0
        self.used += 1
        return self.drawn[self.used - 1].to(logits.device)

"""Sampling noise as a pure function of (rollout seed, position, token id), on any device.

Integers decide the noise: SplitMix64 (Steele, Lea, Flood 2014: Fast Splittable Pseudorandom Number
Generators) with random access. The n-th number of the generator with seed s is
`mix(s + (n + 1) * GOLDEN)` modulo 2^64. The numbers of a rollout's seed are the seeds of its
positions; the numbers of a position are the uniform numbers of its token ids. Nothing is drawn that
is not used, and no generator has a state.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vistill.functional.running_sums import running_sum
from vistill.rollouts.keyed_noise import NUCLEUS_CANDIDATES, KeyedSampler

#: The increment of SplitMix64, 2^64 divided by the golden ratio, and the constants of its mixing.
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
#: Bits of a uniform number. 52 bits and a half are exact in float64, so neither 0 nor 1 occurs.
BITS = 52
#: The number of a position that chooses among all tokens (top_p = 1). No token has this id.
WHOLE_VOCABULARY = (1 << 32) - 1
#: Probabilities that are added in float32 before float64 continues.
BLOCK = 512


def mix(state: int) -> int:
    """The output function of SplitMix64, on Python's integers."""
    state &= (1 << 64) - 1
    state = (state ^ (state >> 30)) * FIRST & ((1 << 64) - 1)
    state = (state ^ (state >> 27)) * SECOND & ((1 << 64) - 1)
    return state ^ (state >> 31)


def to_signed(number: int) -> int:
    """The int64 with the same 64 bits."""
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number


def shift_right(x: Int[Tensor, "*shape"], bits: int) -> Int[Tensor, "*shape"]:
    """The logical shift: zeros enter from the left."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def numbers_at(seeds: Int[Tensor, " N"], index: Int[Tensor, "#N M"]) -> Int[Tensor, "N M"]:
    """The numbers at some indices of the generators with these seeds, as the bits of int64."""
    x = seeds[:, None] + (index + 1) * to_signed(GOLDEN)  # int64 wraps around on every device
    x = (x ^ shift_right(x, 30)) * to_signed(FIRST)
    x = (x ^ shift_right(x, 27)) * to_signed(SECOND)
    return x ^ shift_right(x, 31)


def uniform_at(seeds: Int[Tensor, " N"], index: Int[Tensor, "#N M"]) -> Float[Tensor, "N M"]:
    """Uniform numbers in (0, 1), float64: the same bits on every device."""
    return (shift_right(numbers_at(seeds, index), 64 - BITS).double() + 0.5) * 2.0**-BITS


def nucleus(
    logits: Float[Tensor, "N V"], top_p: float, candidates: int
) -> tuple[Float[Tensor, "N C"], Int[Tensor, "N C"], Bool[Tensor, " N"]]:
    """Logits and ids of the most likely tokens, those outside the nucleus at -inf.

    The nucleus is that of `mask_outside_nucleus`: tokens tied with its last one belong to it.

    Args:
        logits: divided by the temperature.
        top_p: probability of the nucleus.
        candidates: number of tokens to take.

    Returns:
        logits in float64, token ids, and whether a row's nucleus lies within the candidates.
    """
    size = min(candidates, logits.shape[-1])
    probabilities = torch.softmax(logits, -1)
    top, ids = probabilities.topk(size)
    before = running_sum(top) - top
    last = (before < top_p).sum(-1, keepdim=True).clamp_min(1) - 1
    edge = top.gather(-1, last)
    values = logits.gather(-1, ids).double().masked_fill(top < edge, -torch.inf)
    is_whole = torch.full_like(edge[:, 0], size == logits.shape[-1], dtype=torch.bool)
    return values, ids, is_whole | ((before[:, -1] >= top_p) & (top[:, -1] < edge[:, 0]))


class CounterSampler(KeyedSampler):
    """Temperature and nucleus, then one choice by numbers that need no generator.

    At top_p < 1: the argmax of `logits / temperature + Gumbel` over the nucleus, with the noise of
    each token id. At top_p = 1: the inverse of the distribution function at one uniform number,
    since noise for the whole vocabulary would cost more than the model.
    """

    def start(self, seeds: Sequence[int]) -> None:
        """Begin at position 0 of every rollout."""
        self.seeds = torch.tensor([to_signed(seed) for seed in seeds])
        self.position = 0
        self.candidates = NUCLEUS_CANDIDATES
        self.complete: list[Tensor] = []
        """For each token since `num_complete`, whether all nuclei lay within the candidates."""

    def position_seeds(self, device: torch.device) -> Int[Tensor, " N"]:
        """The seeds of the rollouts' current position."""
        self.seeds = self.seeds.to(device)
        index = torch.full((1, 1), self.position, device=device)
        return numbers_at(self.seeds, index)[:, 0]

    def sample(self, logits: Tensor) -> Tensor:
        """The sampled id of each row; the next call is for the next position."""
        if self.temperature == 0:
            chosen = logits.argmax(-1)
        elif self.top_p >= 1:
            chosen = self.invert(logits / self.temperature)[0]
        else:
            values, ids = self.noisy_nucleus(logits)
            chosen = ids.gather(-1, values.argmax(-1, keepdim=True))[:, 0]
        self.position += 1
        return chosen

    def noisy_nucleus(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """`logits / temperature + Gumbel` of the nucleus in float64, -inf outside, and the ids."""
        logits = logits / self.temperature
        values, ids, complete = nucleus(logits, self.top_p, self.candidates)
        size = self.candidates
        while self.waits and not bool(complete.all()):
            size *= 8
            values, ids, complete = nucleus(logits, self.top_p, size)
        if not self.waits:
            self.complete.append(complete.all())
        return values + self.gumbel(ids), ids

    def gumbel(self, ids: Int[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """Standard Gumbel noise of some token ids at the current position, float64."""
        return -torch.log(-torch.log(uniform_at(self.position_seeds(ids.device), ids)))

    def invert(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The first id whose cumulative probability exceeds a uniform number, and the number."""
        seeds = self.position_seeds(logits.device)
        uniform = uniform_at(seeds, torch.full((1, 1), WHOLE_VOCABULARY, device=logits.device))
        probabilities = torch.softmax(logits, -1)
        blocks = torch.nn.functional.pad(probabilities, (0, -logits.shape[-1] % BLOCK))
        blocks = blocks.unflatten(-1, (-1, BLOCK))
        sums = blocks.sum(-1).double()
        ends = running_sum(sums)
        target = below(uniform * ends[:, -1:], ends[:, -1:])
        block = torch.searchsorted(ends, target, right=True)
        start = (ends - sums).gather(-1, block)
        own = blocks.gather(1, block[..., None].expand(-1, -1, BLOCK))[:, 0]
        inside = running_sum(own.double())
        offset = torch.searchsorted(inside, below(target - start, inside[:, -1:]), right=True)
        return (block * BLOCK + offset)[:, 0], uniform[:, 0]

    def distance_to_choice(self, scores: Tensor, token: int) -> float:
        """Nats to the choice.

        Logits that move by e nats move a cumulative probability by at most e / 2, so the distance
        of the uniform number to the token's interval counts twice.
        """
        logits = self.allowed_logits(scores)
        if self.temperature == 0:
            distance = float(logits[0].max() - logits[0, token])
        elif self.top_p >= 1:
            logits = logits / self.temperature
            uniform = float(self.invert(logits)[1])
            probabilities = torch.softmax(logits, -1)[0].double()
            start = float(probabilities[:token].sum())
            end = start + float(probabilities[token])
            distance = 2 * max(0.0, start - uniform, uniform - end)
        else:
            values, ids = self.noisy_nucleus(logits)
            own = values[ids == token]
            distance = float(values.max() - own[0]) if len(own) else float("inf")
        self.position += 1
        return distance

    def keep(self, rows: Sequence[int]) -> None:
        """Continue with some of the rows."""
        index = torch.tensor(list(rows))
        self.seeds = self.seeds[index.to(self.seeds.device)]

    def num_complete(self) -> Tensor | None:
        """How many tokens were exact before the first with a larger nucleus; None without any."""
        if not self.complete:
            return None
        complete, self.complete = torch.stack(self.complete), []
        return complete.long().cumprod(0).sum()

    def rewind(self, count: int) -> None:
        """Forget the last `count` tokens and take eight times as many candidates."""
        self.position -= count
        self.candidates *= 8
        if self.log_probs is not None:
            del self.log_probs[len(self.log_probs) - count :]


def below(x: Float[Tensor, "N 1"], limit: Float[Tensor, "N 1"]) -> Float[Tensor, "N 1"]:
    """The number, or the nearest one in [0, limit) where rounding left it."""
    return torch.minimum(x.clamp_min(0), torch.nextafter(limit, torch.zeros_like(limit)))

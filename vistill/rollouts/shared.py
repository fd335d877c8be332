"""The default engine: prompts are read once, finished rows are dropped, the cache is written in place."""

from collections.abc import Callable, Sequence

import torch

from vistill.models.decoding import Decoder
from vistill.models.loading import VLM
from vistill.rollouts.checked_engine import banned_ids
from vistill.rollouts.engine import InProcessEngine, RolloutRequest, Sampling
from vistill.rollouts.hf import to_rollout, writing_mode
from vistill.rollouts.keyed_noise import KeyedSampler, rollout_seed
from vistill.types import Rollout

#: Finished rows are dropped once so many steps were wasted on them, all rows together counted as one step: about what
#: dropping costs, which copies the cache.
WASTED_STEPS = 2.0


class SharedEngine(InProcessEngine):
    """Rollouts by our own loop with keyed noise: the same responses as `HFEngine`, token for token."""

    def __init__(self, vlm: VLM, poll: Callable[[], None] = lambda: None) -> None:
        self.vlm, self.poll = vlm, poll

    def write(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
        """The rollouts of each request, in order; whole requests are decoded together up to `rows_per_call` rows."""
        written: list[tuple[Rollout, ...]] = []
        part: list[RolloutRequest] = []
        for request in requests:
            if part and sum(len(r.siblings) for r in [*part, request]) > sampling.rows_per_call:
                written += self._call(part, sampling)
                part = []
            part.append(request)
        return written + (self._call(part, sampling) if part else [])

    @torch.no_grad()
    def _call(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
        group = [g for g, request in enumerate(requests) for _ in request.siblings]
        with writing_mode(self.vlm.model):
            rows, values = self._decode(requests, group, sampling)
        stop, row, value = (
            set(self.vlm.stop_ids),
            iter(rows),
            iter(values if sampling.log_probs else [None] * len(rows)),
        )
        return [
            tuple(to_rollout(next(row), stop, s, r.attempt, next(value)) for s in r.siblings)
            for r in requests
        ]

    def _decode(
        self, requests: Sequence[RolloutRequest], group: list[int], sampling: Sampling
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Token ids of every row, its first end-of-turn token included, and their log-probabilities if asked for."""
        vlm = self.vlm
        decoder, sampler = (
            Decoder(vlm, [r.prompt for r in requests], group),
            self._sampler(requests, sampling),
        )
        head, stop = vlm.head(vlm.vocabulary_size), set(vlm.stop_ids)
        rows: list[list[int]] = [[] for _ in group]
        values: list[list[float]] = [[] for _ in group]
        alive, done, wasted = list(range(len(group))), [False] * len(group), 0
        for _ in range(sampling.max_new_tokens):
            self.poll()
            chosen = sampler.choose(head.logits(decoder.states()))
            for row, token in zip(alive, chosen.tolist(), strict=True):
                if not done[row]:
                    rows[row].append(token)
                    done[row] = token in stop
            if (
                sampler.log_probs is not None
            ):  # what a finished row is given here, `to_rollout` cuts off
                for row, value in zip(alive, sampler.log_probs.pop().tolist(), strict=True):
                    values[row].append(value)
            decoder.append(chosen)
            left = [place for place, row in enumerate(alive) if not done[row]]
            if not left:
                break
            wasted += len(alive) - len(left)
            if wasted >= WASTED_STEPS * len(alive):
                wasted = 0
                alive = [alive[place] for place in left]
                decoder.keep(torch.tensor(left, device=vlm.device))
                sampler.keep(left)
        return rows, values

    def _sampler(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> KeyedSampler:
        """Keyed noise of each row."""
        vlm = self.vlm
        seeds = [
            rollout_seed(sampling.seed, sampling.step, r.key, s, r.attempt)
            for r in requests
            for s in r.siblings
        ]
        return KeyedSampler(
            seeds,
            sampling.temperature,
            sampling.top_p,
            banned_ids(vlm),
            vlm.vocabulary_size,
            log_probs=sampling.log_probs,
        )

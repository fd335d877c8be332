"""The default engine: prompts are read once, finished rows are dropped, the cache is written in place."""

from collections.abc import Callable, Sequence

import torch

from vistill.models.decoding import Decoder
from vistill.models.loading import VLM
from vistill.rollouts.engine import RolloutEngine, RolloutRequest, Sampling
from vistill.rollouts.hf import HFEngine, banned_ids, to_rollout
from vistill.rollouts.noise import KeyedSampler, rollout_seed
from vistill.types import Rollout

#: Finished rows are dropped once so many steps were wasted on them, all rows together counted as one step: about what
#: dropping costs, which copies the cache.
WASTED_STEPS = 2.0


def plain_engine(vlm: VLM, poll: Callable[[], None] = lambda: None, name: str = "shared") -> RolloutEngine:
    """Ours where the family can share prompts, else transformers'."""
    return SharedEngine(vlm, poll) if name == "shared" and vlm.shares_prompts else HFEngine(vlm, poll)


class SharedEngine:
    """Rollouts by our own loop with keyed noise: the same responses as `HFEngine`, token for token."""

    def __init__(self, vlm: VLM, poll: Callable[[], None] = lambda: None) -> None:
        self.vlm, self.poll = vlm, poll

    def write(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> list[tuple[Rollout, ...]]:
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
    def _call(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> list[tuple[Rollout, ...]]:
        group = [g for g, request in enumerate(requests) for _ in request.siblings]
        was_training = self.vlm.model.training
        self.vlm.model.eval()
        ids = self._decode(requests, group, sampling)
        self.vlm.model.train(was_training)
        stop, rows = set(self.vlm.stop_ids), iter(ids)
        return [tuple(to_rollout(next(rows), stop, s, r.attempt) for s in r.siblings) for r in requests]

    def _decode(self, requests: Sequence[RolloutRequest], group: list[int], sampling: Sampling) -> list[list[int]]:
        """Token ids of every row, its first end-of-turn token included."""
        vlm = self.vlm
        decoder, sampler = Decoder(vlm, [r.prompt for r in requests], group), self._sampler(requests, sampling)
        head, stop = vlm.head(vlm.vocabulary_size), set(vlm.stop_ids)
        rows: list[list[int]] = [[] for _ in group]
        alive, done, wasted = list(range(len(group))), [False] * len(group), 0
        for _ in range(sampling.max_new_tokens):
            self.poll()
            chosen = sampler.choose(head.logits(decoder.states()))
            for row, token in zip(alive, chosen.tolist(), strict=True):
                if not done[row]:
                    rows[row].append(token)
                    done[row] = token in stop
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
        return rows

    def _sampler(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> KeyedSampler:
        """Keyed noise of each row."""
        vlm = self.vlm
        seeds = [rollout_seed(sampling.seed, sampling.step, r.key, s, r.attempt) for r in requests for s in r.siblings]
        return KeyedSampler(seeds, sampling.temperature, sampling.top_p, banned_ids(vlm), vlm.vocabulary_size)
